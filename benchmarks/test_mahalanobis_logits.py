"""Mahalanobis logits of a batch, with and without all three gradients, compared with the usual compositions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import Comparison, Run, compare, matmul_rate
from mahalanobis_peers import Logits, peers
from torch import Tensor

from fastood.ops import mahalanobis_logits

Record = Callable[[Comparison, Run], None]
GRID = [
    (rows, classes, dim) for dim in (64, 128, 512, 2048) for classes in (10, 100, 1000) for rows in (128, 384, 4096)
]
USUAL = [(128, 10, 64), (384, 100, 128), (4096, 100, 128), (384, 100, 512), (384, 10, 2048)]
"""Shapes of the grid that are timed without --all-shapes, in two minutes, most of them for the compiler."""
AGAINST_DISTRIBUTION = (256, 100, 512)
FORWARD_ALONE = [(384, 100, 128), (10_000, 100, 512)]


def operands(rows: int, classes: int, dim: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw features around means, and the factor of a well-conditioned covariance."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(classes, dim, generator=generator)
    features = means[torch.arange(rows) % classes] + torch.randn(rows, dim, generator=generator)
    scale = torch.randn(dim, dim, generator=generator).tril(-1) / dim + torch.eye(dim)
    return features.to(device), means.to(device), scale.to(device)


def forward_and_backward(call: Logits, args: tuple[Tensor, ...]) -> Run:
    leaves = [x.detach().requires_grad_() for x in args]
    upstream = torch.randn(len(args[0]), len(args[1]), generator=torch.Generator().manual_seed(1)).to(args[0])

    def run() -> object:
        return torch.autograd.grad(call(*leaves), leaves, upstream)

    return run


def forward_alone(call: Logits, args: tuple[Tensor, ...]) -> Run:
    def run() -> object:
        with torch.no_grad():
            return call(*args)

    return run


def compared(
    op: str,
    shape: tuple[int, int, int],
    operations: int,
    runner: Callable[[Logits, tuple[Tensor, ...]], Run],
    device: str,
    budget: dict[str, float],
) -> tuple[Comparison, Run]:
    """Return one row of the results, and its subject."""
    torch.compiler.reset()
    args = operands(*shape, device)
    calls: dict[str, Logits] = {"fastood": mahalanobis_logits, **peers(*shape)}
    providers = {name: runner(call, args) for name, call in calls.items()}
    rate = matmul_rate(device)
    comparison = compare(
        op,
        "x".join(map(str, shape)),
        providers,
        subject="fastood",
        device=device,
        floor=operations / rate,
        floor_is=f"{operations} operations at the {rate / 1e9:.0f} GFLOP/s of torch.mm",
        input_bytes=sum(x.nbytes for x in args),
        **budget,
    )
    return comparison, providers["fastood"]


@pytest.mark.parametrize("shape", [AGAINST_DISTRIBUTION, *GRID], ids=lambda shape: "x".join(map(str, shape)))
def test_forward_and_backward(
    shape: tuple[int, int, int], device: str, budget: dict[str, float], record: Record, request: pytest.FixtureRequest
) -> None:
    if shape in GRID and shape not in USUAL and not request.config.getoption("--all-shapes"):
        pytest.skip("only with --all-shapes")
    rows, classes, dim = shape
    # One whitening forward, one solve and one triangle of products backward; three products of pairs.
    operations = 3 * (rows + classes) * dim**2 + 6 * rows * classes * dim
    op = "mahalanobis_logits, forward + backward"
    record(*compared(op, shape, operations, forward_and_backward, device, budget))


@pytest.mark.parametrize("shape", FORWARD_ALONE, ids=lambda shape: "x".join(map(str, shape)))
def test_forward(shape: tuple[int, int, int], device: str, budget: dict[str, float], record: Record) -> None:
    rows, classes, dim = shape
    operations = (rows + classes) * dim**2 + 2 * rows * classes * dim
    record(*compared("mahalanobis_logits, forward", shape, operations, forward_alone, device, budget))
