"""A detector that fails in a suite is named, and leaves the others their results; settings of detectors by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastood.detectors import (
    DETECTORS,
    KNN,
    ODIN,
    DetectorSuite,
    LinearHeadModel,
    MahalanobisDetector,
    MaxSoftmax,
    build_detectors,
)
from fastood.evaluate import cli as evaluate
from fastood.evaluate import detector_scores
from tests.evaluate.test_evaluate import finished  # noqa: F401 - a fixture


def split_model() -> LinearHeadModel:
    torch.manual_seed(0)
    return LinearHeadModel(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))


def batch(n: int = 80) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


def test_the_snippet_of_the_readme_on_few_rows() -> None:
    """ViM's 256 directions are more than 64 rows span."""
    model = LinearHeadModel(torchvision.models.resnet18(num_classes=4))
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    suite = DetectorSuite(model, build_detectors(model))
    message = r"'vim' is left out: ValueError: ViM: principal=256 leaves no residual space.* span 64 of 512 dimensions"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        suite.fit([(images, torch.arange(64) % 4)])
    assert len(warned) == 1
    assert list(suite.failed) == ["vim"]
    assert isinstance(suite.failed["vim"], ValueError)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = suite.predict(images)
    assert list(scores) == [name for name in DETECTORS if name != "vim"]
    for name in ("msp", "knn", "odin", "react"):
        want = build_detectors(model, [name])[name].fit([(images, torch.arange(64) % 4)]).predict(images)
        torch.testing.assert_close(scores[name], want, rtol=1e-5, atol=1e-5)


class Failing(MaxSoftmax):
    """Fails where it is told to."""

    needs_fit = True
    error: Exception | None = None

    def _fitted(self, batches: Any) -> dict[str, Tensor]:
        return {"x": torch.zeros(())}

    def _score(self, rows: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return super()._score(rows)


def test_a_detector_that_cannot_be_fitted_is_out_until_the_next_fit() -> None:
    split, (x, y) = split_model(), batch()
    suite = DetectorSuite(split, build_detectors(split, ["msp", "knn"])).fit([(x, y)])
    assert suite.failed == {}
    with pytest.warns(RuntimeWarning, match="'knn' is left out: ValueError: k must be at most the number of rows"):
        suite.fit([(x[:30], y[:30])])
    assert list(suite.predict(x)) == ["msp"]  # not by what was fitted before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suite.fit([(x, y)])
    assert suite.failed == {}
    assert list(suite.predict(x)) == ["msp", "knn"]


def test_a_detector_that_cannot_score_is_out_as_well() -> None:
    split, (x, y) = split_model(), batch()
    failing = Failing()
    suite = DetectorSuite(split, {"mine": failing, "msp": MaxSoftmax()}).fit([(x, y)])
    failing.error = torch.OutOfMemoryError("too many rows")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        suite.predict(x)
    assert caught.value.__notes__ == ["in detector 'mine' of the suite"]
    failing.error = torch.linalg.LinAlgError("no inverse")
    with pytest.warns(RuntimeWarning, match="'mine' is left out: _?LinAlgError: no inverse"):
        assert list(suite.predict(x)) == ["msp"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(suite.predict(x)) == ["msp"]
    assert list(suite.failed) == ["mine"]


def test_all_fail() -> None:
    split, (x, y) = split_model(), batch(30)
    alone = DetectorSuite(split, {"knn": KNN()})
    with (
        pytest.raises(ValueError, match="k must be at most the number of rows"),
        pytest.warns(RuntimeWarning, match="'knn' is left out"),
    ):
        alone.fit([(x, y)])
    both = DetectorSuite(split, {"knn": KNN(), "far": KNN(k=40)})
    with (
        pytest.raises(ExceptionGroup, match=r"all detectors of the suite failed \(knn, far\)") as caught,
        pytest.warns(RuntimeWarning, match="'far' is left out"),
    ):
        both.fit([(x, y)])
    assert [str(error).split(", got ")[1] for error in caught.value.exceptions] == ["50", "40"]
    tokens = LinearHeadModel(nn.Sequential(nn.EmbeddingBag(9, 5), nn.Linear(5, 3)))
    with (
        pytest.raises(TypeError, match="one dense floating-point tensor to be moved along a gradient"),
        pytest.warns(RuntimeWarning, match="'odin' is left out"),
    ):
        DetectorSuite(tokens, build_detectors(tokens, ["odin"])).predict(torch.ones(4, 6, dtype=torch.int64))


def test_faults_of_the_data_are_errors_at_once() -> None:
    split, (x, y) = split_model(), batch()
    suite = DetectorSuite(split, build_detectors(split, ["msp", "knn", "klm"])).fit([(x, y)])
    want = suite.predict(x)
    features, logits = (part.detach() for part in split(x))
    for labels, kind, message in [
        (y.int(), TypeError, "labels must be int64"),
        (y[:5], ValueError, r"labels must have shape \(80,\)"),
        (y - 9, ValueError, "at least one row with a label of 0 or above"),
    ]:
        with pytest.raises(kind, match=message):
            suite.fit([(x, labels)])
        with pytest.raises(kind, match=message):
            suite.fit_outputs(features, logits, labels)
    for bad, of_bad, message in [
        (features[:, :4], logits, r"features must be \[N, 5\], got shape \(80, 4\)"),
        (features, logits[:, :2], r"logits must be \[N, 3\], got shape \(80, 2\)"),
        (features.long(), logits, "features must be floating-point"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            suite.predict_outputs(bad, of_bad)
    assert suite.failed == {}
    assert all(torch.equal(score, want[name]) for name, score in suite.predict(x).items())
    unfitted = DetectorSuite(split, build_detectors(split, ["msp", "knn"]))
    with pytest.raises(RuntimeError, match="knn: the detector has not been fitted"):
        unfitted.predict(x)
    assert unfitted.failed == {}


def test_settings_by_name() -> None:
    split, (x, y) = split_model(), batch()
    settings = {"ash": {"percentile": 0.4, "variant": "p"}, "mahalanobis": {"shrinkage": None}, "vim": {"principal": 2}}
    built = build_detectors(split, ["ash", "mahalanobis", "vim", "knn"], settings=settings)
    assert repr(built["ash"]) == "ASH(variant='p', percentile=0.4)"
    assert built["mahalanobis"].settings.shrinkage is None
    assert repr(built["vim"]) == "ViM(principal=2)"
    assert repr(built["knn"]) == "KNN(k=50, normalize=True)"
    variants = build_detectors(split, ["mahalanobis", "relative-mahalanobis", "normalized-mahalanobis"])
    for detector, own in zip(variants.values(), ({}, {"relative": True}, {"normalize": True}), strict=True):
        want = MahalanobisDetector(split.features, shrinkage="oas", **own).fit([(x, y)]).predict(x)
        assert torch.equal(detector.fit([(x, y)]).predict(x), want)
    for names, wrong, message in [
        (["ash"], {"ash": {"percentil": 0.5}}, r"settings of ash must be among its arguments \(variant, percentile"),
        (["msp"], {"msp": {"head": None}}, "settings of msp must be among its arguments"),
        (["msp"], {"ash": {}}, r"settings must be of detectors to build \(msp\), got ash"),
        (["ash"], {"ash": {"percentile": 2}}, "percentile must be at least 0 and below 1, got 2"),
        ("msp", None, "names must be one or more of msp, .*, each once, got 'msp'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_detectors(split, names, settings=wrong)


def test_the_command_says_why(
    finished: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Detectors that fail at their fit, at choosing a step, and at scoring, beside one that goes on."""

    class Unfittable(MaxSoftmax):
        needs_fit = True

        def _fitted(self, batches: Any) -> dict[str, Tensor]:
            raise torch.linalg.LinAlgError("no convergence")

    class Unscorable(Failing):
        error = RuntimeError("no scores")

    def no_step(*args: object) -> None:
        raise ValueError("no step")

    own = {"unfittable": lambda model: Unfittable(), "unscorable": lambda model: Unscorable()}
    monkeypatch.setattr(detector_scores, "AVAILABLE", {**detector_scores.AVAILABLE, **own})
    monkeypatch.setattr(detector_scores, "_choose_epsilon", no_step)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert evaluate.main([str(finished), "--detectors", "msp", "unfittable", "unscorable", "odin", "--write"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    document = json.loads((finished / "detectors.json").read_text())
    for arm in document["arms"].values():
        assert list(arm["detectors"]) == ["msp"]
        assert arm["skipped"] == {"unfittable": "no convergence", "odin": "no step", "unscorable": "no scores"}
        for name, why in arm["skipped"].items():
            assert f"{arm['label']}: no {name}: {why}" in said
    assert evaluate.main([str(finished), "--detectors", "unfittable", "unscorable"]) == 0
    said = capsys.readouterr().out
    assert "no unfittable: no convergence" in said
    assert "no unscorable: no scores" in said


class Changing(nn.Module):
    """A network that cannot be differentiated: it changes what the backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).sigmoid()
        return self.head(hidden.add_(1))


class WithoutGradients(Changing):
    """A network that refuses to run where gradients are on."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("an engine without a backward pass")
        return self.head(self.first(x).relu())


@pytest.mark.parametrize("kind", [Changing, WithoutGradients])
def test_networks_without_gradients_cost_odin_alone(kind: type[nn.Module], recwarn: pytest.WarningsRecorder) -> None:
    split = LinearHeadModel(kind())
    x, labels = torch.randn(60, 6), torch.arange(60) % 3
    suite = DetectorSuite(split, build_detectors(split, ["msp", "odin", "knn"], settings={"knn": {"k": 5}}))
    scores = suite.fit([(x, labels)]).predict(x)
    assert list(scores) == ["msp", "knn"]
    assert list(suite.failed) == ["odin"]
    assert any("detector 'odin' is left out" in str(warning.message) for warning in recwarn)
    torch.testing.assert_close(scores["msp"], build_detectors(split, ["msp"])["msp"].predict(x))


def test_a_failing_backward_pass_is_named() -> None:
    with pytest.raises(ValueError, match=r"model must be differentiable .*, but its backward pass fails: .*inplace"):
        ODIN(Changing()).predict(torch.randn(3, 6))


@pytest.mark.parametrize("scores", [None, [0.0, 1.0], torch.zeros(1), torch.zeros(2, 1), torch.zeros(2).long()])
def test_members_that_return_no_scores_are_left_out(scores: object, recwarn: pytest.WarningsRecorder) -> None:
    class Odd(KNN):
        def predict_features(self, features: Tensor) -> Any:
            return scores

    split = LinearHeadModel(nn.Linear(6, 3))
    suite = DetectorSuite(split, {"odd": Odd(k=3), "msp": MaxSoftmax(split)})
    assert list(suite.fit([(torch.randn(9, 6), torch.arange(9) % 3)]).predict(torch.randn(2, 6))) == ["msp"]
    assert "must return floating-point scores [2]" in str(suite.failed["odd"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (3, TypeError, "settings must be a mapping of names to values, got 3"),
        ({"knn": 3}, TypeError, "settings of knn must be a mapping of names to values, got 3"),
        ({"knn": {"model": 3}}, ValueError, r"settings of knn must be among its arguments \(k, normalize\), got model"),
    ],
)
def test_settings_that_are_none(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_detectors(LinearHeadModel(nn.Linear(6, 3)), ["knn"], settings=settings)
