"""Self-supervised reject classes: background rows sort themselves into classes of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._arguments import check_generator, shown
from fastood.ops._rows import Numbers
from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, Reduction, check_integer, check_tensor, compute_dtype
from fastood.ops.outlier_loss import LossKind, LossSettings, RowArguments


class RejectClassLoss(MixedBatchLoss):
    r"""Cross-entropy over K + k classes, background rows to a pseudo-label among the last k.

        in-distribution   -log f_y                                     background   -log f_t
        t = argmax(v) if that is a reject class, else one of the k reject classes at random

    Mohseni et al. 2020, Algorithm 1. Ambiguities and what is done here:
        - The pseudo-label is taken from the logits of this very pass ("calculated at each pass during training"), and
          no gradient goes through the choice.
        - Of several largest logits the first one counts.
        - The means are taken apart (Algorithm 1 has two expectations), whatever the sizes of the two batches.

    Args:
        num_reject: k >= 1, how many of the last logits are reject classes. The paper uses 5, and 10 for CIFAR-100.
        weight: λ of the background term; the paper uses 5 throughout.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        generator: What calls draw from that are given neither `generator` nor `uniform01`. Copies of the loss, of
            `copy.deepcopy` or pickle, go on from its state by themselves.
        check_finite: As in `MixedBatchLoss`.

    Shape:
        - logits: `[N, K + k]` or `[N, K + k, ...]` with K >= 1; targets of in-distribution rows are below K.

    Every call draws a reject class for each row, whether it is needed or not, from the `generator` of the call or of
    the loss, on that generator's device; or it takes `uniform01`, draws in [0, 1) of the targets' shape that the caller
    made, under `torch.compile(fullgraph=True)` and in a CUDA graph for example.

    Example:
        >>> import torch
        >>> from fastood.losses import RejectClassLoss
        >>> model = torch.nn.Linear(4, 3 + 2)  # three classes, two reject classes
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> criterion = RejectClassLoss(num_reject=2, weight=5, generator=generator)
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
        """Return what the kernel needs to know."""
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
        """Return the loss; shapes and draws as in the class."""
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
        """Return the loss and, `[N]` and detached, each row's cross-entropy to its label or pseudo-label."""
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
        """Return the scalar loss, the rows' losses and the gradient of the logits, without autograd."""
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
                "generator or uniform01 must be given, here or the generator when the loss is made, for the reject "
                "classes that are chosen at random, got neither"
            )
        check_generator(generator)
        draws = torch.rand(shape.numel(), dtype=dtype, device=generator.device, generator=generator)
        return rows._replace(uniform01=draws.to(logits.device))


def _checked_draws(uniform01: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    check_tensor("uniform01", uniform01, LOGIT_DTYPES)
    if uniform01.shape != shape:
        raise ValueError(f"uniform01 must have shape {tuple(shape)} like the targets, got {tuple(uniform01.shape)}")
    if uniform01.device != device:
        raise ValueError(f"uniform01 must be on {device} like logits, got {uniform01.device}")
    # Looking would wait for another device, and break the graph of a compiled function.
    if device.type == "cpu" and not (torch.compiler.is_compiling() or is_transformed()):
        outside = ~((uniform01 >= 0) & (uniform01 < 1))
        if bool(outside.any()):
            raise ValueError(f"uniform01 must be in [0, 1), got {float(uniform01[outside][0])}")
    return uniform01
