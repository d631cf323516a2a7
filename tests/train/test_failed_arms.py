"""An arm that diverges costs itself and what stands on it: the others are trained, judged, stored and reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastood.evaluate import cli as evaluate
from fastood.train import cli as train
from fastood.train.engine.failure import StageFailure
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.engine.objective import LogitObjective
from fastood.train.failed_stages import with_dependants
from tests.support.tiny_run import tiny_args, tiny_data_args

pytestmark = pytest.mark.usefixtures("one_thread")


def poisoned(stages: tuple[str, ...], at: int) -> Callable[[ImageStageRun], float]:
    """A step after which, at one step of some stages, a weight of the network is infinite."""
    step = ImageStageRun.train_step

    def train_step(run: ImageStageRun) -> float:
        if run.step == at and run.name in stages:
            next(run.model.parameters()).data.fill_(float("inf"))
        return step(run)

    return train_step


def finished(folder: Path) -> dict[str, bytes]:
    """Every JSON file but environment.json, which a resumed run adds a session to."""
    files = (file for file in folder.rglob("*.json") if file.name != "environment.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_diverging_arm_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    args = tiny_args(tmp_path)
    run = tmp_path / "runs" / "run"
    monkeypatch.setattr(ImageStageRun, "train_step", poisoned(("finetune-random",), 7))
    assert train.main(args) == train.SOME_FAILED
    said = capsys.readouterr()
    assert "failed: stage 'finetune-random', step 7 of 12: the loss is nan; in-distribution images" in said.err
    assert "Failed: Random, γ = 30 % (stage 'finetune-random', step 7 of 12:" in " ".join(said.out.split())
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["arms"]) == ["none", "resampled", "full"]
    assert list(metrics["failed"]) == ["random"]
    assert metrics["failed"]["random"]["step"] == 7
    assert metrics["failed"]["random"]["reason"].startswith("the loss is nan; in-distribution images")
    assert metrics["bootstrap"]["baseline"] is None
    assert metrics["bootstrap"]["failed"] == "random", "the baseline"
    assert metrics["pool"]["size"] == 80
    assert sorted(file.stem for file in (run / "models").iterdir()) == ["full", "none", "resampled"]
    page = " ".join((run / "report.html").read_text().split())
    assert "Failed: Random" in page
    # Without its baseline it is no run of one-class networks: every OOD set and the accuracy are there.
    assert "This run compares 3 arms" in page
    assert "the baseline, Random, γ = 30 %, has failed" in page
    assert {"stripes", "noise", "Mean", "Accuracy"} <= set(said.out.split())
    assert "One class against the others" not in said.out
    assert evaluate.main([str(run)]) == 0
    assert "the same as metrics.json, to the last digit" in capsys.readouterr().out
    assert evaluate.main([str(run), "--detectors", "msp"]) == 0
    # Once more: the same is said and nothing is repeated, whatever training would do now.
    before = finished(run)
    monkeypatch.setattr(ImageStageRun, "train_step", lambda run: pytest.fail("repeated"))
    assert train.main(["--name", "run", "--out", str(tmp_path / "runs"), "--resume"]) == train.SOME_FAILED
    assert "failed before, and is not repeated" in capsys.readouterr().err
    assert finished(run) == before


def test_a_failed_pool_costs_the_arm_that_it_selects_for(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ImageStageRun, "train_step", poisoned(("reweight",), 4))
    assert train.main(tiny_args(tmp_path)) == train.SOME_FAILED
    run = tmp_path / "runs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["arms"]) == ["none", "random", "full"]
    failed = metrics["failed"]["resampled"]
    assert (failed["stage"], failed["step"]) == ("finetune-resampled", None)
    assert "it needs what has failed, stage 'reweight', step 4 of 12: the loss is nan" in failed["reason"]
    assert "pool" not in metrics
    assert not (run / "pool.safetensors").exists()
    assert evaluate.main([str(run)]) == 0


def test_where_every_arm_fails_there_is_no_result(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ImageStageRun, "train_step", poisoned(("pretrain",), 3))
    for options in (tiny_args(tmp_path), [*tiny_args(tmp_path), "--resume"]):
        assert train.main(options) == 1
        assert "error: every arm has failed: stage 'pretrain', step 3 of 12: the loss is nan" in capsys.readouterr().err
    run = tmp_path / "runs" / "run"
    assert not (run / "metrics.json").exists()
    assert evaluate.main([str(run)]) == 1
    assert "metrics.json does not exist" in capsys.readouterr().err


def test_an_operator_that_refuses_diverged_values_is_a_failed_arm(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """ICE's head says that its factor is not finite, before there is any loss."""
    step = ImageStageRun.train_step

    def train_step(run: ImageStageRun) -> float:
        if run.step == 5 and run.name == "ice":
            for parameter in run.model.head.parameters():
                parameter.data.fill_(float("nan"))
        return step(run)

    monkeypatch.setattr(ImageStageRun, "train_step", train_step)
    short = ["--method.pretrain.epochs", "1", "--method.finetune.epochs", "2", "--method.batch-size", "16"]
    args = ["ice", *tiny_data_args(tmp_path), *short, "--method.arms", "plain", "oe", "ice"]
    assert train.main(args) == train.SOME_FAILED
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert list(metrics["arms"]) == ["plain", "oe"]
    assert metrics["failed"]["ice"]["step"] == 5
    assert "finite" in metrics["failed"]["ice"]["reason"]
    assert metrics["bootstrap"]["baseline"] == "oe"


def test_other_errors_of_a_loss_are_no_divergence(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*args: object) -> None:
        raise ValueError("labels must be int64")

    monkeypatch.setattr(LogitObjective, "__call__", refuse)
    assert train.main(tiny_args(tmp_path)) == 1
    assert "error: labels must be int64" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "run" / "failed.json").exists()


def test_scores_that_are_nan_are_a_failed_arm(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert train.main(tiny_args(tmp_path)) == 0
    run = shutil.copytree(tmp_path / "runs" / "run", tmp_path / "copy")
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "models" / "full.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] * float("nan")}, run / "models" / "full.safetensors")
    assert evaluate.main([str(run)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Failed: Full, γ = 100 % (stage 'finetune-full': 32 of 32 scores of the in-distribution test images" in said
    assert "differs from metrics.json" in said


def test_failures_are_read_back_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from fastood.train.run_folder import RunFolder

    folder = RunFolder(tmp_path)
    failures = {"a": StageFailure(stage="a", step=1, steps=2, reason="the loss is inf")}
    assert folder.read_failures() == {}
    folder.write_failures(failures)
    assert folder.read_failures() == failures
    folder.failures.write_text('{"a": {"steps": 3}}')
    with pytest.raises(ValueError, match=r"failed\.json is damaged"):
        folder.read_failures()


def test_what_stands_on_a_failed_stage_fails_with_its_reason():
    class Stage:
        def __init__(self, name: str, start_from: str | None = None, needs: tuple[str, ...] = ()) -> None:
            self.name, self.start_from, self.needs = name, start_from, needs

    class Method:
        stages = (Stage("a"), Stage("b", "a"), Stage("c", "b"), Stage("d"), Stage("e", "d", needs=("c",)))

    failure = StageFailure(stage="a", step=1, steps=2, reason="the loss is inf")
    found = with_dependants(Method(), {"a": failure})
    assert list(found) == ["a", "b", "c", "e"]
    assert {found[name].reason for name in "bce"} == {
        "it needs what has failed, stage 'a', step 1 of 2: the loss is inf"
    }
