"""The parts of BAL: losses against the paper's formulas, negative pairs, networks, the bank, training."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastood.detectors.bal import (
    BoundarySettings,
    BoundaryTraining,
    ConditionalDiscriminator,
    ConditionalGenerator,
    FeatureBank,
    boundary_score,
)
from fastood.detectors.bal.build import build_gan
from fastood.detectors.bal.losses import generator_loss, negative_loss, positive_loss
from fastood.detectors.bal.negatives import LowDensityGaussian, mismatched_labels, step_down, uniform_in_box

SMALL = BoundarySettings(steps=12, batch_size=32, hidden=16, embedding=8, noise_dim=4)


def training(
    features: Tensor, labels: Tensor, settings: BoundarySettings = SMALL, *, seed: int = 0
) -> BoundaryTraining:
    draws = torch.Generator().manual_seed(seed)
    bank = FeatureBank(features, labels)
    discriminator, imitator = build_gan(features.shape[1], int(labels.max()) + 1, settings, generator=draws)
    return BoundaryTraining(
        bank, discriminator=discriminator, generator_network=imitator, settings=settings, generator=draws
    )


def clusters(*, rows: int = 400, classes: int = 2, width: int = 2) -> tuple[Tensor, Tensor]:
    """Tight clusters on the axes, two of them at -4 and 4 on the first."""
    labels = torch.arange(rows) % classes
    features = 0.5 * torch.randn(rows, width, generator=torch.Generator().manual_seed(5))
    features[:, 0] += 8.0 * labels - 4 * (classes - 1)
    return features, labels


def test_losses_by_hand():
    d = torch.tensor([0.9, 0.3], dtype=torch.float64)
    logits = d.logit()
    torch.testing.assert_close(positive_loss(logits), -d.log().mean())
    torch.testing.assert_close(negative_loss(logits), -(1 - d).log().mean())
    torch.testing.assert_close(negative_loss(logits, form="log-d"), d.log().mean())
    torch.testing.assert_close(negative_loss(logits, form="log-d", floor=1.0), (math.log(0.9) - 1.0) / 2 + 0 * d.mean())
    torch.testing.assert_close(generator_loss(logits), (1 - d).log().mean())
    torch.testing.assert_close(generator_loss(logits, form="non-saturating"), -d.log().mean())


def test_printed_form_is_bounded_and_lets_go():
    """Equations 8 and 9 have no lower bound; the one here has, and no gradient beyond it."""
    logits = torch.tensor([-5.0, -50.0], requires_grad=True)
    loss = negative_loss(logits, form="log-d", floor=10.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss > -10
    assert gradient[0] > 0.4
    assert gradient[1] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: negative_loss(v, form="hinge"), "form must be one of log-d, log-one-minus-d, got 'hinge'"),
        (lambda v: negative_loss(v, floor=0.0), "floor must be above 0, got 0.0"),
        (lambda v: generator_loss(v, form="hinge"), "form must be one of saturating, non-saturating, got 'hinge'"),
    ],
)
def test_loss_errors_name_the_argument(call: object, message: str):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2))


@pytest.mark.parametrize("form", ["log-d", "log-one-minus-d"])
def test_discriminator_loss_is_equation_11(form: str):
    """From the same draws, term by term; hard features with their own weight."""
    features, labels = (part[:20] for part in clusters())
    settings = replace(SMALL, negative_form=form, uniform_weight=0.3, hard_weight=0.6)
    made = training(features, labels, settings)
    before = made.generator.get_state()
    got = made.discriminator_loss(features, labels)

    def d(x: Tensor, c: Tensor) -> Tensor:
        return torch.sigmoid(made.discriminator(x, c))

    def negative(x: Tensor, c: Tensor) -> Tensor:
        return d(x, c).log().mean() if form == "log-d" else -(1 - d(x, c)).log().mean()

    made.generator.set_state(before)
    noise, of_fake = made._noise(20)
    fake = made.generator_network(noise, of_fake)
    wrong = made._mismatched(labels)
    trivial, of_trivial = made.trivial_features(features, 20)
    hard, of_hard = made.hard_features(20)
    assert torch.equal(wrong, 1 - labels)
    positive = d(features, labels).log().mean()
    adversarial = -positive - (1 - d(fake, of_fake)).log().mean()
    shuffle = negative(features, wrong) - positive
    uniform = 0.3 * negative(trivial, of_trivial) + 0.6 * negative(hard, of_hard) - positive
    torch.testing.assert_close(got, adversarial + shuffle + uniform)


def test_table_1_switches_terms_off():
    features, labels = clusters()
    losses = {}
    for shuffle in (False, True):
        for uniform in (False, True):
            made = training(features, labels, replace(SMALL, shuffle=shuffle, uniform=uniform))
            losses[shuffle, uniform] = made.discriminator_loss(features[:20], labels[:20]).item()
    assert losses[False, False] < min(losses[True, False], losses[False, True])
    assert losses[True, True] > max(losses[True, False], losses[False, True])


@pytest.mark.parametrize("seeking", [0.0, 0.2])
def test_generator_loss_is_equation_12(seeking: float):
    """And mode seeking, in standardised coordinates, where it is asked for."""
    features, labels = clusters()
    made = training(features, labels, replace(SMALL, nearest_weight=0.5, mode_seeking_weight=seeking))
    before = made.generator.get_state()
    got, nearest = made.generator_loss()
    made.generator.set_state(before)
    noise, of_noise = made._noise(32)
    generated = made.generator_network(noise, of_noise)
    d = torch.sigmoid(made.discriminator(generated, of_noise))
    distances = (generated[:, None] - features[None]).abs().sum(2)
    distances[of_noise[:, None] != labels[None]] = math.inf
    torch.testing.assert_close(nearest, distances.amin(1).mean().detach())
    want = (1 - d).log().mean() + 0.5 * distances.amin(1).mean()
    if seeking > 0:
        other = made._random(32, 4)
        difference = made.generator_network.frame.enter(made.generator_network(other, of_noise))
        difference = difference - made.generator_network.frame.enter(generated)
        want = want + seeking * ((other - noise).abs().mean(1) / (difference.abs().mean(1) + 1e-3)).mean()
    torch.testing.assert_close(got, want)


def test_mismatched_labels_never_match_and_reach_every_class(generator: torch.Generator):
    labels = torch.arange(5).repeat_interleave(400)
    shuffled = mismatched_labels(labels, 5, generator=generator)
    table = torch.zeros(5, 5, dtype=torch.int64).index_put_((labels, shuffled), torch.tensor(1), accumulate=True)
    assert (table.diagonal() == 0).all()
    assert (table + 400 * torch.eye(5, dtype=torch.int64) > 60).all()
    with pytest.raises(ValueError, match="num_classes must be at least 2 for a label to be mismatched, got 1"):
        mismatched_labels(torch.zeros(3, dtype=torch.int64), 1, generator=generator)


def test_box_is_the_batch_s_own(generator: torch.Generator):
    batch = torch.tensor([[0.0, -1.0], [2.0, 1.0], [1.0, 0.0]])
    drawn = uniform_in_box(batch, 5000, generator=generator)
    assert drawn.amin(0).tolist() == pytest.approx([0.0, -1.0], abs=0.01)
    assert drawn.amax(0).tolist() == pytest.approx([2.0, 1.0], abs=0.01)
    assert drawn.mean(0).tolist() == pytest.approx([1.0, 0.0], abs=0.03)


def test_gaussian_features_are_the_unlikely_ones(generator: torch.Generator):
    """Farther from their class mean, by its covariance, than a draw is."""
    features, labels = clusters(rows=2000, width=3)
    features[:, 1] *= 20
    statistics = FeatureBank(features, labels).statistics
    drawn = LowDensityGaussian(statistics, candidates=32).sample(labels[:1000], generator=generator)
    means = torch.stack([features[labels == c].mean(0) for c in range(2)])
    within = (features - means[labels]).double()
    inverse = torch.linalg.inv(within.T @ within / len(within))
    away = (drawn - means[labels[:1000]]).double()
    distance = (away @ inverse * away).sum(1)
    assert distance.median() > 7.8  # the 95 % quantile of a χ² of three
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        LowDensityGaussian(statistics, candidates=0)


def test_hard_features_score_lower_than_what_they_came_from():
    """RSM steps down D's slope in feature space and through the noise."""
    features, labels = clusters()
    made = training(features, labels, replace(SMALL, epsilon=0.05))
    for _ in range(20):
        made.step()
    before = made.generator.get_state()
    hard, of_hard = made.hard_features(400)
    made.generator.set_state(before)
    with torch.no_grad():
        plain = made.generator_network(*made._noise(400))
        change = made.discriminator(hard, of_hard) - made.discriminator(plain, of_hard)
    for half in (change[:200], change[200:]):
        assert (half < 1e-4).float().mean() > 0.95
        assert half.mean() < -1e-3


def test_step_down_has_the_asked_length():
    moved = step_down(torch.zeros(2, 3), lambda x: x @ torch.tensor([1.0, -5.0, 0.0]), torch.tensor([[0.1], [0.2]]))
    torch.testing.assert_close(moved, torch.tensor([[-0.1, 0.1, 0.0], [-0.2, 0.2, 0.0]]))
    assert not moved.requires_grad


def test_score_is_one_minus_the_product_in_the_log_domain(generator: torch.Generator):
    logits = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    d = torch.randn(50, generator=generator, dtype=torch.float64)
    product = logits.softmax(1).amax(1) * d.sigmoid()
    torch.testing.assert_close(boundary_score(logits, d), -product.log())
    # Both factors round to 1 in float64.
    sure = boundary_score(torch.tensor([[90.0, 0.0], [80.0, 0.0]]), torch.tensor([95.0, 95.0]))
    assert 0 < sure[0] < sure[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConditionalDiscriminator(0, 3), "num_features must be at least 1, got 0"),
        (lambda: ConditionalDiscriminator(4, 3, conditioning="film"), "conditioning must be one of .*, got 'film'"),
        (lambda: ConditionalGenerator(4, 3, noise_dim=0), "noise_dim must be at least 1, got 0"),
        (lambda: BoundarySettings(steps=0), "steps must be at least 1, got 0"),
        (lambda: BoundarySettings(nearest_weight=-1.0), "nearest_weight must be finite and at least 0, got -1.0"),
        (lambda: BoundarySettings(learning_rate=math.inf), "learning_rate must be finite and above 0, got inf"),
        (
            lambda: BoundarySettings(sampling="normal"),
            "sampling must be one of uniform, gaussian, got 'normal'",
        ),
    ],
)
def test_settings_errors_name_the_field(make: object, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_bank_in_a_file_is_the_same_and_mapped(tmp_path: Path):
    features, labels = clusters(rows=50)
    labels[7] = -1
    batches = list(zip(features.split(16), labels.split(16), strict=True))
    held = FeatureBank.collect(batches)
    mapped = FeatureBank.collect(batches, tmp_path / "bank.f32")
    assert (tmp_path / "bank.f32").stat().st_size == 49 * 2 * 4
    for bank in (held, mapped):
        assert torch.equal(bank.features, features[labels >= 0])
        assert torch.equal(bank.labels, labels[labels >= 0])
    torch.testing.assert_close(held.mean, held.features.mean(0))
    torch.testing.assert_close(held.scale, held.features.std(0, correction=0))
    for file in (None, tmp_path / "none.f32"):
        with pytest.raises(ValueError, match="there must be at least one"):
            FeatureBank.collect([], file)
    broken = features.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in 1 rows, the first is row 3"):
        FeatureBank(broken, labels)


def test_training_closes_the_boundary_around_the_data():
    """D accepts the classes under their own labels, but not under each other's, nor what lies between them."""
    features, labels = clusters(rows=512)
    settings = replace(SMALL, steps=200, batch_size=128, hidden=64, noise_dim=8, learning_rate=2e-3)
    made = training(features, labels, settings)
    while made.steps < made.total_steps:
        made.step()
    discriminator = made.discriminator.requires_grad_(False)
    right = discriminator(features, labels).sigmoid().mean()
    assert right > 0.45
    assert discriminator(features, 1 - labels).sigmoid().mean() < 0.1
    between = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    for label in (0, 1):
        assert discriminator(between, torch.full((3,), label)).sigmoid().mean() < 0.6 * right


def test_training_goes_on_exactly_where_it_was():
    features, labels = clusters()
    whole = training(features, labels)
    for _ in range(3):
        whole.step()
    networks = {name: getattr(whole, name).state_dict() for name in ("discriminator", "generator_network")}
    networks, state = deepcopy((networks, whole.state_dict()))
    resumed = training(features, labels, seed=9)
    for name, weights in networks.items():
        getattr(resumed, name).load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [whole.step() for _ in range(3)] == [resumed.step() for _ in range(3)]


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        pytest.param(torch.randn(40, 3), torch.zeros(40, dtype=torch.int64), id="single class"),
        pytest.param(torch.randn(4, 3), torch.arange(4), id="one sample in each class"),
        pytest.param(torch.full((40, 3), 2.5), torch.arange(40) % 4, id="constant features"),
        pytest.param(torch.randn(40, 1), torch.arange(40) % 4, id="one feature"),
        pytest.param(torch.randn(40, 3), torch.tensor([0, 3]).repeat(20), id="a class without a sample"),
    ],
)
def test_odd_banks_train(features: Tensor, labels: Tensor):
    made = training(features, labels)
    losses = [made.step() for _ in range(5)]
    assert all(math.isfinite(one.discriminator) and math.isfinite(one.generator) for one in losses)
    assert made.discriminator(features, labels).isfinite().all()


def test_gaussian_trivial_features_train():
    made = training(*clusters(), replace(SMALL, sampling="gaussian"))
    trivial, labels = made.trivial_features(made.bank.features[:30], 20)
    assert trivial.shape == (20, 2)
    assert set(labels.tolist()) <= {0, 1}
    assert math.isfinite(made.step().discriminator)


@pytest.mark.parametrize("features", [torch.randn(4, 3), torch.full((4, 3), 2.5)], ids=["one sample", "constant"])
def test_classes_without_spread_have_no_gaussian(features: Tensor):
    """The error says what does work."""
    with pytest.raises(ValueError, match=r"sampling 'gaussian' needs features that vary within a class"):
        training(features, torch.arange(4), replace(SMALL, sampling="gaussian"))


def test_labels_beyond_the_discriminator_are_named():
    draws = torch.Generator().manual_seed(0)
    discriminator, imitator = build_gan(2, 2, SMALL, generator=draws)
    bank = FeatureBank(torch.randn(3, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels must be below the 2 classes of the discriminator, got 2"):
        BoundaryTraining(bank, discriminator=discriminator, generator_network=imitator, settings=SMALL, generator=draws)


def test_a_loss_that_is_not_finite_moves_nothing():
    made = training(*clusters())
    with torch.no_grad():
        made.discriminator.output.bias.fill_(math.nan)
    weights = made.generator_network.body[0].weight.clone()
    with pytest.raises(FloatingPointError, match="the discriminator's loss is nan"):
        made.step()
    assert torch.equal(made.generator_network.body[0].weight, weights)
    assert made.steps == 0
