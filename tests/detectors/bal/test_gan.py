"""The networks of BAL and the frame they work in, and whether the generator keeps its spread."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from fastood.detectors.bal import ConditionalDiscriminator, ConditionalGenerator, FeatureBank, FeatureFrame
from fastood.detectors.bal.build import build_gan
from fastood.detectors.bal.coverage import generator_coverage
from fastood.detectors.bal.gan import Conditioning
from tests.detectors.bal.test_trainer import SMALL, clusters, training


def test_networks_condition_on_the_label(generator: torch.Generator):
    for conditioning in get_args(Conditioning):
        discriminator = ConditionalDiscriminator(6, 3, hidden=8, conditioning=conditioning, generator=generator)
        with torch.no_grad():
            for weight in discriminator.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        row = torch.randn(1, 6, generator=generator).expand(3, 6)
        logits = discriminator(row, torch.arange(3))
        assert len(set(logits.tolist())) == 3
        # A row's logit does not depend on what stands beside it.
        torch.testing.assert_close(discriminator(row[:1], torch.tensor([1])), logits[1:2])
    imitator = ConditionalGenerator(6, 3, noise_dim=4, hidden=8, generator=generator)
    assert len(set(imitator(torch.ones(3, 4), torch.arange(3))[:, 0].tolist())) == 3


def test_distance_refuses_what_is_far_in_every_direction(generator: torch.Generator):
    """Others go on rising along some, whatever the negatives were."""
    far = 1e4 * torch.nn.functional.normalize(torch.randn(200, 6, generator=generator), dim=1)
    labels = torch.arange(200) % 3
    worst = {}
    for conditioning in get_args(Conditioning):
        discriminator = ConditionalDiscriminator(6, 3, hidden=32, conditioning=conditioning, generator=generator)
        worst[conditioning] = discriminator(far, labels).amax().item()
    assert worst["distance"] < -1e3
    assert min(worst["projection"], worst["concatenation"]) > 1e2


def test_frame_has_unit_width_along_the_axes_within_classes(generator: torch.Generator):
    features, labels = clusters(rows=3000, classes=3, width=4)
    features = features @ torch.randn(4, 4, generator=generator)
    bank = FeatureBank(features, labels)
    frame = FeatureFrame(4)
    frame.fit(bank)
    inside = frame.enter(features)
    torch.testing.assert_close(inside.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(frame.axes @ frame.axes.T, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(frame.leave(inside), features, atol=1e-4, rtol=1e-4)
    # Within classes the axes are uncorrelated.
    within = inside - torch.stack([inside[labels == c].mean(0) for c in range(3)])[labels]
    covariance = within.T @ within / len(within)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4
    frame.fit(bank, "features")
    torch.testing.assert_close(frame.enter(features), bank.standardized(features))
    with pytest.raises(ValueError, match="axes must be one of principal, features, got 'pixels'"):
        frame.fit(bank, "pixels")


def test_a_narrow_direction_is_not_blown_up(generator: torch.Generator):
    """Rounding along a feature that is constant but for it has no say."""
    features = torch.randn(500, 2, generator=generator)
    features[:, 1] = 1 + 1e-6 * features[:, 1]
    frame = FeatureFrame(2)
    frame.fit(FeatureBank(features, torch.zeros(500, dtype=torch.int64)))
    assert frame.enter(features)[:, frame.scale.argmin()].abs().max() < 1e-3
    frame.fit(FeatureBank(torch.ones(5, 2), torch.zeros(5, dtype=torch.int64)))
    assert frame.scale.tolist() == [1.0, 1.0]


def test_mode_seeking_keeps_the_generator_spread():
    features, labels = clusters(rows=512, width=16)
    spreads = {}
    for weight in (0.0, 3.0):
        settings = replace(SMALL, steps=150, hidden=32, learning_rate=2e-3, mode_seeking_weight=weight)
        made = training(features, labels, settings)
        while made.steps < made.total_steps:
            made.step()
        reached = generator_coverage(made.generator_network, made.bank, generator=torch.Generator().manual_seed(0))
        spreads[weight] = reached.spread
    assert spreads[3.0] > 2 * spreads[0.0]
    assert spreads[3.0] > 0.5


def test_initial_weights_come_from_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (
        build_gan(6, 3, SMALL, generator=torch.Generator().manual_seed(1)),
        build_gan(6, 3, SMALL, generator=torch.Generator().manual_seed(1)),
    )
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(first, second, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])


def test_coverage_tells_a_faithful_generator_from_a_collapsed_one(generator: torch.Generator):
    """Generators that repeat their noise, or nothing at all, of features that are that noise."""

    class Repeat(ConditionalGenerator):
        scale = 1.0

        def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
            return self.scale * noise + 5 * labels[:, None]

    labels = torch.arange(600) % 2
    bank = FeatureBank(torch.randn(600, 4, generator=generator) + 5 * labels[:, None], labels)
    faithful = Repeat(4, 2, noise_dim=4)
    collapsed = Repeat(4, 2, noise_dim=4)
    collapsed.scale = 0.0
    good = generator_coverage(faithful, bank, generator=generator)
    bad = generator_coverage(collapsed, bank, generator=generator)
    assert good.coverage > 0.9
    assert good.spread == pytest.approx(1, abs=0.1)
    assert bad.coverage < 0.2
    assert bad.spread == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="bank must have a class with at least two features, got none"):
        generator_coverage(faithful, FeatureBank(torch.randn(2, 4), torch.arange(2)), generator=generator)
