"""Reference of the nearest key of the same class in plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def class_l1_nearest(query: Tensor, query_labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least Σ_j |q_j - k_j| over the keys of the class and its index: Pei 2022, eq. 12.

    See https://arxiv.org/abs/2112.11648.

    Args:
        query: `[M, d]`, any floating-point dtype.
        query_labels: Integers `[M]`; labels below 0 belong to no class.
        keys: `[N, d]`, any floating-point dtype.
        key_labels: Integers `[N]`.

    Returns:
        distance `[M]` float64, differentiable in the query alone, and index `[M]`, the first of the nearest keys.
        Infinity and -1 where no key of the class is at a finite distance; NaN and -1 where the query has a NaN
        and its class has a key.

    Example:
        >>> query, keys = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, -3.0]])
        >>> class_l1_nearest(query, torch.tensor([1]), keys, torch.tensor([0, 1]))
        (tensor([6.], dtype=torch.float64), tensor([1]))
    """
    distance, index = [], []
    for row, label in zip(query.double(), query_labels.tolist(), strict=True):
        positions = (key_labels == label).nonzero().flatten() if label >= 0 else key_labels.new_empty(0)
        pairs = (row - keys.detach()[positions].double()).abs().sum(1)
        finite = pairs.detach().nan_to_num(nan=torch.inf)
        if len(positions) > 0 and bool(finite.min() < torch.inf):
            nearest = int((finite == finite.min()).nonzero()[0])
            distance.append(pairs[nearest])
            index.append(int(positions[nearest]))
        else:
            unknown = len(positions) > 0 and bool(row.isnan().any())
            distance.append(row.new_full((), torch.nan if unknown else torch.inf))
            index.append(-1)
    if not distance:
        return query.double().sum(1), key_labels.new_empty(0)
    return torch.stack(distance), torch.tensor(index, device=query.device)
