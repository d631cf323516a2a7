"""Self-supervised reject classes (Mohseni et al. 2020): background rows are pseudo-labelled with extra classes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._arguments import check_generator, shown
from fastood.ops._rows import Numbers
from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, Reduction, check_integer, check_tensor, compute_dtype
from fastood.ops.outlier_loss import LossKind, LossSettings, RowArguments

__all__ = ["RejectClassLoss"]


class RejectClassLoss(MixedBatchLoss):
    r"""Cross-entropy over K + k classes, with pseudo-labels among the last k for background rows.

        in-distribution   -log f_y                                     background   -log f_t
        t = argmax(v) if that is a reject class, else one of the k reject classes, drawn uniformly

    Mohseni et al. 2020, Algorithm 1 (https://ojs.aaai.org/index.php/AAAI/article/view/5966). Ambiguities and how they
    are resolved:
        - The pseudo-label is computed from the logits of the same forward pass ("calculated at each pass during
          training"); the choice is not differentiated.
        - If several logits are the largest, the first one counts.
        - In-distribution and background rows have separate means, because Algorithm 1 has two expectations, independent
          of the sizes of the two batches.

    Args:
        num_reject: k >= 1, the number of reject classes, the last of the logits. The paper uses 5, and 10 for
            CIFAR-100.
        weight: λ >= 0, the factor of the background term; the paper uses 5 throughout.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        generator: Source of the draws in calls that pass neither `generator` nor `uniform01`. A copy of the loss, by
            `copy.deepcopy` or pickle, has its own generator, which continues from the copied state.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        - logits: `[N, K + k]` or `[N, K + k, ...]` with K >= 1.
        - targets: `[N]` or `[N, ...]`, below K for in-distribution rows, below zero for background.
        - uniform01: draws in [0, 1) in the shape of the targets, floating-point.
        - other shapes: see `MixedBatchLoss`.

    Every call draws one uniform number per row, also for rows that need none, from the `generator` of the call or, by
    default, of the loss, on the device of the generator. Pass `uniform01` instead to supply the draws yourself, for
    example under `torch.compile(fullgraph=True)` or in a CUDA graph.

    Raises:
        TypeError: If an argument has another type or dtype.
        ValueError: If there is no source of draws or more than one, for the reasons listed in `MixedBatchLoss`, or if a
            draw is outside [0, 1) (checked on the CPU only).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> criterion = RejectClassLoss(num_reject=2, weight=5, generator=generator)
        >>> model = torch.nn.Linear(4, 3 + 2)  # three classes, two reject classes
        >>> images, targets = torch.randn(4, 4, generator=generator), torch.tensor([0, 2, -1, -1])
        >>> criterion(model(images), targets).backward()
        >>> criterion(torch.tensor([[0.0, 0, 0, 9, 0]]), torch.tensor([-1]))  # in reject class 0 already
        tensor(0.0025)
    """

    def __init__(
        self,
        num_reject: int,
        weight: float = 5.0,
        reduction: Reduction = "weighted_mean",
        *,
        generator: torch.Generator | None = None,
        check_finite: bool = False,
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)
        self.num_reject = check_integer("num_reject", num_reject, 1)
        if generator is not None:
            check_generator(generator)
        self.generator = generator

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"num_reject={self.num_reject}, {super().extra_repr()}"

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        return LossSettings(
            LossKind.REJECT_CLASS,
            self.weight,
            num_reject=self.num_reject,
            by_weight=self.reduction == "weighted_mean",
        )

    def forward(
        self,
        logits: Tensor,
        targets: Numbers,
        sample_weight: Numbers | None = None,
        *,
        generator: torch.Generator | None = None,
        uniform01: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see the class for shapes and draws."""
        return self.with_per_sample(logits, targets, sample_weight, generator=generator, uniform01=uniform01)[0]

    def with_per_sample(
        self,
        logits: Tensor,
        targets: Numbers,
        sample_weight: Numbers | None = None,
        *,
        generator: torch.Generator | None = None,
        uniform01: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the detached cross-entropy of each row to its label or pseudo-label."""
        flat, rows = self._rows(logits, targets, sample_weight)
        return self._with_per_sample(logits, flat, self._with_draws(logits, rows, generator, uniform01))

    def value_and_grad(
        self,
        logits: Tensor,
        targets: Numbers,
        sample_weight: Numbers | None = None,
        *,
        generator: torch.Generator | None = None,
        uniform01: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss, the losses of the rows and the gradient of the logits, without autograd."""
        flat, rows = self._rows(logits, targets, sample_weight)
        return self._value_and_grad(logits, flat, self._with_draws(logits, rows, generator, uniform01))

    def _rows(self, logits: Tensor, targets: Numbers, sample_weight: Numbers | None) -> tuple[Tensor, RowArguments]:
        flat, rows = super()._rows(logits, targets, sample_weight)
        if flat.shape[1] <= self.num_reject:
            count = shown(self.num_reject)
            raise ValueError(f"logits must be [N, K + {count}] with K >= 1, got shape {tuple(logits.shape)}")
        return flat, rows

    def _with_draws(
        self, logits: Tensor, rows: RowArguments, generator: torch.Generator | None, uniform01: Tensor | None
    ) -> RowArguments:
        if generator is not None and uniform01 is not None:
            raise ValueError("one of generator and uniform01 must be given, got both")
        dtype = compute_dtype(logits.dtype)
        shape = logits.shape[:1] + logits.shape[2:]
        if uniform01 is not None:
            return rows._replace(
                uniform01=_checked_draws(uniform01, shape, logits.device).to(dtype).reshape(-1).contiguous()
            )
        generator = self.generator if generator is None else generator
        if generator is None:
            raise ValueError(
                "generator or uniform01 must be given, or a generator to the constructor, to draw reject classes; "
                "got neither"
            )
        check_generator(generator)
        # Drawn on the generator's device: a CPU generator gives the same draws for logits on any device.
        draws = torch.rand(shape.numel(), dtype=dtype, device=generator.device, generator=generator)
        return rows._replace(uniform01=draws.to(logits.device))


def _checked_draws(uniform01: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    check_tensor("uniform01", uniform01, LOGIT_DTYPES)
    if uniform01.shape != shape:
        raise ValueError(f"uniform01 must have shape {tuple(shape)} like the targets, got {tuple(uniform01.shape)}")
    if uniform01.device != device:
        raise ValueError(f"uniform01 must be on {device} like logits, got {uniform01.device}")
    # Reading values would synchronise with a GPU, and break the graph of a compiled function.
    if device.type == "cpu" and not (torch.compiler.is_compiling() or is_transformed()):
        outside = ~((uniform01 >= 0) & (uniform01 < 1))
        if bool(outside.any()):
            raise ValueError(f"uniform01 must be in [0, 1), got {float(uniform01[outside][0])}")
    return uniform01
