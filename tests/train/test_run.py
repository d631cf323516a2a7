"""A run from Python: opened, loaded and closed, several in one process, and what it leaves to its caller."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastood.data.loaders import choice
from fastood.evaluate import cli as evaluate
from fastood.train.command import parse_command
from fastood.train.environment import read_sessions
from fastood.train.run import Run
from fastood.train.run_folder import RunFolder
from tests.support.tiny_run import contents, finished_run, tiny_args

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def finished(trained: Path, tmp_path: Path, no_report: None) -> Path:
    """Folder of a finished run, the test's own."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def long_ago(finished: Path) -> str:
    """Text of the finished run's environment.json: its session began in 2001 and took 8.5 seconds."""
    path = finished / "environment.json"
    document = json.loads(path.read_text())
    document["sessions"][0] |= {"began": "2001-01-01T00:00:00+00:00", "seconds": 8.5}
    path.write_text(json.dumps(document))
    return path.read_text()


def test_results_that_are_written_again_change_no_session(finished: Path, long_ago: str):
    folder = RunFolder(finished)
    assert evaluate.main([str(finished), "--write"]) == 0
    with Run.load(folder.read_config(), folder) as run:
        run.report(run.evaluate())
    # Without a command this resumed run has no session of its own.
    with Run.open(folder.read_config(), finished, resume=True) as run:
        run.train()
        run.report(run.evaluate())
    assert folder.environment.read_text() == long_ago


def test_a_session_ends_with_the_first_results(finished: Path, long_ago: str):
    folder = RunFolder(finished)
    before = contents(finished)["metrics.json"]
    with Run.open(folder.read_config(), finished, resume=True, command="again") as run:
        run.train()
        run.report(run.evaluate())
        first, second = read_sessions(folder.environment)
        folder.environment.write_text(folder.environment.read_text().replace(second["began"], first["began"]))
        run.report(run.evaluate())
    assert (first["seconds"], second["command"]) == (8.5, "again")
    assert read_sessions(folder.environment)[1]["seconds"] == second["seconds"] < 1e6
    assert contents(finished)["metrics.json"] == before


def test_two_runs_of_one_process_and_a_run_closed_twice(tmp_path: Path):
    config = parse_command(tiny_args(tmp_path)).config
    first, second = Run.open(config, tmp_path / "one"), Run.open(config, tmp_path / "two")
    with pytest.raises(BlockingIOError, match="is writing this run"):
        Run.open(config, tmp_path / "one", resume=True)
    for run in (first, second, first):
        run.close()
    assert sorted(contents(tmp_path / "one")) == ["config.yaml", "data.json", "data_summary.json"]
    Run.open(config, tmp_path / "one", resume=True).close()


def test_a_run_gives_the_threads_back(finished: Path):
    config = replace(RunFolder(finished).read_config(), threads=2)
    assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), Run.open(config, finished.with_name("new")):
        1 // (2 - torch.get_num_threads())
    with Run.load(config, RunFolder(finished)):
        assert torch.get_num_threads() == 2
    for wrong in (lambda: Run.open(config, finished), lambda: Run.load(config, RunFolder(finished.with_name("new")))):
        (finished.with_name("new") / "data.json").unlink(missing_ok=True)
        with pytest.raises((FileExistsError, FileNotFoundError)):
            wrong()
    assert torch.get_num_threads() == 1, "a number that the next run would take for the machine's"


def test_evaluation_needs_neither_compiler_nor_loader(finished: Path, monkeypatch: pytest.MonkeyPatch):
    def require_dali() -> None:
        raise ValueError("DALI is not installed")

    monkeypatch.setattr(choice, "require_dali", require_dali)
    monkeypatch.setattr("fastood.train.acceleration.shutil.which", lambda name: None)
    folder = RunFolder(finished)
    config = folder.read_config()
    folder.write_config(replace(config, compile="default", data=replace(config.data, loader="dali")))
    assert evaluate.main([str(finished)]) == 0
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        Run.open(folder.read_config(), finished, resume=True)
    with pytest.raises(ValueError, match="DALI is not installed"):
        Run.open(replace(folder.read_config(), compile="none"), finished.with_name("other"))
    assert not finished.with_name("other").exists()


def test_the_device_of_an_evaluation_is_not_that_of_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder(finished)
    folder.write_config(replace(folder.read_config(), device="cuda"))
    shown = []
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, config, **kwargs: shown.append(config))
    assert evaluate.main([str(finished), "--device", "cpu", "--write"]) == 0
    assert [config["device"] for config in shown] == ["cuda"]
