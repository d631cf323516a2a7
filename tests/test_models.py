"""Networks: shapes, sizes, determinism, errors."""

import pytest
import torch

from fastood.models import MODEL_NAMES, ModelConfig, build_model


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1", "wrn-16-2"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 17)])
def test_logits_are_the_head_of_the_features(name: str, channels: int, size: int, generator: torch.Generator):
    model = build_model(name, num_classes=5, in_channels=channels, image_size=size).eval()
    images = torch.randn(3, channels, size, size, generator=generator)
    features = model.features(images)
    assert features.shape == (3, model.feature_dim)
    assert model(images).shape == (3, 5)
    torch.testing.assert_close(model(images), model.head(features))
    torch.testing.assert_close(model.forward_outputs(images), (model(images), features))


@pytest.mark.parametrize(
    ("name", "millions"), [("wrn-16-4", 2.7), ("wrn-28-10", 36.5), ("wrn-40-2", 2.2), ("wrn-40-4", 8.9)]
)
def test_wide_resnets_have_the_sizes_of_their_paper(name: str, millions: float):
    with torch.device("meta"):
        model = build_model(name, num_classes=10, in_channels=3, image_size=32)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1"])
def test_weights_follow_the_generator(name: str):
    def weights(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        model = build_model(name, num_classes=3, in_channels=1, image_size=16, generator=generator)
        return torch.nn.utils.parameters_to_vector(model.parameters())

    before = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1"])
def test_dropout_is_used_in_training_only(name: str, generator: torch.Generator):
    model = build_model(name, num_classes=3, in_channels=1, image_size=8, dropout=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.randn(4, 1, 8, 8, generator=generator)
    with torch.random.fork_rng():
        assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet"}, "no model is named 'resnet'; known: " + ", ".join(MODEL_NAMES)),
        ({"name": "wrn-40"}, "no model is named"),
        ({"name": "wrn-41-4"}, "depth must be 6n"),
        ({"name": "wrn-40-0"}, "widen must be at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"image_size": 7}, "image_size must be at least 8"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str):
    arguments = {"name": "small-cnn", "num_classes": 2, "in_channels": 1, "image_size": 8} | change
    with pytest.raises(ValueError, match=message):
        build_model(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet"}, "model.name: no model is named 'resnet'"),
        ({"name": "wrn-41-4"}, "model.name: depth must be 6n"),
        ({"dropout": 1.0}, r"model.dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_config_errors_name_the_option(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**change)
