"""Self-supervised reject classes: background rows sort themselves into classes of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.losses.mixed_batch import MixedBatchLoss, value_and_grad, with_per_sample
from fastood.ops._validation import check_logits, check_weight, compute_dtype
from fastood.ops.outlier_loss import LossKind, LossSettings, RowArguments
from fastood.ops.weighted_uniformity import Reduction


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
        check_finite: As in `MixedBatchLoss`.

    Shape:
        - logits: `[N, K + k]` with K >= 1; targets of in-distribution rows are below K.

    Every call draws a reject class for each row, whether it is needed or not, from the `generator` it is given; or it
    takes `uniform01`, `[N]` draws in [0, 1) that the caller made, under `torch.compile(fullgraph=True)` and in a CUDA
    graph for example.

    Example:
        >>> import torch
        >>> from fastood.losses import RejectClassLoss
        >>> model = torch.nn.Linear(4, 3 + 2)  # three classes, two reject classes
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> criterion = RejectClassLoss(num_reject=2, weight=5)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     x = torch.randn(8, 4, generator=generator)
        ...     y = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # the last four are background
        ...     loss = criterion(model(x), y, generator=generator)
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
        check_finite: bool = False,
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)
        if isinstance(num_reject, bool) or not isinstance(num_reject, int) or num_reject < 1:
            raise ValueError(f"num_reject must be an int >= 1, got {num_reject!r}")
        self.num_reject = num_reject

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
        targets: Tensor,
        sample_weight: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        uniform01: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss; shapes as in the class. One of `generator` and `uniform01` must be given."""
        return self.with_per_sample(logits, targets, sample_weight, generator=generator, uniform01=uniform01)[0]

    def with_per_sample(
        self,
        logits: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        uniform01: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, each row's cross-entropy to its label or pseudo-label."""
        rows = self._rows(logits, targets, sample_weight)
        return with_per_sample(logits, self._with_draws(logits, rows, generator, uniform01), self.settings())

    def value_and_grad(
        self,
        logits: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        uniform01: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss, the rows' losses and the gradient of the logits, without autograd."""
        rows = self._rows(logits, targets, sample_weight)
        return value_and_grad(logits, self._with_draws(logits, rows, generator, uniform01), self.settings())

    def _rows(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None) -> RowArguments:
        check_logits(logits)
        if logits.shape[1] <= self.num_reject:
            raise ValueError(f"logits must be [N, K + {self.num_reject}] with K >= 1, got shape {tuple(logits.shape)}")
        return super()._rows(logits, targets, sample_weight)

    def _with_draws(
        self, logits: Tensor, rows: RowArguments, generator: torch.Generator | None, uniform01: Tensor | None
    ) -> RowArguments:
        if (generator is None) == (uniform01 is None):
            raise ValueError(
                "one of generator and uniform01 must be given, for the reject classes that are chosen at random, got "
                + ("neither" if generator is None else "both")
            )
        dtype = compute_dtype(logits.dtype)
        if uniform01 is None:
            uniform01 = torch.rand(logits.shape[0], dtype=dtype, device=logits.device, generator=generator)
        else:
            check_weight(uniform01, logits, "uniform01")
            uniform01 = uniform01.to(dtype).contiguous()
        return rows._replace(uniform01=uniform01)
