"""Detectors take pytorch-ood's calls as they are, and score as its detectors do."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood import detectors as ours

theirs = pytest.importorskip("pytorch_ood.detector")

CLASSES, CHANNELS = 4, 12


class Network(nn.Module):
    """A classifier with the parts that pytorch-ood takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, CHANNELS, 3, stride=2), nn.ReLU())
        self.fc = nn.Linear(CHANNELS, CLASSES)
        nn.init.normal_(self.fc.weight, std=2.0)

    def feature_maps(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def features(self, x: Tensor) -> Tensor:
        return self.feature_maps(x).mean((2, 3))

    def forward_feature_maps(self, maps: Tensor) -> Tensor:
        return self.fc(maps.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_feature_maps(self.feature_maps(x))


NET = Network().eval()
DRAWS = torch.Generator().manual_seed(1)


def images(n: int) -> Tensor:
    colour = torch.rand(n, 3, 1, 1, generator=DRAWS)
    return colour + torch.randn(n, 3, 9, 9, generator=DRAWS) * torch.rand(n, 1, 1, 1, generator=DRAWS)


TRAIN, TEST = images(400), images(150)
with torch.no_grad():
    NET.fc.bias.copy_(-(NET.fc.weight @ NET.features(TRAIN).mean(0)))  # so that there are rows of all classes
    LABELS = NET(TRAIN).argmax(1)
assert set(LABELS.tolist()) == set(range(CLASSES))
W, B = NET.fc.weight.detach(), NET.fc.bias.detach()

Call = Callable[[ModuleType], Any]


def is_head(name: str) -> bool:
    return name == "fc.weight"


STD = [0.5, 0.25, 0.3]

EQUAL: dict[str, Call] = {
    "EnergyBased": lambda of: of.EnergyBased(NET),
    "EnergyBased t": lambda of: of.EnergyBased(NET, 2.0),
    "EnergyBased t=": lambda of: of.EnergyBased(model=NET, t=2.0),
    "MaxLogit": lambda of: of.MaxLogit(NET),
    "Entropy": lambda of: of.Entropy(model=NET),
    "KLMatching": lambda of: of.KLMatching(NET),
    "KNN": lambda of: of.KNN(NET.features),
    "KNN k": lambda of: of.KNN(NET.features, 5, False),
    "KNN k=": lambda of: of.KNN(encoder=NET.features, k=5),
    "ViM": lambda of: of.ViM(NET.features, 5, W, B),
    "ViM d=": lambda of: of.ViM(encoder=NET.features, d=5, w=W, b=B),
    "DICE": lambda of: of.DICE(NET.features, W, B, 0.7),
    "DICE p=": lambda of: of.DICE(encoder=NET.features, w=W, b=B, p=0.5, detector=of.MaxLogit.score),
    "SHE": lambda of: of.SHE(NET.features, NET.fc),
    "SHE head=": lambda of: of.SHE(encoder=NET.features, head=lambda z: NET.fc(z)),
    "ReAct": lambda of: of.ReAct(NET.feature_maps, NET.forward_feature_maps),
    "ReAct pooled": lambda of: of.ReAct(NET.features, NET.fc, None, 0.7),
    "ReAct threshold": lambda of: of.ReAct(NET.feature_maps, NET.forward_feature_maps, 0.4),
    "ReAct detector=": lambda of: of.ReAct(
        backbone=NET.feature_maps, head=NET.forward_feature_maps, percentile=0.8, detector=of.Entropy.score
    ),
    "ASH": lambda of: of.ASH(NET.feature_maps, NET.forward_feature_maps, "ash-s", 0.65),
    "ASH p": lambda of: of.ASH(NET.feature_maps, NET.forward_feature_maps, "ash-p", 0.8),
    "ASH b": lambda of: of.ASH(
        backbone=NET.feature_maps,
        head=NET.forward_feature_maps,
        variant="ash-b",
        percentile=0.6,
        detector=of.EnergyBased.score,
    ),
    "SCALE": lambda of: of.SCALE(NET.feature_maps, NET.forward_feature_maps, 0.65),
    "SCALE percentile=": lambda of: of.SCALE(
        backbone=NET.feature_maps, head=NET.forward_feature_maps, percentile=0.8, detector=of.EnergyBased.score
    ),
    "GradNorm": lambda of: of.GradNorm(NET, is_head, 16, 2.0),
    "GradNorm param_filter=": lambda of: of.GradNorm(model=NET, param_filter=is_head),
}
"""Calls whose scores are theirs to the rounding of float32."""

RANKED: dict[str, Call] = {
    "MaxSoftmax": lambda of: of.MaxSoftmax(NET),
    "MaxSoftmax t": lambda of: of.MaxSoftmax(NET, 3.0),
    "MaxSoftmax t=": lambda of: of.MaxSoftmax(NET, t=3.0),
    "ODIN": lambda of: of.ODIN(NET, F.cross_entropy, 0.01, 5.0, STD),
    "ODIN eps=": lambda of: of.ODIN(NET, eps=0.01, norm_std=STD, temperature=5.0),
    "Mahalanobis": lambda of: of.Mahalanobis(NET.features),
    "Mahalanobis encoder=": lambda of: of.Mahalanobis(encoder=NET.features),
    "RMD": lambda of: of.RMD(NET.features),
    "MahalanobisODIN": lambda of: of.MahalanobisODIN(NET.features, 0.01, STD),
    "MahalanobisODIN eps=": lambda of: of.MahalanobisODIN(encoder=NET.features, eps=0.01, norm_std=STD),
    "MultiMahalanobis": lambda of: of.MultiMahalanobis([NET.first, NET.second], [1.0, 0.3]),
    "MultiMahalanobis alpha=": lambda of: of.MultiMahalanobis(model=[NET.first, NET.second], alpha=[0.2, 1.0]),
    "GEN": lambda of: of.GEN(NET, 0.5),
    "GEN M": lambda of: of.GEN(NET, 0.1, 3),
    "GEN M=": lambda of: of.GEN(model=NET, gamma=0.5, M=3),
}
"""Calls whose scores are increasing functions of theirs: log-odds, distances not divided by 2N, sums for means."""


def loader() -> list[tuple[Tensor, Tensor]]:
    return list(zip(TRAIN.split(100), LABELS.split(100), strict=True))


def both(call: Call) -> tuple[Tensor, Tensor]:
    found = []
    for of in (ours, theirs):
        detector = call(of)
        if getattr(detector, "threshold", None) is None and getattr(detector, "_state", None) != {"threshold": 0.4}:
            detector.fit(loader())
        found.append(detector.predict(TEST.clone()).detach().double())
    return found[0], found[1]


@pytest.mark.parametrize("name", EQUAL)
def test_the_same_call_gives_the_same_scores(name: str) -> None:
    found, want = both(EQUAL[name])
    torch.testing.assert_close(found, want, rtol=2e-4, atol=2e-4 * float(want.std()))


@pytest.mark.parametrize("name", RANKED)
def test_the_same_call_gives_the_same_ranks(name: str) -> None:
    found, want = both(RANKED[name])
    ranks = torch.stack([part.argsort().argsort().double() for part in (found, want)])
    assert float(torch.corrcoef(ranks)[0, 1]) >= 0.9999


def test_scores_of_logits() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    for name, arguments in [("EnergyBased", (2.0,)), ("MaxLogit", ()), ("Entropy", ())]:
        found = getattr(ours, name).score(logits, *arguments)
        torch.testing.assert_close(found, getattr(theirs, name).score(logits, *arguments).double())
    for name, arguments in [("MaxSoftmax", (2.0,)), ("GEN", (0.5, 3))]:
        found = getattr(ours, name).score(logits, *arguments)
        assert torch.equal(found.argsort(), getattr(theirs, name).score(logits, *arguments).argsort())
    fitted = ours.KLMatching(None).fit_logits(logits)
    torch.testing.assert_close(
        fitted.predict_logits(logits),
        theirs.KLMatching(None).fit_logits(logits).predict_logits(logits).double(),
        rtol=1e-4,
        atol=1e-6,
    )


def test_feature_maps_by_themselves() -> None:
    maps, new = NET.feature_maps(TRAIN).detach(), NET.feature_maps(TEST).detach()
    found = ours.ReAct(None, NET.forward_feature_maps).fit_feature_maps(maps, LABELS).predict_feature_maps(new)
    want = theirs.ReAct(None, NET.forward_feature_maps).fit_feature_maps(maps, LABELS).predict_feature_maps(new)
    torch.testing.assert_close(found, want.double(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"the head must take features of shape \(400, 12\), but fails"):
        ours.ReAct(None, NET.forward_feature_maps, 0.5).predict_features(maps.mean((2, 3)))


def test_own_calls_stay() -> None:
    """The second argument is the name of a layer, or none."""
    assert repr(ours.KNN(NET, "second", k=7)) == repr(ours.KNN(NET, None, k=7)) == "KNN(k=7, normalize=True)"
    assert ours.ReAct(NET, "second", head=NET.fc).head is NET.fc
    assert ours.ViM(NET, "second", principal=3).principal == 3
    assert ours.DICE(None, None, head=NET.fc).head is NET.fc
    assert repr(ours.ASH(NET)) == "ASH(variant='s', percentile=0.9)"
    assert repr(ours.SCALE(NET)) == "SCALE(percentile=0.85)"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: ours.EnergyBased(NET, t=2.0, temperature=2.0), TypeError, "takes temperature, or t under pytorch-ood"),
        (lambda: ours.EnergyBased(NET, 2.0, temperature=3.0), TypeError, "EnergyBased takes temperature, or t under"),
        (lambda: ours.EnergyBased(NET, 2.0, t=3.0), TypeError, "EnergyBased got multiple values for argument 't'"),
        (lambda: ours.EnergyBased(NET, 2.0, 3.0), TypeError, "takes at most 2 positional arguments, got 3"),
        (
            lambda: ours.EnergyBased(model=NET, encoder=NET),
            TypeError,
            "takes model, or encoder under pytorch-ood",
        ),
        (lambda: ours.ViM(NET, w=W, b=B, head=NET.fc), TypeError, "takes head, or w and b under pytorch-ood's name"),
        (lambda: ours.ViM(NET, 5, W, B[:2]), TypeError, r"b must be the biases \[4\] of the head, .* got shape \(2,\)"),
        (lambda: ours.ViM(NET, 5, NET.fc, B), TypeError, r"w must be the floating-point weights .* got Linear"),
        (lambda: ours.ODIN(NET, nn.MSELoss()), ValueError, r"criterion must be None or the cross-entropy, .*MSELoss"),
        (lambda: ours.ODIN(NET, nn.CrossEntropyLoss(label_smoothing=0.1)), ValueError, "criterion must be None or the"),
        (lambda: ours.GradNorm(NET, lambda name: "fc" in name), ValueError, r"weights of the head alone \(fc.weight\)"),
        (lambda: ours.GradNorm(NET.features, is_head), TypeError, r"model must be an nn\.Module to find its head"),
        (lambda: ours.ASH(NET.features, NET.fc, "ash-x"), ValueError, 'variant must be "s", "p" or "b", got \'ash-x\''),
        (lambda: ours.ReAct(NET.features, 3), TypeError, "head must be an nn.Linear or another function of features"),
        (lambda: ours.DICE(NET.features, head=NET.forward), TypeError, r"head must be an nn\.Linear, got method"),
        (lambda: ours.KNN(NET, "second", 5), TypeError, "positional argument"),
        # pytorch-ood hands it to scikit-learn and scores by the k-th neighbour all the same.
        (lambda: ours.KNN(NET.features, n_neighbors=5), TypeError, "unexpected keyword argument 'n_neighbors'"),
        (lambda: ours.ViM(NET, 5, W), TypeError, "ViM takes w together with b, got w alone: pass b=None for a head"),
        (lambda: ours.KNN(NET.features, algorithm="brute"), TypeError, "unexpected keyword argument 'algorithm'"),
        (lambda: ours.MultiMahalanobis(NET), TypeError, "model must be a sequence of modules, got Network"),
        (lambda: ours.MultiMahalanobis([]), ValueError, "model must hold at least one module, got none"),
        (lambda: ours.MultiMahalanobis([NET.first, "x"]), TypeError, "a sequence of modules, got one with str"),
        (
            lambda: ours.MultiMahalanobis([NET.first], [1, 2]),
            ValueError,
            "alpha must have one weight for each of the 1",
        ),
    ],
)
def test_calls_that_contradict_themselves(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_functions_do_not_go_into_files(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    shaped = ours.ReAct(NET.feature_maps, NET.forward_feature_maps).fit(loader())
    shaped.save(path)
    with pytest.raises(ValueError, match="was written with a function as the head, which a file cannot store: pass"):
        ours.ReAct.load(path)
    with pytest.raises(ValueError, match="was written with another head"):
        ours.ReAct.load(path, head=NET.fc)
    restored = ours.ReAct.load(path, NET.feature_maps, head=NET.forward_feature_maps)
    assert torch.equal(restored.predict(TEST), shaped.predict(TEST))
    dice = ours.DICE(NET.features, W, B, 0.5, ours.MaxLogit.score).fit(loader())
    with pytest.raises(ValueError, match="detector is a function, which cannot be saved"):
        dice.save(path)
    with pytest.raises(ValueError, match=r"detector must map logits \[N, K\] to a tensor of scores \[N\], got shape"):
        ours.ASH(NET.features, NET.fc, detector=lambda logits: logits).predict(TEST)
    several = ours.MultiMahalanobis([NET.first, NET.second], [0.5, 2.0]).fit(loader())
    several.save(path)
    again = ours.MultiMahalanobis.load(path, [NET.first, NET.second])
    assert torch.equal(again.predict(TEST), several.predict(TEST))
    relative = ours.RMD(NET.features).fit(loader())
    relative.save(path)
    assert torch.equal(ours.RMD.load(path, NET.features).predict(TEST), relative.predict(TEST))
