"""Values that torch.ops.fastood.background_pool_* must not use: an error on the CPU, a marked result on a GPU."""

import math

import pytest
import torch
from torch import Tensor

from fastood.ops import background_pool as pool_ops
from tests.support.background_pool_samples import one_hot, pool_of
from tests.support.raw_values import NAN, OUT_OF_RANGE, outcome

ops = torch.ops.fastood


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weights", [torch.ones(100), one_hot(5000, 77, rest=1e-6)], ids=["even", "skewed"])
@pytest.mark.parametrize("value", [1.0, 2.0, -1e-9, NAN, math.inf, -math.inf])
def test_uniforms_of_a_draw(value: float, weights: Tensor, epsilon: float, device: str) -> None:
    """Even pools are drawn by rejection, skewed ones by descent."""
    state = pool_of(weights, device=device)._state
    state.sum_up(epsilon)
    uniform = torch.tensor([0.25, value, 0.75], dtype=torch.float64, device=device)
    call = lambda: ops.background_pool_draw(state.omega, state.masses, state.stats, uniform, epsilon)  # noqa: E731
    got = outcome(device, r"uniform must be in \[0, 1\), got .* at position 1", call)
    if got is not None:
        assert got[0][1] == -1
        assert got[1][1].isnan()
        good = uniform[::2].contiguous()
        want = ops.background_pool_draw(state.omega, state.masses, state.stats, good, epsilon)
        assert all(torch.equal(g[::2], w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("share", [1.0, 2.0, -1.0, NAN, math.inf])
def test_targets_of_a_find(share: float, device: str) -> None:
    state = pool_of(one_hot(5000, 77, rest=1e-6), device=device)._state
    total = float(state.stats[pool_ops.MASS_TOTAL])
    target = torch.tensor([0.0, share * total], dtype=torch.float64, device=device)
    call = lambda: ops.background_pool_find(state.omega, state.masses, state.stats, target, 0.5)  # noqa: E731
    got = outcome(device, r"target must be in \[0, .*\), got .* at position 1", call)
    if got is not None:
        assert got[0].tolist() == [0, -1]


@pytest.mark.parametrize("size", [200, 64**2 + 1, 64**3 + 1])
@pytest.mark.parametrize("masses", [0.0, -math.inf, NAN, -1.0])
def test_masses_of_another_pool(size: int, masses: float, device: str) -> None:
    """A descent by sums that are not those of omega ends in an error, outside of the pool, or at an example of it."""
    state = pool_of(one_hot(size, 5, rest=1e-6), device=device)._state
    stats = state.stats.clone()
    stats[pool_ops.BOUND] = stats[pool_ops.MASS_TOTAL]  # skewed: by descent
    wrong = torch.full_like(state.masses, masses)
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        draws = torch.full((4,), uniform, dtype=torch.float64, device=device)
        try:
            index, importance = ops.background_pool_draw(state.omega, wrong, stats, draws, 1.0)
        except RuntimeError:
            if device == "cpu":
                continue  # the next test has its message
            raise
        assert ((index >= 0) & (index < size) | (index == -1) & importance.isnan()).all()


def test_a_descent_out_of_the_pool(device: str) -> None:
    state = pool_of(one_hot(200, 5, rest=1e-6), device=device)._state
    target = (0.5 * state.stats[pool_ops.MASS_TOTAL]).expand(4).contiguous()
    call = lambda: ops.background_pool_find(state.omega, state.masses * 0, state.stats, target, 1.0)  # noqa: E731
    got = outcome(device, "masses and stats are not those of omega: build them anew", call)
    if got is not None:
        assert got[0].tolist() == [-1] * 4


def test_a_pool_without_weight(device: str) -> None:
    state = pool_of(torch.ones(100), device=device)._state
    state.omega.fill_(-math.inf)
    pool_ops.pool_build(state.omega, state.masses, state.stats, 0.5)
    uniform = torch.tensor([0.0, 0.5], dtype=torch.float64, device=device)
    call = lambda: ops.background_pool_draw(state.omega, state.masses, state.stats, uniform, 0.5)  # noqa: E731
    got = outcome(device, "every example of the pool has weight zero", call)
    if got is not None:
        assert got[0].tolist() == [-1, -1]
        assert got[1].isnan().all()


@pytest.mark.parametrize("value", [*OUT_OF_RANGE, 100])
def test_indices_of_importance(value: int, device: str) -> None:
    state = pool_of(torch.ones(100), device=device)._state
    index = torch.tensor([3, value], device=device)
    call = lambda: ops.background_pool_importance(state.omega, state.stats, index, 0.5)  # noqa: E731
    got = outcome(device, r"index must be in 0 ... 99, got", call)
    if got is not None:
        assert got[0].isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("index", "loss", "status"),
    [
        *(((3, value), (1.0, 1.0), (pool_ops.BAD_INDEX, 1)) for value in (*OUT_OF_RANGE, 100)),
        *(((3, 4), (1.0, value), (pool_ops.BAD_LOSS, 1)) for value in (-1.0, NAN, math.inf)),
    ],
)
def test_batches_of_a_step(
    index: tuple[int, ...], loss: tuple[float, ...], status: tuple[int, int], device: str
) -> None:
    """The status says what was wrong, on every device; nothing has changed."""
    state = pool_of(torch.ones(100), device=device)._state
    tensors = (state.omega, state.velocity, state.masses, state.stats)
    before = [tensor.clone() for tensor in tensors]
    batch = torch.tensor(index, device=device), torch.tensor(loss, dtype=torch.float64, device=device)
    for sparse in (False, True):
        got = ops.background_pool_ascend(*tensors, *batch, None, 0.5, 0.9, 0.1, sparse)
        assert tuple(got.tolist()) == status
    assert all(torch.equal(tensor, b) for tensor, b in zip(tensors, before, strict=True))
