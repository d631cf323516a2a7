"""How several processes end: together, without an abort, and with the arms that have not failed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fastood
from fastood.common.locking import hold_lock
from fastood.train import cli as train
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.engine.meeting import require_launcher
from fastood.train.engine.objective import LogitObjective
from tests.support.tiny_run import tiny_args
from tests.train.engine.test_processes import as_torchrun, together


def diverging_torchrun(rank: int, processes: int, port: int, log: Path, stop: None, args: list[str]) -> None:
    """One process of the group; in the second one alone an operator refuses the values of one stage."""
    warnings.simplefilter("error", FutureWarning)
    call, step = LogitObjective.__call__, ImageStageRun.train_step
    running: list[ImageStageRun] = []

    def train_step(run: ImageStageRun) -> float:
        running[:] = [run]
        return step(run)

    def refuse(self: LogitObjective, network: object, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        found = call(self, network, batch)
        if (rank, running[0].name, running[0].step) == (1, "finetune-random", 3):
            raise ValueError("scale_tril must have a finite diagonal above 0, got nan")
        return found

    patch = pytest.MonkeyPatch()
    patch.setattr(LogitObjective, "__call__", refuse)
    patch.setattr(ImageStageRun, "train_step", train_step)
    as_torchrun(rank, processes, port, log, stop, args)


def test_an_arm_that_diverges_in_one_process_fails_in_all(tmp_path: Path):
    args = [*tiny_args(tmp_path), "--model.dropout", "0"]
    codes, said = together(args, tmp_path, target=diverging_torchrun)
    assert codes == [train.SOME_FAILED, 0], said
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert list(metrics["arms"]) == ["none", "resampled", "full"]
    assert metrics["failed"]["random"]["step"] == 3
    assert metrics["failed"]["random"]["reason"].startswith("scale_tril must have a finite diagonal above 0, got nan; ")
    # Judged once more, and again refused: no process is left waiting or aborts.
    (tmp_path / "runs" / "run" / "metrics.json").unlink()
    codes, said = together([*args, "--resume"], tmp_path)
    assert codes == [train.SOME_FAILED, 0], said
    with hold_lock(tmp_path / "runs" / "run", doing="writing this run"):
        codes, said = together([*args, "--resume"], tmp_path)
    assert codes == [1, 1], said
    assert "another process" in said
    assert "another process" in (tmp_path / "rank1.log").read_text()


def test_torchrun_ends_without_an_error_every_time(tmp_path: Path):
    """The second process waits while the first evaluates, and the group is destroyed on both."""
    args = [*tiny_args(tmp_path), "--model.dropout", "0"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastood.train"]
    there = {"PYTHONPATH": str(Path(fastood.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "runs" / "run" / "metrics.json"
    for _ in range(2):
        done = subprocess.run(
            [*torchrun, *args, "--resume"], cwd=tmp_path, env=os.environ | there, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"FutureWarning" not in done.stderr
        assert b"destroy_process_group" not in done.stderr
        metrics.unlink()
    shutil.rmtree(tmp_path / "runs")


def test_a_process_whose_launcher_was_killed_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as store:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(store.getsockname()[1]))
        require_launcher()
    with pytest.raises(ConnectionRefusedError, match="torchrun, which launched this process, has ended"):
        require_launcher()
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    require_launcher()
