"""The L1 distance to the nearest key of the same class, with the gradient to the query.

    distance_m = min_n ‖q_m - k_n‖₁  over keys n with the label of query m           Pei et al. 2022, eq. 12

This regulariser keeps generated features close to real ones. `torch.cdist(p=1)` with a mask and a minimum would compute
distances to all classes, store an `[M, N]` matrix, and differentiate all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastood.ops._validation import LOGIT_DTYPES, check_tensor, compute_dtype, require_same_device

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint32, torch.uint16, torch.uint8)

_forward = torch.ops.fastood.class_l1_nearest.default


def _fake(
    query: Tensor, query_classes: Tensor, query_order: Tensor, keys: Tensor, key_classes: Tensor, key_order: Tensor
) -> tuple[Tensor, Tensor]:
    require_same_device(query, query_classes, query_order, keys, key_classes, key_order)
    rows = query.shape[0]
    return query.new_empty((rows,)), query_order.new_empty((rows,))


torch.library.register_fake("fastood::class_l1_nearest", _fake)


class _ClassL1Nearest(torch.autograd.Function):
    """Autograd of the op, outside the op: registering it there costs three times the overhead at small batches."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, query_labels: Tensor, keys: Tensor, key_classes: Tensor, key_order: Tensor
    ) -> tuple[Tensor, Tensor]:
        query_classes, query_order = by_class(query_labels)
        distance, index = _forward(query, query_classes, query_order, keys, key_classes, key_order)
        ctx.save_for_backward(query, keys, index)
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return distance, index

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _grad_index: None) -> tuple[Tensor | None, None, None, None, None]:
        if grad is None:
            return None, None, None, None, None
        query, keys, index = ctx.saved_tensors
        has_key = index >= 0
        if keys.shape[0] == 0:
            return torch.zeros_like(query), None, None, None, None
        # The slope at a kink is 0. torch.where masks rows without a key, whose infinite distance must not become NaN.
        direction = (query - keys[index.clamp_min(0)].to(query.dtype)).sign()
        of_query = torch.where(has_key[:, None], grad[:, None] * direction, 0)
        return of_query, None, None, None, None


def by_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sorted labels and their order, stable so that the first of equally near keys comes first."""
    classes, order = torch.sort(labels.long(), stable=True)
    return classes, order


class ClassL1Index:
    """Index of constant keys, sorted by class once, for repeated searches of the nearest key.

    The keys are not copied and may be memory-mapped. A call reads the keys of the classes of its queries, once per 32
    queries of a class.

    Args:
        keys: k `[N, d]`, N >= 0, d >= 1, float64, float32, bfloat16 or float16. Rows may be strided.
        key_labels: Integers `[N]` on the device of `keys`. Keys with a label below 0 belong to no class.

    Raises:
        TypeError: If an argument is not a tensor of these dtypes.
        ValueError: If an argument has the wrong shape or device, or if `keys` requires a gradient, which it would not
            get.

    Example:
        >>> import torch
        >>> index = ClassL1Index(torch.tensor([[1.0, 1.0], [3.0, -3.0]]), torch.tensor([0, 1]))
        >>> index.nearest(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
        (tensor([2., 6., inf]), tensor([ 0,  1, -1]))
    """

    def __init__(self, keys: Tensor, key_labels: Tensor) -> None:
        _check_rows("keys", keys, "N")
        _check_labels("key_labels", key_labels, "keys", keys)
        if keys.requires_grad and torch.is_grad_enabled():
            raise ValueError("keys must not require a gradient, which they would not get: pass keys.detach()")
        self.keys = keys.detach()
        self._classes, self._order = by_class(key_labels)

    def nearest(self, query: Tensor, query_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of `class_l1_nearest` for these keys: distance and index, both `[M]`.

        Args:
            query: q `[M, d]` on the device of the keys.
            query_labels: Integers `[M]`.
        """
        _check_rows("query", query, "M")
        _check_labels("query_labels", query_labels, "query", query)
        if query.shape[1] != self.keys.shape[1]:
            raise ValueError(f"query must have {self.keys.shape[1]} features like keys, got shape {tuple(query.shape)}")
        if query.device != self.keys.device:
            raise ValueError(f"query must be on {self.keys.device} like keys, got {query.device}")
        dtype = compute_dtype(self.keys.dtype)
        if query.dtype == torch.float64 and dtype != torch.float64:
            raise TypeError(f"query must be at most float32 with keys of {self.keys.dtype}, got {query.dtype}")
        distance, index = _ClassL1Nearest.apply(query.to(dtype), query_labels, self.keys, self._classes, self._order)
        return distance, index


def class_l1_nearest(query: Tensor, query_labels: Tensor, keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute the L1 distance of every query to the nearest key of its class, and the index of that key.

    Differentiable in the query, to any order: the gradient is that of the distance to the nearest key, sign(q - k), 0
    where they are equal. Keys are constants. The work is M N/K differences for K classes of equal size; the memory
    beyond the arguments is O(M + N) and, for the gradient, O(M d).

    On the CPU a distance is summed in blocks of 512 features in the dtype of the computation, then over blocks in
    float64; on CUDA by 32 lanes. It depends neither on the rest of the batch nor on the number of threads.

    Args:
        query: q `[M, d]`, M >= 0, d >= 1, float64, float32, bfloat16 or float16, computed in float64 for float64 keys
            and in float32 for all others, also under autocast.
        query_labels: Integers `[M]` on the device of `query`. Labels below 0 belong to no class.
        keys: k `[N, d]`, N >= 0, float64, float32, bfloat16 or float16, on the same device. Rows may be strided.
        key_labels: Integers `[N]`. Sorted at each call; `ClassL1Index` sorts once.

    Returns:
        distance `[M]`, float64 for float64 keys, else float32, and index int64 `[M]` of the nearest key, the first of
        equally near ones. A class without a key, and a label below 0: distance infinity, index -1, gradient 0. A key at
        an infinite or NaN distance is never the nearest; a query with a NaN has, where its class has keys, distance
        NaN, index -1 and gradient 0.

    Raises:
        TypeError: If an argument is not a tensor of these dtypes, or the query is float64 and the keys are not.
        ValueError: If an argument has the wrong shape or device, or if `keys` requires a gradient, which it would not
            get.

    Example:
        >>> import torch
        >>> query = torch.tensor([[0.0, 0.0], [5.0, 1.0]], requires_grad=True)
        >>> keys = torch.tensor([[1.0, 1.0], [3.0, -3.0], [5.0, 0.0]])
        >>> distance, index = class_l1_nearest(query, torch.tensor([1, 0]), keys, torch.tensor([0, 1, 1]))
        >>> distance.tolist(), index.tolist()
        ([5.0, 4.0], [2, 0])
        >>> torch.autograd.grad(distance.sum(), query)[0]
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    return ClassL1Index(keys, key_labels).nearest(query, query_labels)


def _check_rows(name: str, tensor: Tensor, rows: str) -> None:
    check_tensor(name, tensor, LOGIT_DTYPES)
    if tensor.dim() != 2 or tensor.shape[1] < 1:
        raise ValueError(f"{name} must be [{rows}, d] with d >= 1, got shape {tuple(tensor.shape)}")


def _check_labels(name: str, labels: Tensor, of: str, rows: Tensor) -> None:
    check_tensor(name, labels)
    if labels.dtype not in _INTEGERS:
        remedy = f": pass {name}.long()" if labels.dtype == torch.uint64 else ""
        raise TypeError(f"{name} must be integers, got {labels.dtype}{remedy}")
    if labels.dim() != 1 or labels.shape[0] != rows.shape[0]:
        raise ValueError(f"{name} must have shape ({rows.shape[0]},) like the rows of {of}, got {tuple(labels.shape)}")
    if labels.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device} like {of}, got {labels.device}")
