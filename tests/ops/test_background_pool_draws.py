"""Draws against exact probabilities, by rejection and by descent; what has no weight is never drawn."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.ops.reference import background_pool as reference
from fastood.samplers import BackgroundPool
from tests.support.background_pool_samples import ADVERSARIAL, LAYOUTS, one_hot, pool_of


def p_value(index: Tensor, probability: Tensor) -> float:
    """Chi-square of draws against probabilities; what is expected fewer than five times is pooled."""
    expected = probability.double() * len(index)
    counts = torch.bincount(index, minlength=len(probability)).double()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    keep = wanted > 1e-9
    assert observed[~keep].sum() == 0
    if keep.sum() == 1:
        return 1.0
    return float(stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue)


def probability_of(pool: BackgroundPool) -> Tensor:
    masses = reference.masses_of(pool.state_dict()["omega"], pool.epsilon)
    return masses / masses.sum()


def rejects(pool: BackgroundPool) -> bool:
    """Whether draws go by rejection: kWorthwhileTrials of csrc/background_pool/math.h."""
    values = pool._state.stats.tolist()
    return len(pool) * values[ops.BOUND] <= 8 * values[ops.MASS_TOTAL]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", LAYOUTS)
def test_draws_have_the_probabilities_of_equation_11(
    name: str, epsilon: float, stratified: bool, generator: torch.Generator
) -> None:
    pool = pool_of(LAYOUTS[name], epsilon=epsilon)
    batches = [pool.sample(2000, generator=generator, stratified=stratified)[0] for _ in range(50)]
    p = p_value(torch.cat(batches), probability_of(pool))
    # Stratified draws fit better than chance: only the other tail would be wrong.
    assert p > 1e-4


def test_the_layouts_cover_both_ways_of_drawing() -> None:
    ways = {name: rejects(pool_of(weights)) for name, weights in LAYOUTS.items()}
    assert ways["uniform"]
    assert ways["three levels"]
    assert not ways["one of many"]
    assert not ways["geometric over 30 decades"]


@pytest.mark.parametrize("mode", ["sparse", "exact"])
def test_draws_follow_weights_that_thousands_of_steps_have_moved(mode: str, generator: torch.Generator) -> None:
    pool = BackgroundPool(500)
    hardness = torch.rand(500, generator=generator) ** 4
    for _ in range(3000):
        index, _ = pool.sample(32, generator=generator)
        pool.ascend(index, hardness[index], lr=1.0, mode=mode)
    assert pool.weights.std() > 0.1 * pool.weights.mean()
    index = pool.sample(200_000, generator=generator)[0]
    assert p_value(index, probability_of(pool)) > 1e-4


@pytest.mark.parametrize("weights", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_every_boundary_of_the_running_sum_leads_to_its_own_example(weights: Tensor) -> None:
    """All sums are exact: the first and the last quantum of every mass are found there, and zero masses own none.

    This is the whole of the descent's logic, whatever the number of draws: between the two targets tried for an example
    the same comparisons decide.
    """
    pool = pool_of(weights, epsilon=1.0)
    omega, masses, totals = pool._state.omega, pool._state.masses, pool._state.stats
    quantum = float(totals[ops.MASS_QUANTUM])
    own = torch.zeros(len(weights), dtype=torch.float64)
    for i in weights.nonzero().flatten().tolist():
        single, alone = torch.zeros(64, dtype=torch.float64), totals.clone()
        ops.pool_build(omega[i : i + 1].clone(), single, alone, 1.0)
        own[i] = alone[ops.MASS_TOTAL]
    ends = own.cumsum(0)
    assert ends[-1] == totals[ops.MASS_TOTAL]
    present = own.nonzero().flatten()
    for targets in ((ends - own)[present], ends[present] - quantum):
        assert torch.equal(ops.pool_find(omega, masses, totals, targets, 1.0), present)


@pytest.mark.parametrize("weights", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_what_has_no_weight_is_never_drawn(weights: Tensor, generator: torch.Generator) -> None:
    for epsilon in (0.0, 0.5, 1.0):
        pool = pool_of(weights, epsilon=epsilon)
        for options in ({}, {"stratified": True}):
            index, importance = pool.sample(20_000, generator=generator, **options)
            assert (weights[index] > 0).all()
            assert torch.isfinite(importance).all()
        assert (weights[pool.select(1.0, generator=generator, calibrated=True)] > 0).all()


def test_uniforms_reach_all_of_a_pool_beyond_two_to_the_24(generator: torch.Generator) -> None:
    """float32 cumulative sums leave the upper half of such a pool without a single draw (pytorch#43115)."""
    size = (1 << 24) + 12345
    pool = BackgroundPool(size)
    for options in ({}, {"stratified": True}):
        index = pool.sample(100_000, generator=generator, **options)[0]
        assert p_value(index * 100 // size, torch.full((100,), 0.01)) > 1e-4
        # The lowest bits too: a coarse uniform would favour multiples of some power of two.
        assert p_value(index % 16, torch.full((16,), 1 / 16)) > 1e-4
        assert index.unique().numel() > 99_000


def test_stratified_batches_vary_less(generator: torch.Generator) -> None:
    pool = pool_of(LAYOUTS["skewed"])
    loss = torch.linspace(0, 1, len(pool), dtype=torch.float64) ** 2
    means = {}
    for stratified in (False, True):
        batches = [pool.sample(64, generator=generator, stratified=stratified) for _ in range(300)]
        assert all(torch.equal(i.sort().values, i) for i, _ in batches) == stratified
        means[stratified] = torch.stack([(r.double() * loss[i]).mean() for i, r in batches])
    w = pool.weights
    want = float((w * loss).sum() / w.sum())
    assert means[True].std() < 0.3 * means[False].std()
    for values in means.values():
        assert abs(float(values.mean()) - want) < 5 * float(values.std()) / math.sqrt(len(values))


def test_distinct_draws_have_the_probabilities_of_successive_sampling(generator: torch.Generator) -> None:
    weights = torch.tensor([5.0, 1.0, 3.0, 0.5, 2.0])
    pool = pool_of(weights, epsilon=1.0)
    p = (weights / weights.sum()).double()
    pairs = torch.stack([pool.sample(2, generator=generator, replacement=False)[0] for _ in range(20_000)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    exact = p[:, None] * p[None] / (1 - p[:, None])
    exact.fill_diagonal_(0)
    assert p_value(pairs[:, 0] * 5 + pairs[:, 1], exact.flatten()) > 1e-4


def test_distinct_draws_of_everything_and_of_concentrated_weights(generator: torch.Generator) -> None:
    pool = BackgroundPool(300)
    assert torch.equal(pool.sample(300, generator=generator, replacement=False)[0].sort().values, torch.arange(300))
    heavy = pool_of(one_hot(2000, 77, rest=1e-9), epsilon=1.0)  # repeats prevail: the keys draw the rest
    index, importance = heavy.sample(1000, generator=generator, replacement=False)
    assert index.unique().numel() == 1000
    assert index[0] == 77
    assert importance.shape == (1000,)
    # The rest is uniform among the others.
    firsts = torch.stack([heavy.sample(3, generator=generator, replacement=False)[0][1:] for _ in range(2000)])
    assert p_value(firsts.flatten() * 20 // 2000, torch.full((20,), 1 / 20)) > 1e-4
    few = pool_of(one_hot(10, 3))
    with pytest.raises(ValueError, match="at most the 1 examples with weight"):
        few.sample(2, generator=generator, replacement=False)
    with pytest.raises(ValueError, match="stratified=True needs replacement=True"):
        pool.sample(2, generator=generator, replacement=False, stratified=True)


def test_draws_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    drawn = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            pool = pool_of(LAYOUTS["three levels"])
            generator = torch.Generator().manual_seed(1)
            for mode in ("exact", "sparse"):
                index, importance = pool.sample(5000, generator=generator)
                pool.ascend(index, importance, lr=3.0, mode=mode)
            drawn.append((index, importance, pool.weights, pool._state.masses, pool._state.stats))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
