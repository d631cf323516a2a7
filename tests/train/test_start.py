"""Starting and going on with a run: one writer, its own configuration, and what is refused before any work."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastood.common.locking import hold_lock
from fastood.console.command_line import launcher
from fastood.evaluate import cli as evaluate
from fastood.train import cli as train
from fastood.train.command import parse_command
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.run import Run
from tests.support.tiny_run import contents, finished_run, tiny_args, tiny_data_args

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished"))


def test_one_process_writes_a_run(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("fastood.train.run.load_task", lambda *args, **kwargs: pytest.fail("worked"))
    before = contents(finished)
    with hold_lock(finished, doing="writing this run"):
        for main, args in (
            (train.main, ["--name", "run", "--out", str(finished.parent), "--resume"]),
            (train.main, [*tiny_args(finished.parents[1]), "--resume"]),
            (evaluate.main, [str(finished), "--write"]),
        ):
            assert main(args) == 1
            assert f"another process (pid {os.getpid()}, host" in capsys.readouterr().err
    assert contents(finished) == before


def test_the_lock_is_held_to_the_end_and_then_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "runs" / "run"

    def write_report(*args: object, **kwargs: object) -> None:
        with pytest.raises(BlockingIOError), hold_lock(run, doing="writing this run"):
            pass

    monkeypatch.setattr("fastood.train.run.write_report", write_report)
    assert train.main(tiny_args(tmp_path)) == 0
    assert not (run / ".lock").exists()
    with hold_lock(run, doing="writing this run"):
        pass


def test_what_kills_left_is_removed(finished: Path, no_report: None):
    for left in (finished / ".metrics.json.0f.tmp", finished / "checkpoints" / ".pretrain.pt.a1.tmp"):
        left.touch()
    (finished / ".lock").write_text("pid 1, host gone")
    assert train.main(["--name", "run", "--out", str(finished.parent), "--resume"]) == 0
    assert not [path for path in finished.rglob(".*")]


def test_resume_takes_the_configuration_of_the_run(finished: Path, no_report: None, capsys: pytest.CaptureFixture[str]):
    before = contents(finished)["metrics.json"]
    again = ["--name", "run", "--out", str(finished.parent), "--resume"]
    for args in (again, ["resample", *again], [*again, "--method.sample-rate", "0.3"]):
        assert train.main(args) == 0
        assert contents(finished)["metrics.json"] == before
    for options, message in (
        (["--seed", "0", "--method.sample-rate", "0.5"], "method.sample_rate: 0.3 → 0.5\n"),
        (["--preset", "embedded"], "data.in_dist: "),
    ):
        assert train.main([*again, *options]) == 1
        assert message in capsys.readouterr().err
    assert train.main(["oe", *again]) == 1
    assert f"method must be that of the run in {finished}, resample, got oe" in capsys.readouterr().err


def test_the_command_to_go_on_with_works_as_pasted(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(run: ImageStageRun) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageStageRun, "train_step", interrupted)
        assert train.main(tiny_args(tmp_path, out=tmp_path / "my runs")) == 130
    told = capsys.readouterr().err.splitlines()[-1].removeprefix("resume with: ")
    assert told.endswith(f"-m fastood.train --name run --out '{tmp_path}/my runs' --checkpoint-every 5 --resume")
    done = subprocess.run(
        told.replace("fastood.train", "fastood.train --bad"), shell=True, capture_output=True, text=True
    )
    assert "Unrecognized options: --bad" in done.stderr, "the program was found"


def test_a_name_like_an_option_is_resumed_as_printed(
    tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(run: ImageStageRun) -> float:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ImageStageRun, "train_step", interrupted)
        assert train.main([*tiny_args(tmp_path), "--name=-x", "--out=-my runs"]) == 130
    resuming = shlex.split(capsys.readouterr().err.splitlines()[-1].removeprefix("resume with: "))
    assert train.main(resuming[resuming.index("fastood.train") + 1 :]) == 0
    assert (tmp_path / "-my runs" / "-x" / "metrics.json").exists()


def test_python_is_named_as_it_is_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for program, told in ((".venv/bin/python", ".venv/bin/python"), ("python", "./python"), ("../python", None)):
        path = tmp_path / program
        monkeypatch.setattr(sys, "executable", str(path))
        assert launcher() == [told or str(path)]
    (tmp_path / "bin").mkdir()
    for name in ("python", "torchrun"):
        (tmp_path / "bin" / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launcher() == ["bin/torchrun", "--nproc-per-node", "4"]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert launcher() == ["torchrun", "--nproc-per-node", "4"]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, words in (("OMPI_COMM_WORLD_SIZE", ["mpirun", "-n"]), ("SLURM_STEP_NUM_TASKS", ["srun", "--ntasks"])):
        monkeypatch.setenv(name, "8")
        assert launcher() == [*words, "8", "python"]


def test_a_background_below_a_batch_is_told_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    args = [*tiny_args(tmp_path), "--method.sample-rate", "0.1"]
    config = parse_command(args).config
    Run.open(config, tmp_path / "one").close()
    said = capsys.readouterr().err
    for arm, count in (("random", r"sample_rate (γ) 0.1 leaves it "), ("resampled", "leaves it about 8 of 80")):
        assert f"warning: arm '{arm}' trains on all of its background images at every step" in said
        assert count in said
    assert "'full'" not in said
    # A background that every process has must be shared equally.
    monkeypatch.setattr("fastood.train.requirements.launched_processes", lambda: 3)
    monkeypatch.setattr("fastood.train.stages.run_stage", lambda *args, **kwargs: pytest.fail("worked"))
    sizes = ["--method.batch-size", "15", "--method.background-batch-size", "99"]
    assert train.main(["reject", *tiny_data_args(tmp_path), *sizes]) == 1
    assert "cannot be trained by 3 processes: 80 of 80 background images" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_in_distribution_set_that_cannot_be_shared_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.train.requirements.launched_processes", lambda: 5)
    args = [*tiny_args(tmp_path), "--method.batch-size", "160", "--method.background-batch-size", "20"]
    assert train.main(args) == 1
    assert "the in-distribution batch of stage 'pretrain' must be a multiple of the 5 processes, got 96" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_says_how_to_go_on(tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture[str]):
    from tests.common.test_files import on_a_full_disk

    codes: list[int] = []
    args = tiny_args(tmp_path)
    on_a_full_disk(20_000, lambda: codes.append(train.main(args)))
    said = capsys.readouterr().err
    assert codes == [1]
    assert "bytes are needed" in said
    assert "make room, then resume with: " in said
    assert "Traceback" not in said
    run = tmp_path / "runs" / "run"
    assert not [path for path in run.rglob(".*")]
    assert train.main(["--name", "run", "--out", str(tmp_path / "runs"), "--resume"]) == 0
    assert len(json.loads((run / "metrics.json").read_text())["arms"]) == 4


def test_a_disk_that_is_full_before_training_says_how_to_resume_what_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    for function, begun in (("load_task", False), ("begin_session", True)):
        with monkeypatch.context() as patch:
            patch.setattr(f"fastood.train.run.{function}", full)
            assert train.main([*tiny_args(tmp_path)]) == 1
        assert ("make room, then resume with: " in capsys.readouterr().err) is begun
        assert (tmp_path / "runs").exists() is begun
