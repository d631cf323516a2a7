"""Two processes that share every batch train what one does: gloo on the CPU, as torchrun would launch them."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastood.train import cli as train
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.engine.stage import StageRun
from fastood.train.methods.bal.gan_stage import BoundaryStageRun
from tests.support.launched import FORKSERVER
from tests.support.tiny_run import tiny_args
from tests.train.engine.test_loop import make_stage, start
from tests.train.methods.test_bal import bal_args

WORLD_SIZE = 2


def as_torchrun(rank: int, port: int, log: Path, stop: tuple[str, int] | None, args: list[str]) -> None:
    """One process of the group; with `stop`, the second one alone gets a SIGTERM at that step of that stage."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
        pytest.MonkeyPatch().setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
        for kind in (ImageStageRun, BoundaryStageRun):
            pytest.MonkeyPatch().setattr(kind, "train_step", terminated(kind.train_step, stop if rank == 1 else None))
        raise SystemExit(train.main(args))


def terminated(step: Callable[[StageRun], float], stop: tuple[str, int] | None) -> Callable[[StageRun], float]:
    """A step before which, at one step of one stage, SIGTERM comes."""

    def train_step(run: StageRun) -> float:
        if (run.name, run.step) == stop:
            signal.raise_signal(signal.SIGTERM)
        return step(run)

    return train_step


def together(
    args: list[str],
    folder: Path,
    stop: tuple[str, int] | None = None,
    target: Callable[..., None] = as_torchrun,
) -> tuple[list[int | None], str]:
    """Exit codes of all processes, and what the first said on stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(WORLD_SIZE)]
    group = [FORKSERVER.Process(target=target, args=(rank, port, logs[rank], stop, args)) for rank in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(timeout=240)
    return [process.exitcode for process in group], logs[0].read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
        assert train.main([*tiny_args(folder), "--model.dropout", "0"]) == 0
    torch.set_num_threads(threads)
    return folder / "runs" / "run"


def test_two_processes_stop_together_and_go_on_to_the_result_of_one(alone: Path, tmp_path: Path):
    """Every stage, BatchNorm that learns and BatchNorm that does not, the pool, the checkpoints and the files."""
    args = [*tiny_args(tmp_path), "--model.dropout", "0"]
    codes, said = together(args, tmp_path, stop=("reweight", 7))
    assert codes == [130] * WORLD_SIZE, said
    assert "stopped in stage 'reweight' after step 8" in said
    codes, said = together([*args, "--resume"], tmp_path)
    assert codes == [0] * WORLD_SIZE, said
    run = tmp_path / "runs" / "run"
    ours, theirs = load_file(run / "pool.safetensors"), load_file(alone / "pool.safetensors")
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-2, atol=1e-2, msg=lambda text, name=name: f"{name} {text}"
        )
    for weights in alone.glob("models/*"):
        for name, value in load_file(weights).items():
            torch.testing.assert_close(load_file(run / "models" / weights.name)[name], value, rtol=1e-2, atol=1e-3)
    metrics, wanted = (json.loads((folder / "metrics.json").read_text()) for folder in (run, alone))
    for arm, values in wanted["arms"].items():
        assert metrics["arms"][arm]["mean"] == pytest.approx(values["mean"], abs=0.02)
        assert metrics["arms"][arm]["accuracy"] == pytest.approx(values["accuracy"], abs=1 / 32)


def test_two_processes_train_a_boundary(tmp_path: Path):
    """On a classifier that both trained, from one bank, stopped and resumed; every process sees the same GAN."""
    args = {name: bal_args(tmp_path, name=name) for name in ("whole", "stopped")}
    codes, said = together(args["whole"], tmp_path)
    assert codes == [0] * WORLD_SIZE, said
    codes, said = together(args["stopped"], tmp_path, stop=("bal", 7))
    assert codes == [130] * WORLD_SIZE, said
    assert "stopped in stage 'bal' after step 8" in said
    codes, said = together([*args["stopped"], "--resume"], tmp_path)
    assert codes == [0] * WORLD_SIZE, said
    whole, stopped = (load_file(tmp_path / "runs" / name / "models" / "bal.safetensors") for name in args)
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    classifier = load_file(tmp_path / "runs" / "whole" / "models" / "softmax.safetensors")
    assert all(torch.equal(whole[f"classifier.{name}"], value) for name, value in classifier.items())


@pytest.mark.parametrize("option", ["batch-size", "background-batch-size"])
def test_a_batch_that_cannot_be_shared_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
):
    monkeypatch.setattr("fastood.train.requirements.launched_processes", lambda: 2)
    assert train.main([*tiny_args(tmp_path), f"--method.{option}", "31"]) == 1
    name = option.replace("-", "_")
    assert f"method.{name} must be a multiple of the 2 processes, got 31" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_processes_share_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("fastood.train.command.launched_processes", lambda: 2)
    assert train.main([]) == 1
    assert "several processes need the name of the run that they share: --name NAME" in capsys.readouterr().err


def test_another_number_of_processes_does_not_go_on():
    state = start(make_stage()).state_dict()
    state["dropout"] *= 2
    with pytest.raises(ValueError, match="the checkpoint of stage 'stage' must be of 1 processes, got 2"):
        start(make_stage()).load_state_dict(state)
