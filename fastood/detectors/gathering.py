"""Training rows of all processes, for detectors that are fitted to all of them at once."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from fastood.common import gathering

__all__ = ["gather_rows"]


def gather_rows(group: dist.ProcessGroup | None = None, /, **rows: Tensor | None) -> dict[str, Tensor]:
    """Return the training rows of all processes, in the order of their ranks, on every process.

    A detector that is fitted to them has the state of one process with all rows, bit for bit if the processes hold
    consecutive parts of the training set: `detector.fit_features(**gather_rows(features=features, labels=labels))`. It
    serves detectors that keep all rows (`KNN`) or read them twice (`ReAct`, `ViM`, shrinkage "ledoit_wolf"). Every
    process then holds all rows. `MahalanobisDetector.partial_fit` and `all_reduce` exchange sums of d² numbers instead.

    Args:
        group: The process group; None for all processes. Without an initialised group the tensors are returned.
        **rows: Features `[N, d]`, logits `[N, K]` and labels `[N]` by the names that `fit_features` or
            `DetectorSuite.fit_outputs` takes. N may differ between processes; None for a process without rows.

    Returns:
        Tensors by name, on the device of this process's tensor, or on the CPU without one.

    Raises:
        ValueError: If tensors of a process have unequal numbers of rows, the processes differ in width, number of
            classes or dtype, or this process is not in `group`. Except for the last, every process raises.

    Example:
        >>> import torch
        >>> from fastood.detectors import KNN
        >>> features, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> detector = KNN(k=2, normalize=False).fit_features(**gather_rows(features=features, labels=labels))
        >>> detector.predict_features(torch.tensor([[3.0]]))
        tensor([2.], dtype=torch.float64)
    """
    if not dist.is_initialized():
        return {name: tensor for name, tensor in rows.items() if tensor is not None}
    return gathering.gather_rows(rows, group, paired=True)
