"""The nearest key of a class in a bank of features, with and without its gradient, compared with its peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from class_l1_nearest_peers import Search, peers
from harness import Comparison, Run, compare, copy_bandwidth
from torch import Tensor

from fastood.ops import ClassL1Index, class_l1_nearest

Record = Callable[[Comparison, Run], None]
Shape = tuple[int, int, int, int]
BANK, MANY_CLASSES = (128, 50_000, 512, 10), (128, 50_000, 512, 100)
CASES: list[tuple[Shape, bool]] = [
    (BANK, False),
    (MANY_CLASSES, False),
    ((16, 60, 2, 3), False),
    ((128, 2_000, 512, 10), True),
    (BANK, True),
    (MANY_CLASSES, True),
]
MASKED_PAIRS = 128 * 2_000 * 512
"""M N d up to which the gradient of `cdist` and a mask is timed: at 128 x 50,000 x 512 one call takes half a minute."""


def operands(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw uniform features, where no key stands out; classes have equally many queries, up to one."""
    queries, num_keys, dim, classes = shape
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(queries, dim, generator=generator)
    keys = torch.rand(num_keys, dim, generator=generator)
    key_labels = torch.randint(classes, (num_keys,), generator=generator)
    query_labels = torch.arange(queries) % classes
    return query.to(device), query_labels.to(device), keys.to(device), key_labels.to(device)


def floor_of(shape: Shape, device: str) -> tuple[float, str]:
    """Return the seconds for reading the keys of the queried classes, at the rate of a copy."""
    queries, num_keys, dim, classes = shape
    moved = 4 * dim * num_keys * min(queries, classes) // classes
    rate = copy_bandwidth(device, 256 << 20)
    return moved / rate, f"{moved} bytes of keys at the {rate / 1e9:.1f} GB/s of a copy"


def without_gradient(search: Search, query: Tensor, labels: Tensor) -> Run:
    def run() -> object:
        with torch.no_grad():
            return search(query, labels)

    return run


def with_gradient(search: Search, query: Tensor, labels: Tensor) -> Run:
    leaf = query.detach().clone().requires_grad_()

    def run() -> object:
        return torch.autograd.grad(search(leaf, labels)[0].sum(), leaf)

    return run


@pytest.mark.parametrize(("shape", "gradient"), CASES, ids=str)
def test_nearest(shape: Shape, gradient: bool, device: str, budget: dict[str, float], record: Record) -> None:
    queries, num_keys, dim, classes = shape
    query, query_labels, keys, key_labels = operands(shape, device)
    index = ClassL1Index(keys, key_labels)
    searches: dict[str, Search] = {
        "fastood": lambda query, labels: class_l1_nearest(query, labels, keys, key_labels),
        "fastood, sorted once": index.nearest,
        **peers(keys, key_labels, gradient=gradient),
    }
    if gradient and queries * num_keys * dim > MASKED_PAIRS:
        del searches["cdist + mask + min"]
    if shape == MANY_CLASSES:
        searches.pop("KeOps", None)  # it computes all pairs, so that its time does not depend on the classes
    want = searches["fastood"](query, query_labels)
    for search in searches.values():
        torch.testing.assert_close(search(query, query_labels)[0].flatten(), want[0], rtol=1e-5, atol=0)
    runner = with_gradient if gradient else without_gradient
    providers = {name: runner(search, query, query_labels) for name, search in searches.items()}
    floor, floor_is = floor_of(shape, device)
    comparison = compare(
        f"class_l1_nearest, {'forward + backward' if gradient else 'forward'}",
        f"{queries}x{num_keys}x{dim} K={classes}",
        providers,
        subject="fastood",
        device=device,
        floor=floor,
        floor_is=floor_is,
        input_bytes=query.nbytes + keys.nbytes,
        **budget,
    )
    record(comparison, providers["fastood"])
