"""Peers of `class_l1_nearest`: `cdist` and a mask, `cdist` class by class, faiss, KeOps.

faiss and KeOps are left out where they are not installed: `pip install faiss-cpu pykeops` brings them in. KeOps
compiles its kernel at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

Found = tuple[Tensor, Tensor]
Search = Callable[[Tensor, Tensor], Found]


def cdist_and_mask(query: Tensor, query_labels: Tensor, keys: Tensor, key_labels: Tensor) -> Found:
    """Compute distances `[M, N]` to the keys of all classes, and mask those of other classes with infinity."""
    distances = torch.cdist(query, keys, p=1.0).masked_fill(query_labels[:, None] != key_labels, torch.inf)
    return distances.min(1)


def cdist_by_class(query: Tensor, query_labels: Tensor, keys: Tensor, key_labels: Tensor) -> Found:
    """Search class by class, on copies of its queries and keys, without superfluous distances."""
    distance = query.new_full((len(query),), torch.inf)
    index = query_labels.new_full((len(query),), -1)
    for label in query_labels.unique():
        rows = (query_labels == label).nonzero().flatten()
        own = (key_labels == label).nonzero().flatten()
        if len(own) > 0:
            nearest, which = torch.cdist(query[rows], keys[own], p=1.0).min(1)
            distance = distance.index_put((rows,), nearest)
            index[rows] = own[which]
    return distance, index


def faiss_by_class(keys: Tensor, key_labels: Tensor) -> Search:
    """Return a search in one faiss index per class, built beforehand from a copy of the keys; it has no gradient."""
    import faiss

    if keys.is_cuda:
        import faiss.contrib.torch_utils  # lets an index take tensors of the GPU

        resources = faiss.StandardGpuResources()
    faiss.omp_set_num_threads(torch.get_num_threads())
    indices = {}
    for label in key_labels.unique().tolist():
        own = (key_labels == label).nonzero().flatten()
        flat = faiss.IndexFlat(keys.shape[1], faiss.METRIC_L1)
        if keys.is_cuda:
            flat = faiss.index_cpu_to_gpu(resources, keys.device.index or 0, flat)
        flat.add(keys[own] if keys.is_cuda else keys[own].numpy())
        indices[label] = (flat, own)

    def search(query: Tensor, query_labels: Tensor) -> Found:
        distance = query.new_full((len(query),), torch.inf)
        index = query_labels.new_full((len(query),), -1)
        for label in query_labels.unique().tolist():
            if label in indices:
                rows = (query_labels == label).nonzero().flatten()
                flat, own = indices[label]
                asked = query[rows] if keys.is_cuda else query[rows].numpy()
                nearest, which = (torch.as_tensor(found) for found in flat.search(asked, 1))
                distance[rows] = nearest[:, 0]
                index[rows] = own[which[:, 0]]
        return distance, index

    return search


def faiss_has_gpu() -> bool:
    """Return whether the installed faiss was built for GPUs."""
    import faiss

    return hasattr(faiss, "StandardGpuResources")


def keops(keys: Tensor, key_labels: Tensor) -> Search:
    """Return a search over all pairs, without storing them; keys of other classes carry a penalty."""
    from pykeops.torch import LazyTensor

    of_keys = LazyTensor(keys[None])
    labels_of_keys = LazyTensor(key_labels.to(keys.dtype)[None, :, None])

    def search(query: Tensor, query_labels: Tensor) -> Found:
        other = (LazyTensor(query_labels.to(query.dtype)[:, None, None]) - labels_of_keys).abs()
        pairs = (LazyTensor(query[:, None]) - of_keys).abs().sum(-1) + 1e6 * other
        nearest, which = pairs.min_argmin(1)
        return nearest[:, 0], which[:, 0]

    return search


def peers(keys: Tensor, key_labels: Tensor, *, gradient: bool) -> dict[str, Search]:
    """Return the installed peers by name; with `gradient`, only those that have one."""
    made: dict[str, Search] = {
        "cdist + mask + min": lambda query, labels: cdist_and_mask(query, labels, keys, key_labels),
        "cdist by class": lambda query, labels: cdist_by_class(query, labels, keys, key_labels),
    }
    if gradient:
        return made
    if find_spec("faiss") is not None and (not keys.is_cuda or faiss_has_gpu()):
        made["faiss by class"] = faiss_by_class(keys, key_labels)
    if find_spec("pykeops") is not None:
        made["KeOps"] = keops(keys, key_labels)
    return made
