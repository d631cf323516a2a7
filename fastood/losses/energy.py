"""Energy losses: in-distribution rows towards low energy, background rows towards high. E(v) = -logsumexp(v)."""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._validation import Reduction, check_number
from fastood.ops.outlier_loss import LossKind, LossSettings


class EnergyMarginLoss(MixedBatchLoss):
    r"""Cross-entropy, and squared hinges on the energy of in-distribution and of background rows.

    Warning: pytorch-ood 0.4 gives this name to another loss, that of SCONE (Bai et al. 2023); its
    `EnergyRegularizedLoss` is this one, here as well under the arguments it has there.

    With E = -logsumexp(v),

        in-distribution   -log f_y + λ · max(E - m_in, 0)²             background   max(m_out - E, 0)²

    Liu et al. 2020, eq. 7-9. `margin_id` is the more negative of the two: the paper's appendix lists its grid with the
    two names exchanged, its code does not, and this follows the code. Temperature 1, as in its training.

    Args:
        weight: λ of both hinges; the paper uses 0.1.
        margin_id: m_in: the energy below which an in-distribution row costs nothing more. The authors' scripts use
            -23 for CIFAR-10 and -27 for CIFAR-100; it depends on K and on the network.
        margin_background: m_out, at least `margin_id`: the energy above which a background row costs nothing; theirs
            is -5.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import EnergyMarginLoss
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> criterion = EnergyMarginLoss(weight=0.1, margin_id=-10, margin_background=-2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     x = torch.randn(8, 4, generator=generator)
        ...     y = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # the last four are background
        ...     loss = criterion(model(x), y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        weight: float = 0.1,
        margin_id: float = -23.0,
        margin_background: float = -5.0,
        reduction: Reduction = "weighted_mean",
        *,
        check_finite: bool = False,
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)
        self.margin_id = check_number("margin_id", margin_id)
        self.margin_background = check_number("margin_background", margin_background)
        if self.margin_id > self.margin_background:
            raise ValueError(
                f"margin_id must be at most margin_background (in-distribution rows have the lower energy), "
                f"got {self.margin_id} and {self.margin_background}"
            )

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"{super().extra_repr()}, margin_id={self.margin_id}, margin_background={self.margin_background}"

    def settings(self) -> LossSettings:
        """Return what the kernel needs to know."""
        return LossSettings(
            LossKind.ENERGY_MARGIN,
            self.weight,
            self.margin_id,
            self.margin_background,
            by_weight=self.reduction == "weighted_mean",
        )


class EnergyRegularizedLoss(EnergyMarginLoss):
    r"""`EnergyMarginLoss` under pytorch-ood's name, with its arguments and defaults.

    With `reduction="mean"` its values are pytorch-ood's, which takes the two means apart as well.

    Args:
        alpha: λ, `weight` of `EnergyMarginLoss`.
        margin_in: m_in, its `margin_id`.
        margin_out: m_out, its `margin_background`. The two defaults are those of Liu et al. 2020, section 4.1.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import EnergyRegularizedLoss
        >>> criterion = EnergyRegularizedLoss(alpha=0.1, margin_in=-25.0, margin_out=-7.0)
        >>> criterion(torch.tensor([[24.0, -9.0], [8.0, -9.0]]), torch.tensor([0, -1]))  # λ · (1² + 1²)
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
        alpha = check_number("alpha", alpha, 0)
        margin_in, margin_out = check_number("margin_in", margin_in), check_number("margin_out", margin_out)
        if margin_in > margin_out:
            raise ValueError(
                f"margin_in must be at most margin_out (in-distribution rows have the lower energy), "
                f"got {margin_in} and {margin_out}"
            )
        super().__init__(alpha, margin_in, margin_out, reduction, check_finite=check_finite)


class EnergyLoss(MixedBatchLoss):
    r"""Cross-entropy, and the plain energy of in-distribution rows minus that of background rows.

    With E = -logsumexp(v),

        in-distribution   -log f_y + λ · E                             background   -E

    Wu et al. 2023, eq. 0.4 and 0.5. Without margins it has no lower bound: λ has to stay small, or training short. What
    a background row reports may be negative, which a background pool's weights cannot ascend on.

    Args:
        weight: λ, of both terms. The paper states none for this form; 0.1 is that of Liu et al. 2020.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import EnergyLoss
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> criterion = EnergyLoss(weight=0.1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     x = torch.randn(8, 4, generator=generator)
        ...     y = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # the last four are background
        ...     loss = criterion(model(x), y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self, weight: float = 0.1, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return what the kernel needs to know."""
        return LossSettings(LossKind.ENERGY, self.weight, by_weight=self.reduction == "weighted_mean")
