"""Passes over the whole pool."""

import math

import pytest
import torch

from fastood.samplers import BackgroundPool, selection
from tests.support.background_pool_samples import LAYOUTS, one_hot, pool_of


@pytest.mark.parametrize("name", ["uniform", "skewed", "geometric over 30 decades", "half without weight"])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 1.0])
def test_calibrated_probabilities_add_up(name: str, rate: float) -> None:
    pool = pool_of(LAYOUTS[name])
    omega, w = pool.state_dict()["omega"], pool.weights
    expected = min(rate * len(pool), int((w > 0).sum()))
    factor = selection.calibrated_factor(omega, expected, start=rate * len(pool) / float(w.sum()))
    assert float((factor * w).clamp(max=1).sum()) == pytest.approx(expected, rel=1e-9)


def test_calibrated_selection_makes_up_for_the_cut(generator: torch.Generator) -> None:
    pool = pool_of(LAYOUTS["skewed"])
    w, rate = pool.weights, 0.5
    plain = (rate * len(pool) * w / w.sum()).clamp(max=1)
    assert plain.sum() < 0.85 * rate * len(pool)
    sizes = {c: [len(pool.select(rate, generator=generator, calibrated=c)) for _ in range(300)] for c in (False, True)}
    for calibrated, expected in ((False, float(plain.sum())), (True, rate * len(pool))):
        mean = sum(sizes[calibrated]) / 300
        assert abs(mean - expected) < 5 * math.sqrt(expected / 300)
    # No probability is one: both are the same, draw for draw.
    even = pool_of(LAYOUTS["a leaf and one"])
    states = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(even.select(0.1, generator=states[0]), even.select(0.1, generator=states[1], calibrated=True))


def test_selection_goes_by_chunks(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    monkeypatch.setattr(selection, "CHUNK", 100)
    pool = pool_of(LAYOUTS["skewed"])
    w = pool.weights
    counts = torch.zeros(len(pool), dtype=torch.float64)
    for _ in range(2000):
        counts[pool.select(0.1, generator=generator)] += 1
    probability = (0.1 * len(pool) * w / w.sum()).clamp(max=1)
    assert ((counts / 2000 - probability).abs() <= 5 * (probability * (1 - probability) / 2000).sqrt() + 1e-9).all()
    assert pool.histogram(7)[0].sum() == len(pool)


def test_top_is_a_stable_sort() -> None:
    weights = torch.tensor([1.0, 5.0, 0.0, 5.0, 3.0, 1.0, 1.0])
    pool = pool_of(weights)
    order = weights.sort(descending=True, stable=True).indices
    for k in range(1, 8):
        assert torch.equal(pool.top(k), order[:k])
    for k in (0, 8, 1.0, True):
        with pytest.raises(ValueError, match=r"k must be an int in 1 … 7"):
            pool.top(k)


def test_histogram_counts_every_weight_once() -> None:
    pool = pool_of(torch.cat([torch.zeros(5), torch.logspace(-3, 2, 1000, dtype=torch.float64)]))
    counts, edges = pool.histogram(5)
    assert counts.tolist() == [200] * 5
    torch.testing.assert_close(edges, torch.logspace(-3, 2, 6, dtype=torch.float64), rtol=1e-5, atol=0)
    equal, _ = BackgroundPool(30).histogram()
    assert equal.sum() == 30
    with pytest.raises(ValueError, match="bins must be an int >= 1, got 0"):
        pool.histogram(0)


def test_effective_sample_size_is_that_of_the_weights() -> None:
    for name, weights in LAYOUTS.items():
        pool = pool_of(weights)
        w = pool.weights
        assert pool.effective_sample_size() == pytest.approx(float(w.sum() ** 2 / w.square().sum()), rel=1e-6), name
    assert pool_of(one_hot(1000, 3)).effective_sample_size() == pytest.approx(1)
