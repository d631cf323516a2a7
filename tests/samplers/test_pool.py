import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fastood.samplers import BackgroundPool
from fastood.samplers.softplus import inverse_softplus, softplus


def pool_with_weights(weights: Tensor, **options: float) -> BackgroundPool:
    pool = BackgroundPool(len(weights), **options)
    omega = torch.tensor([inverse_softplus(float(w)) for w in weights], dtype=torch.float32)
    pool.load_state_dict({"omega": omega, "velocity": torch.zeros_like(omega)})
    return pool


SHAPES = {
    "uniform": torch.ones(50),
    "skewed": torch.linspace(0.01, 5, 50) ** 3,
    "one_heavy": torch.cat([torch.full((49,), 1e-3), torch.tensor([10.0])]),
    "geometric": 10.0 ** torch.linspace(-15, 0, 50),
}


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_follow_the_weights(shape: str, epsilon: float, generator: torch.Generator) -> None:
    """Supplementary eq. 11: chi-square of 200,000 draws against w^ε / Σ w^ε."""
    pool = pool_with_weights(SHAPES[shape], epsilon=epsilon)
    index, _ = pool.sample(200_000, generator=generator)
    probability = pool.weights.pow(epsilon) / pool.weights.pow(epsilon).sum()
    expected = probability * len(index)
    counts = torch.bincount(index, minlength=len(pool)).double()
    common = expected >= 5  # the test's own condition; the rare ones are pooled
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    keep = wanted > 1e-9
    assert stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue > 1e-4


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5, 0.9])
def test_importance_makes_the_weighted_loss_unbiased(epsilon: float, generator: torch.Generator) -> None:
    """Mean of r_i l_i over draws = eq. 14 over the pool (supplementary eq. 10, 12): exactly, in expectation."""
    weights = SHAPES["skewed"]
    pool = pool_with_weights(weights, epsilon=epsilon)
    loss = torch.rand(len(pool), generator=generator, dtype=torch.float64)
    w = pool.weights
    want = (w * loss).sum() / w.sum()
    index, importance = pool.sample(400_000, generator=generator)
    terms = importance.double() * loss[index]
    assert abs(float(terms.mean() - want)) < 5 * float(terms.std()) / math.sqrt(len(index))
    every = torch.arange(len(pool))
    probability = w.pow(epsilon) / w.pow(epsilon).sum()
    r = w.pow(epsilon).sum() / w.sum() * w[every].pow(1 - epsilon)
    torch.testing.assert_close((probability * r * loss).sum(), want)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ascend_equals_autograd_over_every_weight(epsilon: float, momentum: float, generator: torch.Generator) -> None:
    """200 steps against SGD on autograd's gradient of the batch's l_out, normalisers included."""
    size, batch_size, lr = 300, 16, 3.0
    pool = BackgroundPool(size, epsilon=epsilon, momentum=momentum)
    omega = pool.state_dict()["omega"].double().requires_grad_()
    optimizer = torch.optim.SGD([omega], lr=lr, momentum=momentum, maximize=True)
    hardness = torch.rand(size, generator=generator, dtype=torch.float64) * 2
    for _ in range(200):
        index, _ = pool.sample(batch_size, generator=generator)
        loss = hardness[index] * torch.rand(batch_size, generator=generator, dtype=torch.float64)
        w = softplus(omega)
        importance = w.pow(epsilon).sum() / w.sum() * w[index].pow(1 - epsilon)
        optimizer.zero_grad()
        (importance * loss).mean().backward()
        optimizer.step()
        pool.ascend(index, loss, lr=lr)
    torch.testing.assert_close(pool.weights, softplus(omega).detach(), rtol=1e-5, atol=0)
    assert pool.weights.std() > 0.05  # the weights did move


def test_authors_formula_at_one_half(generator: torch.Generator) -> None:
    """The closed form for ε = ½ as derived from the authors' loss: scale · sqrt(w_i / mean w)."""
    pool = pool_with_weights(SHAPES["skewed"], momentum=0)
    before = pool.state_dict()["omega"].double()
    w = pool.weights
    u, n, b = w.sqrt(), len(pool), 8
    index = torch.tensor([1, 4, 4, 9, 20, 33, 49, 4])
    loss = torch.rand(b, generator=generator, dtype=torch.float64)
    batch_loss = (u.mean() / w.mean().sqrt() * (w[index] / w.mean()).sqrt() * loss).mean()
    drawn = torch.zeros(n, dtype=torch.float64).index_add_(0, index, loss)
    want = torch.sigmoid(before) * (
        batch_loss * (1 / (2 * n * u * u.mean()) - 1 / (n * w.mean())) + u.mean() / w.mean() / b * drawn / (2 * u)
    )
    pool.ascend(index, loss, lr=1.0)
    # Without momentum the velocity is the gradient.
    torch.testing.assert_close(pool.state_dict()["velocity"].double(), want, rtol=1e-5, atol=1e-9)


def test_hard_examples_gain_weight_and_draws_follow(generator: torch.Generator) -> None:
    pool = BackgroundPool(1000)
    hard = torch.arange(1000) < 50
    for _ in range(300):
        index, _ = pool.sample(64, generator=generator)
        pool.ascend(index, torch.where(hard[index], 1.0, 0.05), lr=20.0)
    assert pool.weights[hard].mean() > 3 * pool.weights[~hard].mean()
    assert pool.effective_sample_size() < 900
    index, _ = pool.sample(5000, generator=generator)
    assert hard[index].float().mean() > 1.5 * 0.05
    chosen = pool.select(0.05, generator=generator)
    assert hard[chosen].float().mean() > 0.1


def test_importance_is_that_of_the_weights_as_they_are(generator: torch.Generator) -> None:
    pool = pool_with_weights(SHAPES["skewed"], epsilon=0.3)
    index, drawn = pool.sample(10, generator=generator)
    assert torch.equal(pool.importance(index), drawn)
    pool.ascend(index, torch.ones(10), lr=100.0)
    w = pool.weights
    r = w.pow(0.3).sum() / w.sum() * w[index].pow(0.7)
    torch.testing.assert_close(pool.importance(index), r.float())
    assert not torch.equal(pool.importance(index), drawn)


def test_select_follows_equation_20(generator: torch.Generator) -> None:
    pool = pool_with_weights(SHAPES["skewed"])
    w = pool.weights
    probability = (0.1 * len(pool) * w / w.sum()).clamp(max=1)
    counts = torch.zeros(len(pool), dtype=torch.float64)
    repeats = 4000
    for _ in range(repeats):
        chosen = pool.select(0.1, generator=generator)
        assert chosen.dtype == torch.int64
        assert torch.equal(chosen, chosen.unique())
        counts[chosen] += 1
    deviation = (probability * (1 - probability) / repeats).sqrt()
    assert ((counts / repeats - probability).abs() <= 5 * deviation + 1e-9).all()


def test_select_takes_every_example_whose_probability_is_cut_at_one(generator: torch.Generator) -> None:
    pool = pool_with_weights(torch.tensor([100.0] + [1.0] * 99))
    assert all(0 in pool.select(0.1, generator=generator) for _ in range(50))
    assert torch.equal(BackgroundPool(20).select(1.0, generator=generator), torch.arange(20))


def test_same_generator_same_draws() -> None:
    def run() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        pool = BackgroundPool(100)
        for _ in range(5):
            index, importance = pool.sample(10, generator=generator)
            pool.ascend(index, importance, lr=1.0)
        return pool.weights, pool.select(0.3, generator=generator)

    first, second = run(), run()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_pool_lives_where_it_is_told_to(device: str) -> None:
    generator = torch.Generator(device).manual_seed(0)
    pool = BackgroundPool(1000, device=device)
    index, importance = pool.sample(64, generator=generator)
    pool.ascend(index, torch.ones(64, device=device), lr=10.0)
    chosen = pool.select(0.1, generator=generator)
    assert {t.device.type for t in (index, importance, chosen, pool.weights)} == {device}
    assert pool.weights[index].min() > pool.weights.min()
    assert 50 < len(chosen) < 200


def test_state_dict_restores_the_trajectory(generator: torch.Generator) -> None:
    pool = BackgroundPool(50)
    index, _ = pool.sample(10, generator=generator)
    pool.ascend(index, torch.rand(10, generator=generator), lr=5.0)
    other = BackgroundPool(50)
    other.load_state_dict(pool.state_dict())
    for p in (pool, other):
        p.ascend(index, torch.ones(10), lr=5.0)
    assert torch.equal(pool.weights, other.weights)
    pool.state_dict()["omega"].zero_()
    assert torch.equal(pool.weights, other.weights), "state_dict must be a copy"


@given(st.floats(min_value=-80, max_value=80))
@settings(max_examples=200, deadline=None)
def test_softplus_and_its_inverse(x: float) -> None:
    w = float(softplus(torch.tensor(x, dtype=torch.float64)))
    exact = math.log1p(math.exp(x)) if x < 30 else x + math.exp(-x)
    assert w == pytest.approx(exact, rel=1e-14)
    if w > 1e-300:
        assert inverse_softplus(w) == pytest.approx(x, rel=1e-12, abs=1e-12)


def test_pool_of_one(generator: torch.Generator) -> None:
    pool = BackgroundPool(1)
    index, importance = pool.sample(3, generator=generator)
    assert index.tolist() == [0, 0, 0]
    torch.testing.assert_close(importance, torch.ones(3))
    pool.ascend(index, torch.ones(3), lr=100.0)
    assert math.isfinite(float(pool.weights))


@pytest.mark.parametrize("size", [3, 10])
def test_a_tiny_pool_with_the_papers_step_size_keeps_positive_weights(size: int, generator: torch.Generator) -> None:
    """100 is meant for a million examples; in a handful of them ω runs to its limits and must stay there."""
    pool = BackgroundPool(size)
    for _ in range(300):
        index, importance = pool.sample(8, generator=generator)
        pool.ascend(index, torch.rand(8, generator=generator) * 10, lr=100.0)
        assert torch.isfinite(importance).all()
    assert (pool.weights > 0).all()
    assert torch.isfinite(pool.weights).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "num_examples must be an int >= 1, got 0"),
        ({"num_examples": 2.0}, "num_examples must be an int"),
        ({"epsilon": 1.1}, r"epsilon must be in \[0, 1\], got 1.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"initial_weight": 0.0}, r"initial_weight must be in \[1e-30, 1e6\]"),
        ({"initial_weight": 1e39}, r"initial_weight must be in \[1e-30, 1e6\]"),
    ],
)
def test_bad_pool(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackgroundPool(**{"num_examples": 5, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"index": torch.tensor([0, 5])}, ValueError, "index must be in 0 … 4, got 5"),
        ({"index": torch.tensor([-1, 0])}, ValueError, "index must be in 0 … 4, got -1"),
        ({"index": torch.tensor([0.0, 1.0])}, TypeError, "index must be int64"),
        ({"index": torch.zeros(0, dtype=torch.int64), "loss": torch.zeros(0)}, ValueError, "B >= 1"),
        ({"loss": torch.tensor([1.0])}, ValueError, r"per_sample_loss must have shape \(2,\), got \(1,\)"),
        ({"loss": torch.tensor([1, 2])}, TypeError, "per_sample_loss must be floating-point"),
        ({"loss": torch.tensor([1.0, math.nan])}, ValueError, "got nan at position 1 .example 3"),
        ({"loss": torch.tensor([-1.0, 0.0])}, ValueError, "got -1.0 at position 0"),
        ({"lr": 0.0}, ValueError, "lr must be finite in float32 and > 0, got 0.0"),
        ({"lr": 3.5e38}, ValueError, "lr must be finite in float32 and > 0, got 3.5e"),
        ({"index": [0, 3]}, TypeError, "index must be a torch.Tensor, got list"),
        ({"loss": torch.tensor([1e38, 0.0]), "lr": 1e5}, ValueError, "must stay in float32's range"),
    ],
)
def test_bad_step_leaves_the_pool_as_it_was(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    pool = BackgroundPool(5)
    before = pool.state_dict()
    good = {"index": torch.tensor([0, 3]), "loss": torch.tensor([1.0, 2.0]), "lr": 1.0}
    call = {**good, **arguments}
    with pytest.raises(error, match=message):
        pool.ascend(call["index"], call["loss"], lr=call["lr"])
    assert all(torch.equal(before[name], pool.state_dict()[name]) for name in before)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_bad_rate(rate: float, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\]"):
        BackgroundPool(5).select(rate, generator=generator)


def test_bad_state() -> None:
    with pytest.raises(KeyError, match="omega"):
        BackgroundPool(5).load_state_dict({"omega": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"float32 of shape \(5,\)"):
        BackgroundPool(5).load_state_dict({"omega": torch.zeros(4), "velocity": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"state.'omega'. must be finite"):
        BackgroundPool(2).load_state_dict({"omega": torch.tensor([0.0, math.nan]), "velocity": torch.zeros(2)})
    with pytest.raises(ValueError, match="batch_size must be an int >= 1"):
        BackgroundPool(5).sample(0, generator=torch.Generator())
