"""Draws without replacement by clocks, which read no value: the law of successive sampling, and its edges."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import BackgroundPool
from fastood.samplers.without_replacement import draw_earliest
from tests.support.background_pool_samples import LAYOUTS, pool_of


def drawn(pool: BackgroundPool, count: int, generator: torch.Generator) -> Tensor:
    return draw_earliest(pool._state, pool.epsilon, count, generator=generator)


def few_heavy(size: int, places: list[int]) -> Tensor:
    """Weights of which all but a few are hardly ever drawn, so that every outcome can be counted."""
    weights = torch.full((size,), 1e-12, dtype=torch.float64)
    weights[places] = torch.linspace(1, 4, len(places), dtype=torch.float64) ** 2
    return weights


# Every example has a clock; one, two and three levels of nodes have. Heavy examples share leaves and do not.
TREES = {
    "flat": few_heavy(5, [0, 1, 2, 4]),
    "flat with zeros": torch.cat([few_heavy(5, [0, 1, 2, 4]), torch.zeros(300, dtype=torch.float64)]),
    "one level": few_heavy(200, [0, 1, 63, 130]),
    "two levels": few_heavy(5000, [7, 8, 70, 4999]),
    "three levels": few_heavy(270_000, [0, 4096, 4097, 269_999]),
}


@pytest.mark.parametrize("epsilon", [0.5, 1.0])
@pytest.mark.parametrize("name", TREES)
def test_pairs_follow_successive_sampling(name: str, epsilon: float, generator: torch.Generator) -> None:
    """P(i, then j) = p_i / Σp · p_j / (Σp - p_i), by a chi-square of 3000 draws over all ordered pairs."""
    pool = BackgroundPool.from_weights(TREES[name], epsilon=epsilon)
    masses = pool.weights.pow(epsilon)
    heavy = masses.topk(4).indices.tolist()
    # Light examples have at most one draw in 10^4 together, but for ε = 0.5 and the largest pool.
    counts = dict.fromkeys([(i, j) for i in heavy for j in heavy if i != j], 0)
    others, draws = 0, 3000
    for _ in range(draws):
        pair = tuple(drawn(pool, 2, generator).tolist())
        if pair in counts:
            counts[pair] += 1
        else:
            others += 1
    total = float(masses.sum())
    p = {i: float(masses[i]) for i in heavy}
    expected = [p[i] / total * p[j] / (total - p[i]) * draws for i, j in counts]
    rest = draws - sum(expected)
    assert rest < 5 or abs(others - rest) < 5 * rest**0.5 + 5
    seen = draws - others
    assert stats.chisquare(list(counts.values()), [e * seen / sum(expected) for e in expected]).pvalue > 1e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_number_of_draws_is_distinct_and_has_weight(name: str, generator: torch.Generator) -> None:
    pool = pool_of(LAYOUTS[name])
    for count in {1, min(3, pool.drawable), pool.drawable // 65 or 1, pool.drawable}:
        index = drawn(pool, count, generator)
        assert len(index) == len(index.unique()) == count
        assert bool((pool.weights[index] > 0).all())
        assert int(index.min()) >= 0
        assert int(index.max()) < len(pool)


def test_examples_that_round_to_no_mass_come_after_all_others(generator: torch.Generator) -> None:
    """Mass below 2^-50 of the total rounds to zero in the tree: two of 400 examples have any, in different leaves."""
    weights = torch.full((400,), 1e-30, dtype=torch.float64)
    weights[[5, 390]] = 1.0
    pool = BackgroundPool.from_weights(weights)
    assert len(pool) > ops.FAN_OUT * 5
    for _ in range(50):
        index = drawn(pool, 5, generator).tolist()
        assert set(index[:2]) == {5, 390}
        assert len(set(index)) == 5
