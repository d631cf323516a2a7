"""Detectors on a run's networks from the command line: numbers, passes, the cache, what is left out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from fastood.data import Augment
from fastood.detectors import DETECTORS, LinearHeadModel, build_detectors
from fastood.detectors.head_detector import HeadDetector
from fastood.evaluate import cli as evaluate
from fastood.evaluate.arm_network import ArmNetwork
from fastood.evaluate.detector_scores import DetectorScores, fitted_detectors
from fastood.evaluate.detectors_document import detector_warnings
from fastood.evaluate.outputs_cache import OutputsCache
from fastood.heads import CholeskyMahalanobisHead
from fastood.models import build_model
from fastood.train import cli as train
from fastood.train.report.detector_table import detector_tables, skipped_lines
from fastood.train.run_folder import RunFolder
from fastood.train.trained_network import Outputs, TrainedNetwork
from tests.support.tiny_run import tiny_args, tiny_task

ARMS = ("none", "random", "resampled", "full")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of seconds, without report."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
        assert train.main(tiny_args(folder)) == 0
    return folder / "runs" / "run"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each forward pass of a network."""
    found: list[int] = []
    real = TrainedNetwork.__call__

    def counted(network: TrainedNetwork, inputs: torch.Tensor) -> torch.Tensor:
        found.append(len(inputs))
        return real(network, inputs)

    monkeypatch.setattr(TrainedNetwork, "__call__", counted)
    return found


def test_all_detectors(finished: Path, capsys: pytest.CaptureFixture[str], passes: list[int]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert evaluate.main([str(finished), "--detectors", "all", "--write"]) == 0
    said = capsys.readouterr().out
    document = json.loads((finished / "detectors.json").read_text())
    metrics = json.loads((finished / "metrics.json").read_text())
    assert tuple(document["arms"]) == ARMS
    for arm, found in document["arms"].items():
        assert tuple(found["detectors"]) == tuple(DETECTORS)
        assert found["skipped"] == {}
        # The run's own score on the same draws.
        for name, own in metrics["arms"][arm]["ood"].items():
            of_msp = found["detectors"]["msp"]["ood"][name]
            assert {key: own[key] for key in of_msp} == of_msp
        assert found["detectors"]["msp"]["mean"] == metrics["arms"][arm]["mean"]
        assert f"{found['label']}: detectors, in per cent" in said
    assert document["protocol"] == {**metrics["protocol"]}
    assert "ODIN(temperature=1000.0, epsilon=" in document["arms"]["none"]["detectors"]["odin"]["settings"]
    assert (finished / "detectors.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.read_bytes() == content for path, content in before.items())
    # Training images once, test images twice, and what ODIN chooses its step with: once, and twice for each other step.
    test_images = 32 + 40 + 40
    assert sum(passes) == len(ARMS) * (96 + 2 * test_images + (1 + 2 * 9) * (96 + 80))


def test_what_is_cached_needs_no_network(finished: Path, passes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(finished), "--detectors", "energy", "knn", "react"]
    assert evaluate.main(args) == 0
    first = capsys.readouterr().out
    assert evaluate.main(args) == 0
    assert capsys.readouterr().out == first
    file = finished / "features" / "full.safetensors"
    content = file.read_bytes()
    passes.clear()
    for stale in (content[:1000], b"", None):
        file.unlink()
        if stale is not None:
            file.write_bytes(stale)
        assert evaluate.main(args) == 0
        assert capsys.readouterr().out == first
        assert sum(passes) == 96 + 32 + 40 + 40
        assert file.read_bytes() == content
        passes.clear()
    folder = RunFolder(finished)
    weights = folder.read_weights("full")
    folder.write_weights("full", {name: value * 1.5 for name, value in weights.items()})
    assert evaluate.main(args) == 0
    assert sum(passes) == 96 + 32 + 40 + 40
    assert file.read_bytes() != content
    assert capsys.readouterr().out != first
    folder.write_weights("full", weights)


def test_another_protocol(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(finished), "--detectors", "msp", "--protocol", "wu2023"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Protocol wu2023: OOD images are the positive class; all images of each OOD set, against 32 ID" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detectors", "softmax"], "detectors must be all, or one or more of msp, max-logit, energy"),
        (["--detectors", "msp", "msp"], "each once, got ['msp', 'msp']"),
        (["--detectors", "msp", "--write", "--protocol", "wu2023"], "write must not be given with protocol wu2023"),
    ],
)
def test_what_is_refused(
    finished: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], passes: list[int]
) -> None:
    assert evaluate.main([str(finished), *options]) == 1
    assert message in capsys.readouterr().err
    assert passes == []


def trained(module: nn.Module) -> TrainedNetwork:
    return TrainedNetwork(module, augment=Augment(), fabric=Fabric(accelerator="cpu", devices=1))


def small(num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    return build_model("small-cnn", num_classes=num_classes, in_channels=1, image_size=8)


OF_ANY_MODEL = build_detectors(LinearHeadModel(nn.Linear(2, 2)))
WITH_HEAD = [name for name, detector in OF_ANY_MODEL.items() if isinstance(detector, HeadDetector)]


def test_detectors_that_need_a_linear_head_are_those_of_its_base_class() -> None:
    assert {"vim", "react", "ash", "scale", "dice", "she", "gradnorm"} <= set(WITH_HEAD)


def test_reject_classes_are_left_out() -> None:
    task, module = tiny_task(), small(7)
    model = ArmNetwork(trained(module), 4)
    outputs = model.outputs(task.id_train)
    with torch.no_grad():
        logits = module.eval()(Augment().normalize(task.id_train.images))[:, :4]
    torch.testing.assert_close(outputs.logits, logits)
    fitted, skipped = fitted_detectors(model, list(DETECTORS), outputs, task.id_train.labels)
    assert set(skipped) == set(WITH_HEAD)
    assert set(skipped.values()) == {"its head has 3 reject classes beside the 4 classes"}
    assert list(fitted) == [name for name in DETECTORS if name not in WITH_HEAD]


def test_boundary_aware_learning_by_name() -> None:
    """Its GAN trains on the features that the others are fitted to; the head is only read."""
    task, module = tiny_task(), small(4)
    before = module.head.weight.clone()
    model = ArmNetwork(trained(module), 4)
    fitted, skipped = fitted_detectors(model, ["bal", "msp"], model.outputs(task.id_train), task.id_train.labels)
    assert (list(fitted), skipped) == (["bal", "msp"], {})
    outputs = model.outputs(task.id_test)
    bal, msp = (
        fitted[name].predict_features(part) for name, part in (("bal", outputs.features), ("msp", outputs.logits))
    )
    assert bal.shape == msp.shape
    assert not torch.equal(bal.argsort(), msp.argsort())
    assert torch.equal(module.head.weight, before)


def test_heads_that_are_not_linear() -> None:
    task, module = tiny_task(), small(4)
    module.head = CholeskyMahalanobisHead(module.feature_dim, 4)
    model = ArmNetwork(trained(module), 4)
    fitted, skipped = fitted_detectors(model, list(DETECTORS), model.outputs(task.id_train), task.id_train.labels)
    assert set(skipped) == set(WITH_HEAD)
    assert set(skipped.values()) == {"head must be an nn.Linear, got CholeskyMahalanobisHead"}
    assert len(fitted) == len(DETECTORS) - len(WITH_HEAD)


def test_networks_without_a_head() -> None:
    with pytest.raises(TypeError, match="its network, a Sequential, has no head that logits come from"):
        ArmNetwork(trained(nn.Sequential(nn.Flatten(), nn.Linear(64, 64))), 4)


class Idle(nn.Module):
    """A head beside the way that images take."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(64, 4), nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_networks_that_do_not_use_their_head(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(finished / "features", ignore_errors=True)
    monkeypatch.setattr("fastood.train.run.Run.trained", lambda run, module: trained(Idle()))
    assert evaluate.main([str(finished), "--detectors", "msp", "dice"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("no msp, dice: the head did not run in the forward pass of the model") == len(ARMS)


def test_a_detector_that_does_not_fit_is_left_out() -> None:
    task, module = tiny_task(), small(4)
    model = ArmNetwork(trained(module), 4)
    few = task.id_train.subset(torch.arange(20))
    _, skipped = fitted_detectors(model, ["msp", "knn"], model.outputs(few), few.labels)
    assert skipped == {"knn": "k must be at most the number of rows with a label of 0 or above, 20, got 50"}


def test_a_detector_that_ranks_backwards_or_not_at_all_is_named(generator: torch.Generator) -> None:
    id_scores = torch.randn(300, generator=generator, dtype=torch.float64)
    near, far = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    found = DetectorScores(
        label="OE",
        settings={"msp": "", "knn": "", "ash": ""},
        skipped={},
        id_scores=torch.stack([id_scores, id_scores, torch.zeros(300)]),
        ood_scores={
            "near": torch.stack([near + 1, near - 1, torch.zeros(200)]),
            "far": torch.stack([far + 3, far + 3, torch.zeros(200)]),
        },
    )
    warnings = detector_warnings("oe", found)
    assert [(w["arm"], w["detector"], w["kind"]) for w in warnings] == [
        ("oe", "knn", "ranks-backwards"),
        ("oe", "ash", "tied-scores"),
    ]
    auroc = float((near[:, None] - 1 > id_scores).double().mean())
    assert f"near is ranked backwards: AUROC {100 * auroc:.2f}" in warnings[0]["message"]


def test_arms_without_any_detector_have_a_line_and_no_table() -> None:
    skipped = {"msp": "it has no head", "knn": "it has no head", "dice": "why not"}
    document = {"arms": {"only": {"label": "Only arm", "detectors": {}, "skipped": skipped}}}
    assert detector_tables(document) == []
    assert skipped_lines(document) == ["Only arm: no msp, knn: it has no head", "Only arm: no dice: why not"]


def test_a_cache_is_for_one_fingerprint(tmp_path: Path, generator: torch.Generator) -> None:
    outputs = {
        name: Outputs(logits=torch.randn(n, 3, generator=generator), features=torch.randn(n, 5, generator=generator))
        for name, n in (("id_train", 4), ("ood/a/b", 2))
    }
    path = tmp_path / "features" / "full.safetensors"
    assert OutputsCache(path, "one").read() is None
    OutputsCache(path, "one").write(outputs)
    found = OutputsCache(path, "one").read()
    assert found is not None
    assert found.keys() == outputs.keys()
    for name, of_set in found.items():
        assert torch.equal(of_set.logits, outputs[name].logits)
        assert torch.equal(of_set.features, outputs[name].features)
    assert OutputsCache(path, "other").read() is None
