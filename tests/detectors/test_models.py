"""Detectors on whole models: layers by name, perturbed inputs, several layers, nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastood.detectors import FeatureExtractor, MahalanobisDetector, MultiLayerMahalanobisDetector
from fastood.detectors.perturbation import perturbed
from fastood.models import build_model


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def batches(generator: torch.Generator) -> Batches:
    """Four classes of colours, in float32."""

    def batch() -> tuple[Tensor, Tensor]:
        labels = torch.randint(4, (40,), generator=generator)
        colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
        return colors[labels][:, :, None, None] + 0.5 * torch.randn(40, 3, 8, 8, generator=generator), labels

    return [batch() for _ in range(3)]


def test_fit_and_predict_through_a_layer(network: nn.Sequential, batches: Batches) -> None:
    network.train()
    network[2].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    detector = MahalanobisDetector(network, "2").fit(batches)
    x = torch.cat([x for x, _ in batches])
    score = detector.predict(x)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert not score.requires_grad
    network.eval()
    features = network[:3](x).mean(dim=(2, 3)).detach()
    want = MahalanobisDetector().fit_features(features, torch.cat([y for _, y in batches]))
    torch.testing.assert_close(score, want.predict_features(features), rtol=1e-5, atol=1e-5)


def test_a_method_of_a_model_runs_in_evaluation_mode() -> None:
    model = build_model("small-cnn", num_classes=4, in_channels=3, image_size=32, dropout=0.5).train()
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    extract, x = FeatureExtractor(model.features), torch.rand(4, 3, 32, 32)
    assert torch.equal(extract(x)[0], extract(x)[0])
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_two_passes_for_ledoit_wolf(network: nn.Sequential, batches: Batches) -> None:
    detector = MahalanobisDetector(network, "4", shrinkage="ledoit_wolf").fit(batches)
    features = torch.cat([detector.extract(x) for x, _ in batches])
    want = MahalanobisDetector(shrinkage="ledoit_wolf").fit_features(features, torch.cat([y for _, y in batches]))
    torch.testing.assert_close(detector.predict_features(features), want.predict_features(features))


@pytest.mark.parametrize(
    ("build", "layer", "width"),
    [
        (lambda: torchvision.models.resnet18(weights=None), "avgpool", 512),
        (lambda: torchvision.models.resnet18(weights=None), "layer1.0.conv1", 64),
        (lambda: torchvision.models.mobilenet_v3_small(weights=None), "avgpool", 576),
        (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None), None, 1000),
        (lambda: build_model("small-cnn", num_classes=4, in_channels=3, image_size=32), "dropout", 64),
        (lambda: build_model("small-cnn", num_classes=4, in_channels=3, image_size=32).features, None, 64),
    ],
)
def test_any_model(build: Callable[[], Any], layer: str | None, width: int) -> None:
    extract = FeatureExtractor(build(), None if layer is None else [layer])
    with torch.no_grad():
        (features,) = extract(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, width)
    detector = MahalanobisDetector(build(), layer, shrinkage=0.5)
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert detector.fit([(x, torch.arange(6) % 2)]).predict(x).shape == (6,)


class Awkward(nn.Module):
    """Layers that put out what features cannot be made of, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(4, 4)
        self.pair = nn.MultiheadAttention(4, 1)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x[:, None].expand(-1, 3, -1))
        return self.pair(tokens, tokens, tokens)[0]


def test_layers_that_give_no_features() -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"layer 'tokens' must return \[N, d\] or .*, got shape \(2, 3, 4\)"):
        FeatureExtractor(Awkward(), ["tokens"])(x)
    with pytest.raises(TypeError, match="layer 'pair' must return a tensor, got tuple of 2: pass a function"):
        FeatureExtractor(Awkward(), ["pair"])(x)
    with pytest.raises(ValueError, match="layer 'unused' did not run in the forward pass"):
        FeatureExtractor(Awkward(), ["unused"])(x)
    with pytest.raises(ValueError, match=r"the model must return \[N, d\] .* got shape \(2, 3, 4\)"):
        FeatureExtractor(Awkward())(x)
    with pytest.raises(ValueError, match=r"no layer 'fc', ''; it has tokens, pair, pair\.out_proj, unused"):
        FeatureExtractor(Awkward(), ["fc", "", "tokens"])
    with pytest.raises(TypeError, match=r"model must be an nn\.Module to have layers by name, got function"):
        FeatureExtractor(lambda x: x, ["fc"])
    for layers in ("fc", []):
        with pytest.raises(ValueError, match="layers must be a sequence of one or more names"):
            FeatureExtractor(Awkward(), layers)


@pytest.mark.parametrize("settings", [{}, {"relative": True}, {"normalize": True}, {"covariance": "per_class"}])
def test_perturbation_follows_the_gradient_of_the_score(
    settings: dict[str, Any], network: nn.Sequential, batches: Batches
) -> None:
    plain = MahalanobisDetector(network, "2", **settings).fit(batches)
    x = batches[0][0][:5]
    std = (0.5, 0.25, 0.125)
    moved = MahalanobisDetector(network, "2", epsilon=1e-3, input_std=std, **settings).fit(batches)
    found = moved.perturbed(x, moved._extract) - x
    magnitude = 1e-3 / torch.tensor(std)[:, None, None].expand(5, 3, 8, 8)
    torch.testing.assert_close(found.abs(), magnitude, rtol=1e-3, atol=0)
    # Where the score changes most, its numerical derivative has the other sign than the step.
    network.eval().double()
    wide = x.double()
    derivative = torch.stack([_slope(plain, wide, channel) for channel in range(3)])
    picked = found[:, range(3), 4, 4].mT.sign()
    assert (picked == -derivative.sign()).all()
    network.float()
    assert (moved.predict(x) < plain.predict(x)).all()


def _slope(detector: MahalanobisDetector, x: Tensor, channel: int) -> Tensor:
    """Derivative of each row's score in the middle pixel of a channel, by central differences."""
    step = torch.zeros_like(x)
    step[:, channel, 4, 4] = 1e-4
    return (detector.predict(x + step) - detector.predict(x - step)) / 2e-4


def test_perturbation_needs_a_deviation_per_channel() -> None:
    with pytest.raises(ValueError, match=r"input_std must have one value per channel of \(2, 3\), got 2"):
        perturbed(torch.zeros(2, 3), lambda x: x.sum(1), 0.1, [1.0, 1.0])


def test_layers_are_fitted_in_one_pass_and_summed(network: nn.Sequential, batches: Batches) -> None:
    passes = 0

    class Counted:
        def __iter__(self) -> Any:
            nonlocal passes
            passes += 1
            return iter(batches)

    both = MultiLayerMahalanobisDetector(network, ["2", "4"], shrinkage="oas", relative=True).fit(Counted())
    assert passes == 1
    x = batches[0][0]
    for layer, score in zip(("2", "4"), both.layer_scores(x).unbind(1), strict=True):
        single = MahalanobisDetector(network, layer, shrinkage="oas", relative=True).fit(batches)
        torch.testing.assert_close(score, single.predict(x))
    torch.testing.assert_close(both.predict(x), both.layer_scores(x).sum(1))
    MultiLayerMahalanobisDetector(network, ["2"], shrinkage="ledoit_wolf").fit(Counted())
    assert passes == 3


def test_each_layer_scores_inputs_moved_by_its_own_gradient(network: nn.Sequential, batches: Batches) -> None:
    settings = {"epsilon": 0.01, "shrinkage": 0.1}
    both = MultiLayerMahalanobisDetector(network, ["1", "4"], **settings).fit(batches)
    x = batches[0][0]
    for layer, score in zip(("1", "4"), both.layer_scores(x).unbind(1), strict=True):
        torch.testing.assert_close(score, MahalanobisDetector(network, layer, **settings).fit(batches).predict(x))


def test_weights_prefer_the_layer_that_tells_apart(
    network: nn.Sequential, batches: Batches, generator: torch.Generator
) -> None:
    """Background differs in what the second layer sees; the first one's features are replaced by noise."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise, self.signal = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.noise(x[:, :4]) + self.signal(x[:, 4:])

    known = torch.randn(300, 8, generator=generator), torch.arange(300) % 2
    detector = MultiLayerMahalanobisDetector(Split(), ["noise", "signal"]).fit([known])
    with pytest.raises(ValueError, match="rows with a label below zero, got one kind"):
        detector.fit_weights([known])
    held_out = torch.randn(200, 8, generator=generator)
    held_out[100:, 4:] *= 3
    labels = torch.tensor([0] * 100 + [-1] * 100)
    detector.fit_weights([(held_out, labels)])
    assert detector.weights[1] > 3 * detector.weights[0].abs()
    score = detector.predict(held_out)
    assert (score[:100, None] < score[100:]).double().mean() > 0.9
    held_out[0] = torch.nan
    with pytest.raises(ValueError, match="the scores of every layer must be finite"):
        detector.fit_weights([(held_out, labels)])


def test_save_and_load_of_layers(network: nn.Sequential, batches: Batches, tmp_path: Path) -> None:
    detector = MultiLayerMahalanobisDetector(network, ["2", "4"], shrinkage="ledoit_wolf", normalize=True)
    for call in (lambda: detector.predict(batches[0][0]), lambda: detector.save(tmp_path / "x")):
        with pytest.raises(RuntimeError, match="not been fitted"):
            call()
    with pytest.raises(ValueError, match="there must be at least one batch to fit to"):
        detector.fit([])
    detector.fit(batches)
    detector.weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    detector.save(tmp_path / "detector.safetensors")
    restored = MultiLayerMahalanobisDetector.load(tmp_path / "detector.safetensors", network)
    assert torch.equal(restored.predict(batches[0][0]), detector.predict(batches[0][0]))
