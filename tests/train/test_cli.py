"""The two command lines on a run of seconds: what they leave, repeat, resume, compare and refuse."""

import json
import multiprocessing
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from fastood.evaluate import cli as evaluate
from fastood.metrics import PROTOCOLS
from fastood.metrics.protocol import ProtocolName
from fastood.train import cli as train
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.run import Run
from fastood.train.run_folder import RunFolder
from tests.support.tiny_run import STAGES, STEPS, tiny_args, train_until_killed

pytestmark = pytest.mark.usefixtures("one_thread")

# A fork of a process that has imported everything starts at once, and knows nothing of this process's threads.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["fastood.train"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unbroken run, with its report."""
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)
    assert train.main(tiny_args(folder)) == 0
    return folder / "runs" / "run"


def results(run: Path) -> dict[str, bytes]:
    """Every result file of a run."""
    files = [run / "metrics.json", run / "scores.safetensors", run / "pool.safetensors", *run.glob("models/*")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def test_a_run_leaves_everything(finished: Path, capsys: pytest.CaptureFixture[str]):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (metrics["schema"], metrics["method"], metrics["seed"]) == (2, "resample", 0)
    assert metrics["in_distribution"]["train"] == 96
    assert metrics["in_distribution"]["test"] == 32
    assert list(metrics["arms"]) == ["none", "random", "resampled", "full"]
    sizes = {arm: values["background_size"] for arm, values in metrics["arms"].items()}
    assert sizes["none"] == 0
    assert sizes["full"] == 80
    assert 0 < sizes["random"] < 80
    for arm in metrics["arms"].values():
        assert list(arm["ood"]) == ["stripes", "noise"]
        for result in arm["ood"].values():
            measured = {"auroc", "aupr", "fpr95", "positive", "id_count", "ood_count", "repeats", "seed", "interval"}
            assert measured == set(result) - {"difference"}
            assert (result["positive"], result["id_count"], result["ood_count"]) == ("ood", 32, 6)
        expected = sum(result["auroc"]["mean"] for result in arm["ood"].values()) / 2
        assert arm["mean"]["auroc"] == pytest.approx(expected)
    sources = metrics["pool"]["sources"].values()
    assert sum(source["count"] for source in sources) == metrics["pool"]["size"] == 80
    assert sum(source["selected"] for source in sources) == sizes["resampled"]
    assert sum(source["count"] * source["mean_weight"] for source in sources) == pytest.approx(80)

    scores = load_file(finished / "scores.safetensors")
    assert scores["full/id"].shape == (32,)
    assert scores["none/ood/noise"].shape == (40,)
    assert (finished / "report.html").stat().st_size > 1000
    assert {path.name for path in (finished / "tensorboard").iterdir()} == set(STAGES)
    assert not list(finished.rglob("*.tmp"))


def test_every_arm_learns(finished: Path):
    for arm in json.loads((finished / "metrics.json").read_text())["arms"].values():
        assert arm["accuracy"] > 0.5, "chance is 0.25"
        assert arm["mean"]["auroc"] > 0.6, "chance is 0.5"


def test_arms_start_from_the_same_pretrained_weights(tmp_path: Path, no_report: None):
    args = tiny_args(tmp_path)
    args[args.index("--method.finetune.learning-rate") + 1] = "1e-30"
    assert train.main(args) == 0
    run = tmp_path / "runs" / "run"
    pretrained = torch.load(run / "checkpoints" / "pretrain.pt", weights_only=True)["model"]
    for arm in ("none", "random", "resampled", "full"):
        weights = load_file(run / "models" / f"{arm}.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in pretrained.items())


def test_two_runs_with_one_seed_are_identical_and_two_seeds_are_not(finished: Path, tmp_path: Path, no_report: None):
    assert train.main(tiny_args(tmp_path)) == 0
    assert results(tmp_path / "runs" / "run") == results(finished)
    assert train.main([*tiny_args(tmp_path, name="other"), "--seed", "1"]) == 0
    other = tmp_path / "runs" / "other"
    for weights in finished.glob("models/*"):
        assert (other / "models" / weights.name).read_bytes() != weights.read_bytes()


MOMENTS = ["between steps", "between updates"]
KILLS = [(stage, MOMENTS[number % 2]) for number, stage in enumerate(STAGES)]


@pytest.mark.parametrize(("stage", "moment"), [*KILLS, ("reweight", "checkpoint half written"), ("", "judging")])
def test_a_killed_run_resumes_to_the_same_result(
    finished: Path, tmp_path: Path, no_report: None, stage: str, moment: str
):
    step = random.Random(f"{stage} {moment}").randrange(3, STEPS)
    args = tiny_args(tmp_path)
    process = FORKSERVER.Process(target=train_until_killed, args=(args, stage, step, moment))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    run = tmp_path / "runs" / "run"
    assert not (run / "metrics.json").exists()
    assert train.main([*args, "--resume"]) == 0
    assert results(run) == results(finished)


def test_another_loader_goes_on_with_a_run_but_not_with_another_depth(
    finished: Path, tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture[str]
):
    args = tiny_args(tmp_path)
    process = FORKSERVER.Process(target=train_until_killed, args=(args, "reweight", 5, "between steps"))
    process.start()
    process.join(timeout=60)
    assert train.main([*args, "--resume", "--data.prefetch-depth", "1"]) == 1
    assert "data.prefetch_depth: 0 → 1" in capsys.readouterr().err
    assert train.main([*args, "--resume", "--data.loader", "dataloader"]) == 0
    assert "loader: dataloader, 0 batches ahead (asked for)" in capsys.readouterr().out
    assert results(tmp_path / "runs" / "run") == results(finished)


def test_ctrl_c_says_how_to_resume(
    finished: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    args = tiny_args(tmp_path)
    with monkeypatch.context() as patch:
        step = ImageStageRun.train_step

        def interrupted(run: ImageStageRun) -> float:
            if (run.stage.name, run.step) == ("finetune-random", STEPS - 1):
                signal.raise_signal(signal.SIGINT)
            return step(run)

        patch.setattr(ImageStageRun, "train_step", interrupted)
        assert train.main(args) == 130
    said = capsys.readouterr().err
    assert "stopped in stage 'finetune-random' after step 12" in said
    assert "--name run" in said
    assert "--resume" in said.splitlines()[-1]
    assert train.main([*args, "--resume"]) == 0
    assert results(tmp_path / "runs" / "run") == results(finished)


def test_resuming_what_is_not_there_begins_and_what_is_finished_repeats(
    finished: Path, tmp_path: Path, no_report: None
):
    for _ in range(2):
        assert train.main([*tiny_args(tmp_path), "--resume"]) == 0
        assert results(tmp_path / "runs" / "run") == results(finished)


def test_resuming_with_another_config_names_the_field(finished: Path, capsys: pytest.CaptureFixture[str]):
    before = results(finished)
    args = tiny_args(finished.parents[1])
    args[args.index("--method.sample-rate") + 1] = "0.5"
    assert train.main([*args, "--resume", "--seed", "2"]) == 1
    error = capsys.readouterr().err
    assert "seed: 0 → 2; method.sample_rate: 0.3 → 0.5" in error
    assert results(finished) == before


def test_an_existing_run_folder_is_refused_before_any_work(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.train.run.load_task", lambda *args, **kwargs: pytest.fail("worked"))
    assert train.main(tiny_args(finished.parents[1])) == 1
    assert "exists: resume it with --resume, or choose another --name" in capsys.readouterr().err


def test_evaluate_repeats_the_table_and_writes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert evaluate.main([str(finished)]) == 0
    assert "the same as metrics.json, to the last digit" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "odin"])
def test_evaluate_prints_the_table_of_any_protocol(
    finished: Path, name: ProtocolName, capsys: pytest.CaptureFixture[str]
):
    before = (finished / "metrics.json").read_bytes()
    assert evaluate.main([str(finished), "--protocol", name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Protocol {name}: {PROTOCOLS[name].positive.upper()} images are the positive class" in printed
    assert "metrics.json" not in printed or "The std is in metrics.json" in printed, "nothing is compared"
    assert evaluate.main([str(finished), "--protocol", name, "--write"]) == 1
    assert f"write must not be given with protocol {name}" in capsys.readouterr().err
    assert (finished / "metrics.json").read_bytes() == before


def test_evaluate_says_why_a_protocol_does_not_fit(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main([str(finished), "--protocol", "odin"]) == 1
    assert 'rule "odin" needs a threshold with a TPR in [0.9495, 0.9505], got none' in capsys.readouterr().err


def test_the_protocol_names_are_those_of_the_table():
    assert set(get_args(ProtocolName)) == set(PROTOCOLS)


def test_evaluate_tells_a_difference_and_writes_on_request(
    finished: Path, tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    weights = load_file(run / "models" / "full.safetensors")
    save_file(weights | {"head.weight": -weights["head.weight"]}, run / "models" / "full.safetensors")
    assert evaluate.main([str(run)]) == 1
    assert "differs from metrics.json" in capsys.readouterr().out
    assert evaluate.main([str(run), "--write"]) == 1
    assert evaluate.main([str(run)]) == 0


def test_evaluate_names_what_is_missing(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main([str(tmp_path)]) == 1
    assert "no run in" in capsys.readouterr().err
    run = shutil.copytree(finished, tmp_path / "copy")
    (run / "metrics.json").unlink()
    assert evaluate.main([str(run)]) == 1
    assert "metrics.json does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["config.yaml", "data.json", "metrics.json", "pool.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff{", b"[1]"])
def test_evaluate_names_what_is_damaged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes
):
    run = shutil.copytree(finished, tmp_path / "copy")
    (run / file).write_bytes(content)
    assert evaluate.main([str(run)]) == 1
    assert f"{file} is damaged" in capsys.readouterr().err


def test_a_value_of_another_type_is_damage(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = shutil.copytree(finished, tmp_path / "copy")
    text = (run / "config.yaml").read_text()
    for old, new in [
        ("epochs: 2", "epochs: many"),
        ("batch_norm: eval", "batch_norm: frozen"),
        ("device: cpu", "device: tpu"),
    ]:
        (run / "config.yaml").write_text(text.replace(old, new))
        assert evaluate.main([str(run)]) == 1
        assert "config.yaml is damaged" in capsys.readouterr().err


def test_other_images_are_refused(tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture[str]):
    args = tiny_args(tmp_path)
    assert train.main(args) == 0
    before = results(tmp_path / "runs" / "run")
    images = np.load(tmp_path / "background.npy")
    images[0, 0, 0] ^= 1
    np.save(tmp_path / "background.npy", images)
    capsys.readouterr()
    for again in (lambda: train.main([*args, "--resume"]), lambda: evaluate.main([str(tmp_path / "runs" / "run")])):
        assert again() == 1
        assert "had other images or labels in background\n" in capsys.readouterr().err
    assert results(tmp_path / "runs" / "run") == before


def test_evaluate_finds_relative_images_from_another_directory(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
):
    args = [part.replace(f"{tmp_path}/", "") for part in tiny_args(tmp_path)]
    args[args.index("--device") + 1] = "auto"
    monkeypatch.chdir(tmp_path)
    assert train.main(args) == 0
    stored = RunFolder(tmp_path / "runs" / "run").read_config()
    assert stored.device == ("cuda" if torch.cuda.is_available() else "cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate.main(["../runs/run"]) == 0


def test_resuming_another_device_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("fastood.train.run.open_fabric", lambda *args, **kwargs: Fabric(accelerator="cpu", devices=1))
    config = replace(RunFolder(finished).read_config(), device="auto")
    with pytest.raises(ValueError, match="device: cpu → cuda"):
        Run.open(config, finished, resume=True)


def test_resume_into_files_that_are_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.train.run.load_task", lambda *args, **kwargs: pytest.fail("worked"))
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "thesis.tex").write_text("mine")
    assert train.main([*tiny_args(tmp_path), "--resume"]) == 1
    assert "holds files but no run to resume" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["thesis.tex"]


def test_what_a_kill_left_of_the_first_file_does_not_stop_a_resume(tmp_path: Path):
    folder = RunFolder(tmp_path)
    (tmp_path / ".config.yaml.tmp").touch()
    folder.begun_config(resume=True)


def test_checkpoint_every_does_not_decide_the_result(finished: Path, tmp_path: Path, no_report: None):
    args = tiny_args(tmp_path)
    shutil.copytree(finished, tmp_path / "runs" / "run")
    args[args.index("--checkpoint-every") + 1] = "7"
    data = [part.replace(str(tmp_path), str(finished.parents[1])) for part in args]
    assert train.main([*data, "--out", str(tmp_path / "runs"), "--resume"]) == 0


def test_an_empty_selection_costs_its_arm(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.samplers.BackgroundPool.select", lambda *args, **kwargs: torch.arange(0))
    assert train.main(tiny_args(tmp_path)) == train.SOME_FAILED
    assert "sample_rate (γ) 0.3 of 80 background images left the resampled arm none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt, 130, "stopped"), (TypeError("labels must be integers"), 1, "error: labels must be integers")],
)
def test_loading_ends_without_a_traceback(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
):
    def load_task(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("fastood.train.run.load_task", load_task)
    for main, args in ((train.main, tiny_args(tmp_path)), (evaluate.main, [str(finished)])):
        assert main(args) == code
        said = capsys.readouterr()
        assert message in said.err
        assert len(said.err.splitlines()) == 1
        assert "run folder" not in said.out
