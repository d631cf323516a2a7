"""Base of the losses for mixed batches: arguments, checks, and the three ways to call a loss."""

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

__all__ = ["MixedBatchLoss"]


class MixedBatchLoss(nn.Module, ABC):
    r"""Mean over in-distribution rows + `weight` · mean over background rows, with fused forward and backward kernels.

    Base class of the losses of mixed batches, which differ in the loss of a row. Rows with a target below zero are
    background. Each kind of row has its own mean, so that the trade-off does not depend on the mix of the batch, as it
    would with one mean over all rows.

    Args:
        weight: λ, the factor of the background term; finite and >= 0.
        reduction: How the row losses, times their sample weights, are combined:

            - `"weighted_mean"` (default): divide each kind's sum by the sum of its weights (Li & Vasconcelos 2020,
              eq. 14). Only the ratios of the weights matter.
            - `"mean"`: divide each kind's sum by its number of rows. Importance weights such as
              `BackgroundPool.sample` returns stay unbiased (supplementary eq. 10).
            - `"sum"`: the sum over all rows, background rows times λ. Divided by N it is the joint mean of
              pytorch-ood's `"mean"`.
            - `"none"` or None: the terms of `"sum"`, one for each row; not supported by `value_and_grad`.

            Without `sample_weight` the first two are equal.
        check_finite: Whether to raise ValueError if a logit or weight is NaN or infinite, or a weight is negative; the
            error names the first such row. Synchronises with the device.

    Shape:
        - logits: `[N, K]`, or dense `[N, K, ...]` with one row for each position (a pixel of `[N, K, H, W]`); float64,
          float32, bfloat16 or float16, on the CPU or a CUDA device. Rows may be strided (a slice of a larger batch).
        - targets: `[N]` or `[N, ...]`, a class in `0 … K - 1`, or below zero for background. PyTorch's -100 is
          background, too: it does not mean "ignore" here. int64 needs no conversion; smaller integers, arrays and
          lists are converted, and so are float32 or float64 whole numbers, which synchronises with the device.
        - sample_weight: numbers >= 0 in the shape of the targets, or None for all ones. Rows of weight zero do not
          contribute, even if their logits are NaN; a NaN or infinite weight makes the loss and the gradient of its row
          NaN. For "weighted_mean" float64 weights, arrays and lists may have any scale, because only their ratios
          matter.
        - output: `[]`, or the shape of the targets for `"none"`; float64 for float64 logits, float32 for all others.
          The term of in-distribution or background rows is zero if the batch has no such rows.

    Differentiable with respect to `logits` and `sample_weight`. Higher orders, torch.func (grad, vmap, jvp, …) and
    forward mode run in plain PyTorch in float64, which is slower. A logit that is NaN or +inf makes its row's loss NaN;
    -inf masks a class out; a loss that treats -inf differently documents it.

    Raises:
        TypeError: If an argument has a type or dtype that is not listed above.
        ValueError: If an argument has the wrong shape or device, a setting is out of range, or, on the CPU, a target is
            not below K. On a CUDA device such a target makes the loss NaN instead, because a check would synchronise
            with the device.
    """

    def __init__(self, weight: float, reduction: Reduction = "weighted_mean", *, check_finite: bool = False) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, 0)
        self.reduction: Reduction = check_reduction(reduction)
        self.check_finite = as_flag("check_finite", check_finite)

    @abstractmethod
    def settings(self) -> LossSettings:
        """Return the settings of the kernel. Every call reads them, so that `loss.weight = …` takes effect."""

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"weight={self.weight}, reduction={self.reduction!r}"

    def forward(self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None = None) -> Tensor:
        """Return the loss; see the class for shapes."""
        return self.with_per_sample(logits, targets, sample_weight)[0]

    def with_per_sample(
        self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the detached losses of the rows before any weight, from one pass.

        Returns:
            loss: Scalar loss `[]`, or the terms of the rows for `"none"`; see `forward`.
            per_sample: The shape of the targets, in the dtype of the loss. For in-distribution rows the cross-entropy
                and the in-distribution term of the loss; for background rows the background term without λ, which is
                the input of `BackgroundPool.ascend`.
        """
        return self._with_per_sample(logits, *self._rows(logits, targets, sample_weight))

    def value_and_grad(
        self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss, the losses of the rows and the gradient of the logits, without autograd.

        For loops that call `logits.backward(gradient)` themselves: at small batches the autograd engine costs more than
        the loss, and on the CPU the logits are read once.

        Returns:
            loss: `[]`.
            per_sample: Losses of the rows before any weight; see `with_per_sample`.
            gradient: In the shape and dtype of `logits`.

        Raises:
            ValueError: If the reduction is `"none"`, or for the reasons listed in the class.
        """
        return self._value_and_grad(logits, *self._rows(logits, targets, sample_weight))

    def _with_per_sample(self, logits: Tensor, flat: Tensor, rows: RowArguments) -> tuple[Tensor, Tensor]:
        """Call the op on the flat rows of `logits`; convert errors of the kernel's checks to ValueError."""
        settings = self.settings()
        try:
            loss, per_sample = reduced_loss(flat, rows, settings, self.reduction)
        except (RuntimeError, IndexError) as error:
            raise _as_value_error(error, flat.shape[1] - settings.num_reject) from error
        if flat is logits:
            return loss, per_sample
        return _like_rows(loss, logits) if self.reduction == "none" else loss, _like_rows(per_sample, logits)

    def _value_and_grad(self, logits: Tensor, flat: Tensor, rows: RowArguments) -> tuple[Tensor, Tensor, Tensor]:
        """Call the op without autograd; convert errors of the kernel's checks to ValueError."""
        settings = self.settings()
        try:
            loss, per_sample, gradient = reduced_value_and_grad(flat, rows, settings, self.reduction)
        except RuntimeError as error:
            raise _as_value_error(error, flat.shape[1] - settings.num_reject) from error
        if flat is logits:
            return loss, per_sample, gradient
        return loss, _like_rows(per_sample, logits), _like_logits(gradient, logits)

    def _rows(self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None) -> tuple[Tensor, RowArguments]:
        """Return the logits as `[N, K]` and the checked targets and weights of the rows, `[N]`."""
        check_dense_logits(logits)
        targets = as_targets(targets, logits)
        weight = None
        if sample_weight is not None:
            by_weight = self.reduction == "weighted_mean"
            weight = as_sample_weight(sample_weight, logits, targets, by_weight, check_finite=self.check_finite)
        if self.check_finite:
            check_finite_values(logits, "logits")
        if logits.dim() == 2:
            # The same tensor, not a view of it: the callers compare identities to skip the reshapes of dense logits.
            return logits, RowArguments(targets, weight)
        flat_weight = None if weight is None else weight.reshape(-1)
        # A view if the logits are channels-last; other layouts are copied.
        return logits.movedim(1, -1).flatten(0, -2), RowArguments(targets.reshape(-1), flat_weight)


def _as_value_error(error: RuntimeError | IndexError, num_classes: int) -> Exception:
    """Return the kernel's error about targets as a ValueError without C++ location; return other errors unchanged."""
    # The kernel checks targets and raises RuntimeError; the reference in plain PyTorch indexes with them.
    if isinstance(error, IndexError):
        return ValueError(f"targets must be below K = {num_classes} (or negative: background): {error}")
    _, head, rest = str(error).partition("targets must be below")
    return ValueError(head + rest.partition("\n")[0]) if head else error


def _like_rows(values: Tensor, logits: Tensor) -> Tensor:
    """Return the values `[N · …]` of the rows of dense logits `[N, K, …]` as `[N, …]`."""
    return values.reshape(logits.shape[:1] + logits.shape[2:])


def _like_logits(rows: Tensor, logits: Tensor) -> Tensor:
    """Return rows `[N · …, K]` in the shape of the dense logits `[N, K, …]` that they were flattened from."""
    return rows.reshape(logits.shape[:1] + logits.shape[2:] + logits.shape[1:2]).movedim(-1, 1)
