"""What all losses of mixed batches share: arguments, checks, and the three ways to call them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fastood.ops._arguments import as_flag
from fastood.ops._rows import Numbers, as_sample_weight, as_targets, check_dense_logits
from fastood.ops._validation import (
    Reduction,
    check_finite_values,
    check_number,
    check_reduction,
)
from fastood.ops.outlier_loss import LossSettings, RowArguments
from fastood.ops.outlier_terms import reduced_loss, reduced_value_and_grad


def _refused(error: RuntimeError | IndexError, num_known: int) -> Exception:
    """Return the op's check of the target values, without where in the C++ it stands."""
    if isinstance(error, IndexError):  # of the reference
        return ValueError(f"targets must be below K = {num_known} (or negative: background): {error}")
    _, wanted, rest = str(error).partition("targets must be below")
    return ValueError(wanted + rest.partition("\n")[0]) if wanted else error


class MixedBatchLoss(nn.Module, ABC):
    r"""Mean over in-distribution rows + `weight` · mean over background rows, in one kernel each way.

    The base of `OutlierExposureLoss`, `EntropyMaximizationLoss`, `EnergyMarginLoss`, `EnergyLoss`, `RejectClassLoss`,
    `ICELoss` and `SigmoidLikelihoodLoss`, which differ in what a row contributes. Rows with a target below zero are
    background. The two means are taken apart, each over its own rows: one mean over both would let the mix of the batch
    decide the trade-off.

    Args:
        weight: λ, the factor of the background term; finite and >= 0.
        reduction: What a weighted sum over rows is divided by: `"weighted_mean"`, the sum of their weights (Li &
            Vasconcelos 2020, eq. 14), or `"mean"`, their number, which keeps importance weights such as
            `BackgroundPool.sample` returns unbiased (supplementary eq. 10). Without `sample_weight` they are the same.
            `"sum"` divides by nothing, and `"none"` (or None) does not add up either: each row is its loss times its
            weight, and times λ for background. `"sum"` over the number of all rows is the joint mean of other
            libraries, pytorch-ood's `"mean"` among them.
        check_finite: Raise `ValueError` on NaN or infinite logits or weights, naming the first row, and on negative
            weights. Waits for the device.

    Shape:
        - logits: `[N, K]`, or dense `[N, K, ...]`, of which every place is a row (a pixel of `[N, K, H, W]`); float64,
          float32, bfloat16 or float16, on the CPU or a CUDA device. Rows may be strided (a slice of a bigger batch).
        - targets: `[N]` or `[N, ...]`, a class in `0 … K - 1`, or below zero for background: -1 as well as PyTorch's
          -100, which does not mean "ignore" here. int64 is what costs nothing; smaller integers, arrays and lists are
          converted, and float32 or float64 numbers too, if they are whole, which waits for the device.
        - sample_weight: Like targets, numbers >= 0, or None for all ones. Rows of weight zero add nothing, whatever
          they hold; NaN or an infinite weight makes the loss and the gradient of its row NaN. float64 weights, arrays
          and lists may be of any scale where only their ratios matter.
        - output: `[]`, or like targets for `"none"`; float64 for float64 logits, float32 for all others. A batch
          without in-distribution (or without background) rows has a zero in the place of that term.

    Differentiable with respect to `logits` and `sample_weight`; beyond the first order, under torch.func (grad, vmap,
    jvp, …) and in forward mode by plain PyTorch in float64, slower. A logit that is NaN or +inf makes its row's loss
    NaN; -inf is a class that is masked out, and what it does is said of each loss where it is not plain.

    Raises:
        TypeError: An argument has another type or dtype than those above.
        ValueError: An argument has the wrong shape or device, or a setting is out of range. On the CPU also when a
            target is not below K; a CUDA device cannot say so without waiting, and makes the loss NaN.
    """

    def __init__(self, weight: float, reduction: Reduction = "weighted_mean", *, check_finite: bool = False) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, 0)
        self.reduction: Reduction = check_reduction(reduction)
        self.check_finite = as_flag("check_finite", check_finite)

    @abstractmethod
    def settings(self) -> LossSettings:
        """Return what the kernel needs to know; read at every call, so that `loss.weight = …` takes effect."""

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"weight={self.weight}, reduction={self.reduction!r}"

    def forward(self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None = None) -> Tensor:
        """Return the loss; shapes as in the class."""
        return self.with_per_sample(logits, targets, sample_weight)[0]

    def with_per_sample(
        self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and, `[N]` and detached, what each row's loss is before any weight.

        Cross-entropy (and what the loss adds to it) on in-distribution rows, the background term without λ on
        background rows: what `BackgroundPool.ascend` takes. No second pass.
        """
        return self._with_per_sample(logits, *self._rows(logits, targets, sample_weight))

    def value_and_grad(
        self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss, the rows' losses as above, and the gradient `[N, K]` in the dtype of `logits`.

        Without autograd: for loops that call `logits.backward(gradient)` themselves. At small batches the engine costs
        more than the loss, and on the CPU the logits are read once.

        Raises:
            ValueError: The reduction is `"none"`, or as in the class.
        """
        return self._value_and_grad(logits, *self._rows(logits, targets, sample_weight))

    def _with_per_sample(self, logits: Tensor, flat: Tensor, rows: RowArguments) -> tuple[Tensor, Tensor]:
        """Call the op on the flat rows of `logits`; what its kernel alone could see is a `ValueError` as well."""
        settings = self.settings()
        try:
            loss, per_sample = reduced_loss(flat, rows, settings, self.reduction)
        except (RuntimeError, IndexError) as error:
            raise _refused(error, flat.shape[1] - settings.num_reject) from error
        if flat is logits:
            return loss, per_sample
        return _like_rows(loss, logits) if self.reduction == "none" else loss, _like_rows(per_sample, logits)

    def _value_and_grad(self, logits: Tensor, flat: Tensor, rows: RowArguments) -> tuple[Tensor, Tensor, Tensor]:
        """Call the op without autograd; errors as of `_with_per_sample`."""
        settings = self.settings()
        try:
            loss, per_sample, gradient = reduced_value_and_grad(flat, rows, settings, self.reduction)
        except RuntimeError as error:
            raise _refused(error, flat.shape[1] - settings.num_reject) from error
        if flat is logits:
            return loss, per_sample, gradient
        return loss, _like_rows(per_sample, logits), _like_logits(gradient, logits)

    def _rows(self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None) -> tuple[Tensor, RowArguments]:
        """Return the logits as `[N, K]` and what belongs to each row."""
        check_dense_logits(logits)
        targets = as_targets(targets, logits)
        weight = None
        if sample_weight is not None:
            by_weight = self.reduction == "weighted_mean"
            weight = as_sample_weight(sample_weight, logits, targets, by_weight, check_finite=self.check_finite)
        if self.check_finite:
            check_finite_values(logits, "logits")
        if logits.dim() == 2:
            return logits, RowArguments(targets, weight)
        flat_weight = None if weight is None else weight.reshape(-1)
        return logits.movedim(1, -1).flatten(0, -2), RowArguments(targets.reshape(-1), flat_weight)


def _like_rows(values: Tensor, logits: Tensor) -> Tensor:
    """Return the values `[N · …]` of the rows of dense logits `[N, K, …]` as `[N, …]`."""
    return values.reshape(logits.shape[:1] + logits.shape[2:])


def _like_logits(rows: Tensor, logits: Tensor) -> Tensor:
    """Return rows `[N · …, K]` in the shape of the dense logits `[N, K, …]` that they were flattened from."""
    return rows.reshape(logits.shape[:1] + logits.shape[2:] + logits.shape[1:2]).movedim(-1, 1)
