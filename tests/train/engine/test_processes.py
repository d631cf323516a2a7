"""Two processes that share every batch train what one does: gloo on the CPU, as torchrun would launch them."""

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastood.train import cli as train
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.engine.stage import StageRun
from fastood.train.methods.bal.gan_stage import BoundaryStageRun
from tests.support.launched import FORKSERVER
from tests.support.tiny_run import tiny_args, tiny_data_args
from tests.train.methods.test_bal import bal_args

WORLD_SIZE = 2


def as_torchrun(rank: int, processes: int, port: int, log: Path, stop: tuple[str, int] | None, args: list[str]) -> None:
    """One process of the group; with `stop`, the second one alone gets a SIGTERM at that step of that stage."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
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
    processes: int = WORLD_SIZE,
) -> tuple[list[int | None], str]:
    """Exit codes of all processes, and what the first said on stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(processes)]
    group = [
        FORKSERVER.Process(target=target, args=(rank, processes, port, logs[rank], stop, args))
        for rank in range(processes)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(timeout=240)
    return [process.exitcode for process in group], logs[0].read_text()


def few_epochs(folder: Path, name: str) -> list[str]:
    """Command line of the run with 12 images of each kind in a batch, which 1, 2 and 3 processes can share."""
    args = tiny_args(folder, name=name)
    for option in ("--method.batch-size", "--method.background-batch-size"):
        args[args.index(option) + 1] = "12"
    return [*args, "--model.dropout", "0"]


def compare_runs(run: Path, other: Path, *, arms: Sequence[str], atol: float) -> None:
    """Check that two runs have the weights and results of these arms up to rounding."""
    for arm in arms:
        ours, theirs = (load_file(folder / "models" / f"{arm}.safetensors") for folder in (run, other))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=atol)
    metrics, wanted = (json.loads((folder / "metrics.json").read_text())["arms"] for folder in (run, other))
    for arm in arms:
        assert metrics[arm]["background_size"] == wanted[arm]["background_size"]
        assert metrics[arm]["mean"] == pytest.approx(wanted[arm]["mean"], abs=0.02)
        assert metrics[arm]["accuracy"] == pytest.approx(wanted[arm]["accuracy"], abs=1 / 32)


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Of one, of two, and of two that are stopped and go on as three: each holds a slice of images and pool.

    Every stage, BatchNorm that learns and BatchNorm that does not. One process draws from its pool by other random
    numbers, so that the arm of the learnt weights is compared between two and three alone.
    """
    runs = {name: tmp_path / "runs" / name for name in ("one", "two", "three")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
        assert train.main(few_epochs(tmp_path, "one")) == 0
    codes, said = together(few_epochs(tmp_path, "two"), tmp_path)
    assert codes == [0] * 2, said
    codes, said = together(few_epochs(tmp_path, "three"), tmp_path, stop=("reweight", 7))
    assert codes == [130] * 2, said
    assert "stopped in stage 'reweight' after step 8" in said
    codes, said = together([*few_epochs(tmp_path, "three"), "--resume"], tmp_path, processes=3)
    assert codes == [0] * 3, said
    compare_runs(runs["two"], runs["one"], arms=["none", "random", "full"], atol=2e-2)
    compare_runs(runs["three"], runs["two"], arms=["none", "random", "resampled", "full"], atol=1e-3)
    two, three = (load_file(runs[name] / "pool.safetensors") for name in ("two", "three"))
    assert two["omega"].shape == (80,)
    assert two["omega"].std() > 0.1
    for name, value in two.items():
        torch.testing.assert_close(three[name], value, rtol=1e-2, atol=1e-2, msg=lambda text, name=name: name + text)
    # The digests do not depend on the slices of the processes: one process resumes where three have ended.
    assert len({(folder / "data.json").read_bytes() for folder in runs.values()}) == 1
    assert sorted(entry.name for entry in (runs["three"] / "checkpoints").glob("*slices*")) == [
        "reweight.slices-000000016"
    ]


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


@pytest.mark.parametrize(("method", "option"), [("resample", "batch-size"), ("reject", "background-batch-size")])
def test_a_batch_that_cannot_be_shared_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str, option: str
):
    monkeypatch.setattr("fastood.train.requirements.launched_processes", lambda: 2)
    assert train.main([method, *tiny_data_args(tmp_path), f"--method.{option}", "31"]) == 1
    name = option.replace("-", "_")
    assert f"method.{name} must be a multiple of the 2 processes, got 31" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_processes_share_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("fastood.train.command.launched_processes", lambda: 2)
    assert train.main([]) == 1
    assert "several processes need the name of the run that they share: --name NAME" in capsys.readouterr().err
