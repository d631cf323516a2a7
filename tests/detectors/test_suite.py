"""Every detector on models of someone else's, by itself and with all others at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastood.detectors import (
    ASH,
    DETECTORS,
    DICE,
    KNN,
    ODIN,
    SHE,
    Detector,
    DetectorSuite,
    EnergyBased,
    GradNorm,
    KLMatching,
    LinearHeadModel,
    MahalanobisDetector,
    MaxSoftmax,
    ReAct,
    ViM,
    build_detectors,
)
from fastood.models import build_model

Batches = list[tuple[Tensor, Tensor]]


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 16), nn.ReLU(), nn.Linear(16, 4)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=4),
    "sequential": sequential,
    "small-cnn": lambda: build_model("small-cnn", num_classes=4, in_channels=3, image_size=16),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]()


@pytest.fixture
def batches(model: nn.Module, generator: torch.Generator) -> Batches:
    """Inputs with labels, most of them what the model says of it."""

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.rand(150, 3, 16, 16, generator=generator)
        with torch.no_grad():
            labels = model.eval()(x).argmax(1)
        labels[:5] = -1
        labels[5:10] = (labels[5:10] + 1) % 4
        return x, labels

    return [batch(), batch()]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_on_any_model(name: str, model: nn.Module, batches: Batches, tmp_path: Path) -> None:
    model.train()
    split = LinearHeadModel(model)
    detector = build_detectors(split, [name])[name]
    x = batches[0][0]
    if detector.needs_fit:
        with pytest.raises(RuntimeError, match="not been fitted"):
            detector.predict(x)
        with pytest.raises(RuntimeError, match="not been fitted"):
            detector.save(tmp_path / "x")
    assert detector.fit(batches) is detector
    scores = detector.predict(x)
    assert scores.shape == (150,)
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()
    assert scores.unique().numel() > 1
    assert not scores.requires_grad
    assert torch.equal(detector(x), scores)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    features, logits = (part.detach() for part in split(x))
    read = {"features": features, "logits": logits, "inputs": x}[detector.reads]
    torch.testing.assert_close(detector.predict_features(read), scores)
    features, logits = (torch.cat(parts).detach() for parts in zip(*(split(x) for x, _ in batches), strict=True))
    read = {"features": features, "logits": logits, "inputs": x}[detector.reads]
    again = build_detectors(split, [name])[name].fit_features(read, torch.cat([labels for _, labels in batches]))
    torch.testing.assert_close(again.predict(x), scores)


def test_one_forward_serves_all(model: nn.Module, batches: Batches) -> None:
    passes = 0

    def count(*args: object) -> None:
        nonlocal passes
        passes += 1

    split = LinearHeadModel(model)
    detectors = {name: detector.fit(batches) for name, detector in build_detectors(split).items()}
    model.register_forward_hook(count)
    x = batches[1][0]
    suite = DetectorSuite(split, build_detectors(split)).fit(batches)
    assert passes == len(batches)
    scores = suite.predict(x)
    assert passes == len(batches) + 2  # one for all, one for the inputs that ODIN has moved
    assert list(scores) == list(DETECTORS)
    for name, detector in detectors.items():
        torch.testing.assert_close(scores[name], detector.predict(x), rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
    without = DetectorSuite(split, build_detectors(split, ["msp", "vim"])).fit(batches)
    passes = 0
    torch.testing.assert_close(without.predict(x)["vim"], scores["vim"], rtol=1e-5, atol=1e-5)
    assert passes == 1


def test_two_steps_from_one_graph(batches: Batches, model: nn.Module) -> None:
    split = LinearHeadModel(model)
    both = {f"odin {epsilon}": ODIN(model, epsilon=epsilon) for epsilon in (0.01, 0.02)}
    scores = DetectorSuite(split, both).predict(batches[0][0])
    for name, detector in both.items():
        torch.testing.assert_close(scores[name], detector.predict(batches[0][0]), rtol=1e-5, atol=1e-5)


def test_suites_that_cannot_be() -> None:
    class Pixels(MaxSoftmax):
        reads = "inputs"

    split = LinearHeadModel(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="detectors must hold at least one, got none"):
        DetectorSuite(split, {})
    with pytest.raises(ValueError, match="or be an ODIN; 'mine' reads inputs"):
        DetectorSuite(split, {"mine": Pixels()})
    with pytest.raises(
        ValueError, match="detectors other than ODIN must not perturb inputs; 'moved' has an epsilon above 0"
    ):
        DetectorSuite(split, {"moved": MahalanobisDetector(split.features, epsilon=0.1)})
    with pytest.raises(ValueError, match="at least one batch to fit to, got none"):
        DetectorSuite(split, build_detectors(split, ["msp"])).fit([])
    for names in ([], ["msp", "msp"], ["softmax"]):
        with pytest.raises(ValueError, match=r"names must be one or more of msp, max-logit, .*, each once, got"):
            build_detectors(split, names)


FITTED: dict[str, Callable[..., Detector]] = {
    "EnergyBased": lambda head: EnergyBased(temperature=3.0),
    "KLMatching": lambda head: KLMatching(),
    "KNN": lambda head: KNN(k=3, normalize=False),
    "ViM": lambda head: ViM(head=head, principal=2),
    "ReAct": lambda head: ReAct(head=head, percentile=0.8),
    "ASH": lambda head: ASH(head=head, variant="b", percentile=0.5),
    "DICE": lambda head: DICE(head=head, sparsity=0.3),
    "SHE": lambda head: SHE(head=head),
    "GradNorm": lambda head: GradNorm(head=head, temperature=2.0),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FITTED)
def test_save_and_load(name: str, bias: bool, tmp_path: Path, generator: torch.Generator) -> None:
    head = nn.Linear(6, 3, bias=bias)
    rows = torch.randn(50, 3 if name in ("EnergyBased", "KLMatching") else 6, generator=generator)
    detector = FITTED[name](head).fit_features(rows, torch.arange(50) % 3)
    detector.save(tmp_path / "detector.safetensors")
    restored = type(detector).load(tmp_path / "detector.safetensors")
    assert repr(restored) == repr(detector)
    assert torch.equal(restored.predict_features(rows), detector.predict_features(rows))
    other = KNN if name != "KNN" else SHE
    with pytest.raises(ValueError, match=f"holds no {other.__name__} but a {name}"):
        other.load(tmp_path / "detector.safetensors")


def test_load_beside_a_model(batches: Batches, model: nn.Module, tmp_path: Path) -> None:
    path, x = tmp_path / "detector.safetensors", batches[0][0]
    for detector in (ReAct(model).fit(batches), ODIN(model, epsilon=0.1, input_std=[0.2, 0.2, 0.3])):
        detector.save(path)
        restored = type(detector).load(path, model)
        assert repr(restored) == repr(detector)
        assert torch.equal(restored.predict(x), detector.predict(x))
    with pytest.raises(ValueError, match="holds no ReAct but a ODIN"):
        ReAct.load(path)
    ReAct(model).fit(batches).save(path)
    with pytest.raises(ValueError, match="was written with another head than the model's"):
        ReAct.load(path, sequential())
    with pytest.raises(ValueError, match="holds no ODIN but a ReAct"):
        ODIN.load(path, model)
    MahalanobisDetector(shrinkage=0.5).fit_features(torch.randn(9, 2), torch.zeros(9).long()).save(path)
    with pytest.raises(ValueError, match="holds no KNN but a Mahalanobis detector"):
        KNN.load(path)


class Softmaxed(nn.Module):
    """A head that is not the end, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).softmax(1)


class Unused(Softmaxed):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(4, 3)


def test_heads_that_do_not_fit(generator: torch.Generator) -> None:
    x = torch.randn(5, 4, generator=generator)
    with pytest.raises(
        ValueError, match=r"the last nn\.Linear of the model, 'head', does not return the output of the"
    ):
        LinearHeadModel(Softmaxed())(x)
    model = Softmaxed()
    features, logits = LinearHeadModel(model, head=model.head)(x)
    assert torch.equal(features, x)
    assert torch.equal(logits, model.head(x))
    with pytest.raises(ValueError, match=r"the last nn\.Linear of the model, 'auxiliary', does not return"):
        LinearHeadModel(Unused())(x)
    with pytest.raises(ValueError, match=r"the input of the head must be \[N, d\], got shape \(5, 1, 4\)"):
        LinearHeadModel(nn.Linear(4, 3))(x[:, None])
    for kind in (MaxSoftmax, ODIN):
        with pytest.raises(ValueError, match=r"the model must return \[N, K\], got shape \(2, 3, 8, 8\)"):
            kind(nn.Identity()).predict(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Linear: pass head="):
        ReAct(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(TypeError, match=r"model must be an nn\.Module to find its head, got function: pass head="):
        ReAct(lambda x: x)
    with pytest.raises(TypeError, match=r"head must be an nn\.Linear, got Conv2d"):
        ViM(head=nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="ReAct needs the linear head: pass head="):
        ReAct()
    for kind in (lambda: ReAct(None, "fc", head=model.head), lambda: KNN(None, "fc")):
        with pytest.raises(ValueError, match="feature_layer needs a model, got 'fc' without one"):
            kind()
    with pytest.raises(ValueError, match=r"features must be \[N, 4\], got shape \(5, 3\)"):
        LinearHeadModel(lambda x: x, head=model.head)(x[:, :3])


def test_features_by_layer_and_head(model: nn.Module, batches: Batches) -> None:
    """Another way to the same features: by the layer before the head, and by what maps inputs to features."""
    x, split = batches[0][0], LinearHeadModel(model)
    want = ReAct(model).fit(batches).predict(x)
    found = ReAct(split.features, head=split.head).fit(batches).predict(x)
    torch.testing.assert_close(found, want)
    layer = {"ResNet": "avgpool", "Sequential": "4", "SmallCNN": "dropout"}[type(model).__name__]
    if layer != "avgpool":  # whose output [N, d, 1, 1] the mean turns into [N, d], too
        torch.testing.assert_close(ReAct(model, layer, head=split.head).fit(batches).predict(x), want)
    torch.testing.assert_close(ReAct(model, layer).fit(batches).predict(x), want)


def test_data_that_can_be_gone_through_once(batches: Batches, model: nn.Module) -> None:
    x = batches[0][0]
    want = KLMatching(model).fit(batches).predict(x)
    assert torch.equal(KLMatching(model).fit(iter(batches)).predict(x), want)
    for kind in (ViM, ReAct):
        with pytest.raises(ValueError, match="loader must allow two passes, got the iterator list_iterator"):
            kind(model).fit(iter(batches))


def test_what_cannot_be_read(generator: torch.Generator) -> None:
    head, rows, labels = nn.Linear(6, 3), torch.randn(20, 6, generator=generator), torch.arange(20) % 3
    detector = ReAct(head=head)
    for call in (lambda: detector.fit([(rows, labels)]), lambda: detector.predict(rows)):
        with pytest.raises(ValueError, match="the detector has no model: pass one, or use fit_features"):
            call()
    for bad, of_bad, message in [
        (rows[:, :5], labels, r"features must be \[N, 6\], got shape \(20, 5\)"),
        (rows, labels[:3], r"labels must have shape \(20,\)"),
        (rows, labels.float(), "labels must be int64"),
        (rows, labels - 5, "at least one row with a label of 0 or above to fit to, got none"),
        (rows.masked_fill(rows > 1, torch.nan), labels, "features must be finite, got NaN or infinity"),
        (rows.long(), labels, "features must be floating-point"),
    ]:
        detector.fit_features(rows, labels)
        before = detector.predict_features(rows)
        with pytest.raises((TypeError, ValueError), match=message):
            detector.fit_features(bad, of_bad)
        assert torch.equal(detector.predict_features(rows), before)
    rows[3, 2] = torch.nan
    for one in (detector, GradNorm(head=head)):
        assert one.predict_features(rows).isnan().tolist() == [i == 3 for i in range(20)]
    assert detector.predict_features(rows[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"features must be \[N, 6\], got shape \(20, 5\)"):
        detector.predict_features(rows[:, :5])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda head: EnergyBased(temperature=0), "temperature must be above 0 and finite, got 0"),
        (lambda head: GradNorm(head=head, temperature=-1), "temperature must be above 0 and finite, got -1"),
        (lambda head: ReAct(head=head, percentile=1.0), r"percentile must be at least 0 and below 1, got 1\.0"),
        (lambda head: ASH(head=head, percentile=-0.1), r"percentile must be at least 0 and below 1, got -0\.1"),
        (lambda head: ASH(head=head, variant="x"), 'variant must be "s", "p" or "b", got \'x\''),
        (lambda head: DICE(head=head, sparsity=1), "sparsity must be at least 0 and below 1, got 1"),
        (lambda head: ODIN(nn.Identity(), epsilon=-1), "epsilon must be finite and >= 0, got -1"),
        (lambda head: ODIN(nn.Identity(), input_std=[0.0]), "input_std must be above 0 and finite"),
    ],
)
def test_settings_out_of_range(build: Callable[[Any], Detector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(nn.Linear(6, 3))
