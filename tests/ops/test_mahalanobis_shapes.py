"""Results of the Mahalanobis ops for every remainder of their tiles; the upper triangle is NaN, which nothing reads."""

import pytest
import torch
from torch import Tensor

from fastood.ops.reference import mahalanobis as reference

ops = torch.ops.fastood
COUNTS = [(1, 1), (0, 3), (7, 2), (3, 40), (33, 33), (70, 5)]
dims = pytest.mark.parametrize("dim", [1, 2, 31, 32, 33, 64, 65, 129, 200])


def make(rows: int, classes: int, dim: int, *, diagonal: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Features at distance 1 around means 3 apart, and a factor; float64."""
    generator = torch.Generator().manual_seed(31 * rows + 7 * classes + dim)
    means = 3 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    around = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    features = means[torch.arange(rows) % classes] + around
    size = 1 + torch.randn(dim, generator=generator, dtype=torch.float64).abs()
    if diagonal:
        return features, means, size
    below = torch.randn(dim, dim, generator=generator, dtype=torch.float64).tril(-1) / dim**0.5
    above = torch.full_like(below, torch.nan).triu(1)
    return features, means, below + size.diag() + above


def whitened(rows: Tensor, scale: Tensor) -> Tensor:
    return rows / scale if scale.dim() == 1 else torch.linalg.solve_triangular(scale, rows.T, upper=False).T


def gradients(features: Tensor, means: Tensor, scale: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (features, means, scale)]
    logits = reference.mahalanobis_logits(*leaves)
    of_features, of_means, of_scale = torch.autograd.grad(logits, leaves, upstream.double())
    return of_features, of_means, of_scale if scale.dim() == 1 else of_scale.tril()


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within a share of the largest entry."""
    if want.numel() > 0:
        assert float((got.double() - want).abs().max()) <= tolerance * float(want.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@dims
def test_every_result_of_every_shape(dim: int, diagonal: bool, dtype: torch.dtype, device: str) -> None:
    wide = dtype == torch.float64
    for rows, classes in COUNTS:
        args = [x.to(device, dtype) for x in make(rows, classes, dim, diagonal=diagonal)]
        exact = [x.double() for x in args]
        lower = exact[2] if diagonal else exact[2].tril()
        logits, residual, means, nearest = ops.mahalanobis_logits(*args)
        differences = whitened((exact[0][:, None] - exact[1]).flatten(0, 1), lower).view(rows, classes, dim)
        want = -differences.square().sum(2)
        # What float64 keeps of a difference of numbers near 3; float32 inputs are exact in it.
        rounding = 3e-15 * want.abs().sqrt() if wide else 0
        assert ((logits.double() - want).abs() <= (1e-13 if wide else 3e-6) * want.abs() + rounding).all()
        assert ((logits < 0) | ((logits == 0) & ~logits.signbit())).all()
        at = torch.arange(rows, device=device)
        if rows > 0:
            assert torch.equal(nearest, logits.argmax(1))
        own, limit = differences[at, nearest], (1e-13 if wide else 1.2e-7) * want[at, nearest].abs().sqrt()[:, None]
        assert ((residual.double() - own).abs() <= limit + 3e-15).all()

        upstream = torch.randn(rows, classes, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        got = ops._mahalanobis_logits_backward(upstream, residual, means, nearest, args[2])
        for g, w in zip(got, gradients(exact[0], exact[1], lower, upstream), strict=True):
            assert_near(g, w, 1e-12 if wide else 2e-5)


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@dims
def test_rows_next_to_means_far_away(dim: int, diagonal: bool, device: str) -> None:
    """Logits to the last digit, and gradients of the own class whole."""
    generator = torch.Generator().manual_seed(dim)
    means = 1000 + 1000 / dim**0.5 * torch.randn(5, dim, generator=generator)
    label = torch.arange(20) % 5
    features = means[label] + 1e-3 * torch.randn(20, dim, generator=generator)
    args = [x.to(device, torch.float32) for x in (features, means, make(1, 1, dim, diagonal=diagonal)[2])]
    exact = [x.double() for x in args]
    lower = exact[2] if diagonal else exact[2].tril()
    want = -whitened(exact[0] - exact[1][label.to(device)], lower).square().sum(1)
    logits, *saved = ops.mahalanobis_logits(*args)
    own = logits[torch.arange(20, device=device), label.to(device)]
    assert ((own.double() - want).abs() <= 1.2e-7 * want.abs()).all()
    upstream = torch.nn.functional.one_hot(label, 5).float().to(device)
    got = ops._mahalanobis_logits_backward(upstream, *saved, args[2])
    for g, w in zip(got, gradients(exact[0], exact[1], lower, upstream), strict=True):
        assert_near(g, w, 2e-6)


@pytest.mark.parametrize("distance", [0.0, 5.0])
def test_the_nearest_of_equidistant_means(distance: float, device: str) -> None:
    """Means as far from every sample as from each other, or all the same: the first of the largest final logits."""
    means = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    means *= distance / means.norm(dim=1, keepdim=True)
    features = 1e-9 * torch.arange(60.0)[:, None] * means[:1]
    args = (x.to(device) for x in (features, means, torch.eye(64)))
    logits, _, _, nearest = ops.mahalanobis_logits(*args)
    is_largest = logits == logits.amax(1, keepdim=True)
    assert torch.equal(nearest, is_largest.int().argmax(1))
