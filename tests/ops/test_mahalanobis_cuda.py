"""The Mahalanobis logits on a GPU: every way to launch them, graphs, streams, and what only a GPU does.

`test_mahalanobis_logits.py` and `test_mahalanobis_shapes.py` run their samples on the GPU too.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastood.ops import mahalanobis_logits, mahalanobis_logits_and_nearest
from tests.support.mahalanobis_samples import MahalanobisSample

pytestmark = pytest.mark.needs_cuda

SHAPES = [
    (384, 100, 128),  # three launches each way
    (384, 100, 512),  # the centre in a launch of its own
    (950, 100, 65),  # a warp with one row; sums over classes in a launch of their own
    (1100, 30, 129),  # a warp with two rows; the sums over samples in shares
    (2200, 3, 64),  # four rows
    (4300, 70, 96),  # eight rows; tiles of 64
    (1500, 1, 33),  # one class has them all
    (0, 5, 40),
]


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def forward_and_backward(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Logits, nearest classes and the three gradients, for an upstream gradient that differs from pair to pair."""
    leaves = [x.detach().requires_grad_() for x in args]
    logits, nearest = mahalanobis_logits_and_nearest(*leaves)
    upstream = torch.cos(torch.arange(logits.numel(), device=logits.device, dtype=logits.dtype)).view_as(logits)
    return (logits.detach(), nearest, *torch.autograd.grad(logits, leaves, upstream))


def assert_close(got: tuple[Tensor, ...], want: tuple[Tensor, ...], *, rtol: float) -> None:
    """Each within rtol of the largest of its own entries; the nearest class is the same."""
    for position, (g, w) in enumerate(zip(got, want, strict=True)):
        g, w = g.cpu(), w.cpu()
        if position == 1:
            assert torch.equal(g, w)
        elif w.numel() > 0:
            assert float((g - w).abs().max()) <= rtol * float(w.abs().max()), position


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_cpu(shape: tuple[int, int, int], diagonal: bool, dtype: torch.dtype) -> None:
    sample = MahalanobisSample(*shape, diagonal=diagonal)
    got, want = (forward_and_backward(sample.make(device, dtype)) for device in ("cuda", "cpu"))
    assert_close(got, want, rtol=64 * torch.finfo(dtype).eps)


def test_repeats_bit_for_bit() -> None:
    args = MahalanobisSample(1100, 30, 129).make("cuda", torch.float32)
    first, second = forward_and_backward(args), forward_and_backward(args)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_graph_replays_forward_and_backward() -> None:
    static = [x.requires_grad_() for x in MahalanobisSample(384, 100, 128).make("cuda", torch.float32)]
    upstream = torch.ones(384, 100, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(mahalanobis_logits(*static), static, upstream)  # warms up
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = mahalanobis_logits(*static)
        gradients = torch.autograd.grad(logits, static, upstream)
    for offset in (0.0, 10.0):
        changed = MahalanobisSample(384, 100, 128, offset=offset).make("cuda", torch.float32)
        with torch.no_grad():
            for tensor, value in zip(static, changed, strict=True):
                tensor.copy_(value)
        graph.replay()
        leaves = [x.requires_grad_() for x in changed]
        want = mahalanobis_logits(*leaves)
        assert torch.equal(logits, want)
        for got, w in zip(gradients, torch.autograd.grad(want, leaves, upstream), strict=True):
            assert torch.equal(got, w)


@pytest.mark.usefixtures("no_synchronisation")
@pytest.mark.parametrize("shape", [(384, 100, 128), (1100, 30, 129)], ids=str)
def test_nothing_waits_for_the_device(shape: tuple[int, int, int]) -> None:
    leaves = [torch.ones(*size, device="cuda", requires_grad=True) for size in (shape[::2], shape[1:], shape[2:])]
    torch.autograd.grad(mahalanobis_logits(*leaves).sum(), leaves)


def test_runs_on_the_current_stream() -> None:
    args = MahalanobisSample(384, 100, 128).make("cuda", torch.float32)
    want = forward_and_backward(args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(x) for x in args]
        torch.cuda._sleep(10_000_000)
        for tensor, value in zip(late, args, strict=True):
            tensor.copy_(value)
        got = forward_and_backward(tuple(late))  # too early on any other stream
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
def test_a_bad_diagonal_makes_the_logits_nan(value: float, diagonal: bool) -> None:
    features, means, scale = MahalanobisSample(33, 7, 40, diagonal=diagonal).make("cuda", torch.float32)
    scale[(39,) if diagonal else (39, 39)] = value
    logits, nearest = mahalanobis_logits_and_nearest(features, means, scale)
    assert logits.isnan().all()
    assert nearest.eq(0).all()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_tensor_cores_are_not_asked_for(precision: str) -> None:
    args = MahalanobisSample(384, 100, 128).make("cuda", torch.float32)
    want = forward_and_backward(args)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    got = forward_and_backward(args)
    torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_near_pairs_of_many_classes() -> None:
    """Classes in two tight clusters: half of all pairs are made anew by direct difference."""
    generator = torch.Generator().manual_seed(0)
    centres = 100 * torch.randn(2, 64, generator=generator)
    means = centres[torch.arange(200) % 2] + 1e-2 * torch.randn(200, 64, generator=generator)
    features = means[torch.arange(300) % 200] + 1e-3 * torch.randn(300, 64, generator=generator)
    args = (features, means, torch.eye(64))
    want = -(features.double()[:, None] - means.double()).square().sum(2)
    got = mahalanobis_logits(*(x.cuda() for x in args)).cpu()
    near = want > -10
    assert near.sum() == 300 * 100
    assert float(((got - want).abs() / want.abs())[near].max()) <= 2.0**-23
