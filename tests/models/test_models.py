"""Networks: shapes, sizes, determinism, errors."""

import inspect

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import conv2d, linear, max_pool2d
from torch.utils.flop_counter import FlopCounterMode

from fastood.models import MODEL_FAMILIES, MODEL_NAMES, ModelConfig, ModelFamily, build_model

# One small network of each family; those of a fixed size are all there is.
SMALL = (
    "small-cnn",
    "lenet-5",
    "oe-cnn",
    "wrn-10-1",
    "resnet-18",
    "resnet-18-imagenet-stem",
    "densenet-7-4",
    "densenet-bc-10-4",
    "torchvision:shufflenet_v2_x0_5",
)


def family_of(name: str) -> ModelFamily:
    (family,) = (family for family in MODEL_FAMILIES if family.parts(name) is not None)
    return family


def build(name: str, *, channels: int | None = None, size: int | None = None, seed: int = 0, dropout: float = 0.0):
    family = family_of(name)
    return build_model(
        name,
        num_classes=5,
        in_channels=channels or family.in_channels or 1,
        image_size=size or max(32, family.min_image_size),
        dropout=dropout,
        generator=torch.Generator().manual_seed(seed),
    )


def images_for(name: str, generator: torch.Generator, size: int = 32, number: int = 4) -> torch.Tensor:
    return torch.randn(number, family_of(name).in_channels or 1, size, size, generator=generator)


def test_every_family_is_tried():
    assert [family_of(name) for name in SMALL] == list(MODEL_FAMILIES)
    assert [family_of(family.example) for family in MODEL_FAMILIES] == list(MODEL_FAMILIES)
    config = inspect.getsource(ModelConfig)
    assert [name for name in MODEL_NAMES if name not in config] == [], "the help of --model.name lacks these"


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_head_of_the_features(name: str, generator: torch.Generator):
    family = family_of(name)
    for channels, size in ((family.in_channels or 1, family.min_image_size), (3, family.min_image_size + 17)):
        model = build(name, channels=channels, size=size)
        images = torch.randn(3, channels, size, size, generator=generator)
        assert model(images).shape == (3, 5), "in training, too, where BatchNorm wants more than one value"
        model.eval()
        features = model.features(images)
        assert features.shape == (3, model.feature_dim)
        logits = model(images)
        torch.testing.assert_close(logits, model.head(features), rtol=0, atol=0)
        torch.testing.assert_close(model.forward_outputs(images), (logits, features), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns(name: str, generator: torch.Generator):
    model = build(name)
    model(images_for(name, generator)).square().sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_the_head_can_be_replaced(name: str, generator: torch.Generator):
    model = build(name).eval()
    images = images_for(name, generator)
    model.head = nn.Identity()
    assert torch.equal(model(images), model.features(images))


@pytest.mark.parametrize(
    ("name", "channels", "millions"),
    [
        ("wrn-16-4", 3, 2.7),  # Zagoruyko & Komodakis 2016, Tables 3 and 5
        ("wrn-28-10", 3, 36.5),
        ("wrn-40-2", 3, 2.2),
        ("wrn-40-4", 3, 8.9),
        ("densenet-40-12", 3, 1.0),  # Huang et al. 2017, Table 2
        ("densenet-100-12", 3, 7.0),
        ("densenet-bc-100-12", 3, 0.8),
    ],
)
def test_sizes_are_those_of_the_papers(name: str, channels: int, millions: float):
    assert count(name, channels=channels) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "channels", "number"),
    [
        ("lenet-5", 1, 61_706),
        ("oe-cnn", 1, 21_840),
        ("resnet-18", 3, 11_173_962),
        ("resnet-34", 3, 21_282_122),
        # ImageNet's 11,689,512 and 25,557,032 of torchvision's documentation, with heads of 10 classes for 1000.
        ("resnet-18-imagenet-stem", 3, 11_689_512 - 990 * 513),
        ("torchvision:resnet50", 3, 25_557_032 - 990 * 2049),
        ("densenet-bc-100-12", 3, 769_162),
    ],
)
def test_sizes_are_those_of_common_implementations(name: str, channels: int, number: int):
    assert count(name, channels=channels) == number


def count(name: str, *, channels: int) -> int:
    with torch.device("meta"):
        model = build_model(name, num_classes=10, in_channels=channels, image_size=28)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_stem_of_imagenet_saves_the_multiplications_that_it_says():
    def work(name: str) -> int:
        with torch.device("meta"):
            model = build_model(name, num_classes=10, in_channels=3, image_size=32)
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(2, 3, 32, 32))
        return counter.get_total_flops()

    assert work("resnet-18") / work("resnet-18-imagenet-stem") == pytest.approx(16, abs=2)


@pytest.mark.parametrize("name", SMALL)
def test_weights_follow_the_generator(name: str):
    def weights(seed: int) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(build(name, seed=seed).parameters())

    before = torch.get_rng_state()
    first = weights(0)
    torch.manual_seed(7)
    assert torch.equal(weights(0), first)
    torch.set_rng_state(before)
    assert not torch.equal(weights(1), first)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_used_in_training_only(name: str, generator: torch.Generator):
    model = build(name, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = images_for(name, generator)
    with torch.random.fork_rng():
        assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_gives_the_same(name: str, generator: torch.Generator):
    model = build(name).eval()
    images = images_for(name, generator)
    logits = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        model(images.contiguous(memory_format=torch.channels_last)), logits, rtol=1e-4, atol=1e-4
    )


# One of each way in which torchvision's networks end; GoogLeNet and Inception have auxiliary heads, the transformers
# depend on the size of the image.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 64),
        ("convnext_tiny", 32),
        ("densenet121", 32),
        ("efficientnet_b0", 32),
        ("googlenet", 32),
        ("inception_v3", 75),
        ("maxvit_t", 224),
        ("mnasnet0_5", 32),
        ("mobilenet_v3_small", 32),
        ("regnet_y_400mf", 32),
        ("swin_t", 224),
        ("vit_b_32", 256),
    ],
)
def test_networks_of_torchvision_are_split_at_their_head(name: str, size: int, generator: torch.Generator):
    model = build_model(f"torchvision:{name}", num_classes=7, in_channels=3, image_size=size, generator=generator)
    images = torch.randn(2, 3, size, size, generator=generator)
    with torch.no_grad():
        assert isinstance(model.train()(images), torch.Tensor), "no outputs of auxiliary heads"
        logits, features = model.eval().forward_outputs(images)
    assert features.shape == (2, model.feature_dim)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "resnet-18-imagenet-stem"])
def test_resnets_compute_what_torchvision_does(name: str, generator: torch.Generator):
    model = build_model(name, num_classes=7, in_channels=3, image_size=32, generator=generator).eval()
    peer = torchvision.models.resnet18(num_classes=7).eval()
    weights = {key.removeprefix("body.").replace("head.", "fc."): value for key, value in model.state_dict().items()}
    peer.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    torch.testing.assert_close(model(images), peer(images), rtol=0, atol=0)


def test_densenet_bc_computes_what_torchvision_does(generator: torch.Generator):
    model = build_model("densenet-bc-16-4", num_classes=7, in_channels=3, image_size=32, generator=generator).eval()
    peer = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2, 2), num_init_features=8, num_classes=7).eval()
    peer.features.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    peer.features.norm0 = peer.features.relu0 = peer.features.pool0 = nn.Identity()
    peer.classifier = model.head
    ours = [value for key, value in model.state_dict().items() if key.startswith("body.")]
    keys = [key for key in peer.state_dict() if key.startswith("features.")]
    peer.load_state_dict(dict(zip(keys, ours, strict=True)), strict=False)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    torch.testing.assert_close(model(images), peer(images))


def test_oe_cnn_follows_the_code_of_its_authors(generator: torch.Generator):
    model = build_model("oe-cnn", num_classes=7, in_channels=1, image_size=28, generator=generator).eval()
    weights = model.state_dict()
    x = images = torch.randn(3, 1, 28, 28, generator=generator)
    for layer in ("conv1", "conv2"):
        x = max_pool2d(conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]), 2)
        x = torch.sigmoid(1.702 * x) * x
    x = linear(x.view(-1, 320), weights["linear.weight"], weights["linear.bias"])
    torch.testing.assert_close(model.features(images), torch.sigmoid(1.702 * x) * x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet"}, "no model is named 'resnet'; known: " + ", ".join(MODEL_NAMES)),
        ({"name": "wrn-40"}, "no model is named"),
        ({"name": "wrn-41-4"}, "depth must be 6n"),
        ({"name": "wrn-40-0"}, "widen must be at least 1"),
        ({"name": "resnet-50"}, "depth must be one of 18, 34, got 50"),
        ({"name": "resnet-50-imagenet-stem"}, "depth must be one of 18, 34, got 50"),
        ({"name": "densenet-100-0"}, "growth must be at least 1, got 0"),
        ({"name": "densenet-41-12"}, r"depth must be 3n \+ 4 with n >= 1 \(7, 10, …\), got 41"),
        ({"name": "densenet-bc-40-12", "num_classes": 1}, "num_classes must be at least 2"),
        ({"name": "densenet-bc-43-12"}, r"depth must be 6n \+ 4 with n >= 1 \(10, 16, …\), got 43"),
        ({"name": "lenet-5", "image_size": 11}, "image_size must be at least 12 pixels for lenet-5, got 11"),
        ({"name": "oe-cnn", "image_size": 15}, "image_size must be at least 16 pixels for oe-cnn, got 15"),
        ({"name": "resnet-18-imagenet-stem", "image_size": 16}, "image_size must be at least 17 pixels"),
        ({"name": "torchvision:resnet5O", "in_channels": 3}, "no classification network 'resnet5O'; nearest: resnet50"),
        ({"name": "torchvision:50"}, "no classification network '50'; torchvision.models.list_models"),
        ({"name": "torchvision:resnet50"}, "in_channels must be 3 for torchvision:resnet50, got 1"),
        ({"name": "torchvision:alexnet", "in_channels": 3}, "at least 63 pixels for torchvision:alexnet, got 8"),
        (
            {"name": "torchvision:squeezenet1_1", "in_channels": 3, "image_size": 32},
            "torchvision:squeezenet1_1 ends in no linear layer that could be its head",
        ),
        (
            {"name": "torchvision:vit_b_16", "in_channels": 3, "image_size": 225},
            "torchvision:vit_b_16 takes no images of 225 pixels: Input shape indivisible",
        ),
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
        ({"name": "resnet"}, "model.name: no model is named 'resnet'; known: small-cnn, lenet-5, "),
        ({"name": "wrn-41-4"}, "model.name: depth must be 6n"),
        ({"name": "resnet-50"}, "model.name: depth must be one of 18, 34"),
        ({"name": "torchvision:resnet"}, "model.name: torchvision has no classification network 'resnet'; nearest: "),
        ({"dropout": 1.0}, r"model.dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_config_errors_name_the_option(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**change)


@pytest.mark.parametrize("family", MODEL_FAMILIES, ids=lambda family: family.name)
def test_examples_are_valid_configurations(family: ModelFamily):
    assert ModelConfig(name=family.example).name == family.example


def test_dropout_is_the_familys_own_unless_it_is_given():
    assert ModelConfig(name="wrn-16-2").dropout_rate == 0.3
    assert ModelConfig(name="wrn-16-2", dropout=0.0).dropout_rate == 0.0
    assert ModelConfig(name="oe-cnn").dropout_rate == 0.5
    assert ModelConfig(name="resnet-18").dropout_rate == 0.0
