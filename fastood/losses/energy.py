"""Energy losses: low energy for in-distribution rows, high energy for background rows. E(v) = -logsumexp(v).

Papers: Liu et al. 2020 (https://arxiv.org/abs/2010.03759) for the margins, Wu et al. 2023 for the form without them.
"""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._validation import Reduction, check_number
from fastood.ops.outlier_loss import LossKind, LossSettings

__all__ = ["EnergyLoss", "EnergyRegularizedLoss"]


class EnergyRegularizedLoss(MixedBatchLoss):
    r"""Cross-entropy plus squared hinges on the energy of in-distribution and background rows.

    With E = -logsumexp(v),

        in-distribution   -log f_y + λ · max(E - m_in, 0)²             background   max(m_out - E, 0)²

    Liu et al. 2020, eq. 7-9 (https://arxiv.org/abs/2010.03759), at temperature 1 as in the paper's training. Arguments
    and defaults are those of pytorch-ood's loss of the same name; with `reduction="mean"` the values are equal, too.

    Ambiguity: the paper's appendix lists its grid with the names of the two margins exchanged. Here, as in the
    authors' code, `margin_in` is the lower one.

    Args:
        alpha: λ >= 0, the factor of both hinges, stored as `weight`; the paper uses 0.1.
        margin_in: m_in, the energy below which an in-distribution row has no energy cost. It depends on K and on the
            network: the default is from section 4.1 of the paper; the authors' scripts use -23 for CIFAR-10 and -27
            for CIFAR-100.
        margin_out: m_out >= `margin_in`, the energy above which a background row has no cost. The default is from
            section 4.1 of the paper; the authors' scripts use -5.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If a setting is out of range, or `margin_in` is above `margin_out`.

    Example:
        >>> import torch
        >>> criterion = EnergyRegularizedLoss(alpha=0.1, margin_in=-25.0, margin_out=-7.0)
        >>> logits = torch.tensor([[24.0, -9.0], [8.0, -9.0]])  # energies -24 and -8: each misses its margin by 1
        >>> criterion(logits, torch.tensor([0, -1]))  # 0.1 · (1² + 1²)
        tensor(0.2000)
    """

    def __init__(
        self,
        alpha: float = 0.1,
        margin_in: float = -25.0,
        margin_out: float = -7.0,
        reduction: Reduction = "weighted_mean",
        *,
        check_finite: bool = False,
    ) -> None:
        super().__init__(check_number("alpha", alpha, 0), reduction, check_finite=check_finite)
        self.margin_in = check_number("margin_in", margin_in)
        self.margin_out = check_number("margin_out", margin_out)
        if self.margin_in > self.margin_out:
            raise ValueError(
                f"margin_in must be at most margin_out (in-distribution rows have the lower energy), "
                f"got {self.margin_in} and {self.margin_out}"
            )

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"{super().extra_repr()}, margin_in={self.margin_in}, margin_out={self.margin_out}"

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        return LossSettings(
            LossKind.ENERGY_MARGIN,
            self.weight,
            self.margin_in,
            self.margin_out,
            by_weight=self.reduction == "weighted_mean",
        )


class EnergyLoss(MixedBatchLoss):
    r"""Cross-entropy plus the energy of in-distribution rows minus the energy of background rows.

    With E = -logsumexp(v),

        in-distribution   -log f_y + λ · E                             background   -E

    Wu et al. 2023, eq. 0.4 and 0.5. Without margins the loss has no lower bound: keep λ small, or training short. The
    per-row loss of background rows may be negative; `BackgroundPool.ascend` refuses negative losses.

    Args:
        weight: λ >= 0, the factor of both energy terms. The paper states no value for this form; the default is the
            value of Liu et al. 2020.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> criterion = EnergyLoss(weight=0.1)
        >>> logits = torch.tensor([[24.0, -9.0], [8.0, -9.0]])  # energies -24 and -8
        >>> criterion(logits, torch.tensor([0, -1]))  # 0.1 · (-24) - 0.1 · (-8)
        tensor(-1.6000)
    """

    def __init__(
        self, weight: float = 0.1, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        return LossSettings(LossKind.ENERGY, self.weight, by_weight=self.reduction == "weighted_mean")
