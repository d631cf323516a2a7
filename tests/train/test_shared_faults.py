"""Faults of one process of several: damaged or unwritten slices, missing images, errors that a caller catches."""

import errno
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter

from fastood.evaluate import cli as evaluate
from fastood.samplers import ShardedBackgroundPool
from fastood.train.command import complete_command, parse_command
from fastood.train.engine.checkpoint import CheckpointFolder
from fastood.train.engine.failure import StageFailedError
from fastood.train.engine.slices import load_slices
from fastood.train.run import Run
from tests.support.gloo import gather, run_in_groups
from tests.support.launched import free_port, launched
from tests.support.tiny_run import tiny_data_args

CPU = torch.device("cpu")


def no_space(*args: object, **kwargs: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def damage_slices(rank: int, world_size: int, group: dist.ProcessGroup, folder: Path) -> None:
    """Slices with other bytes than were written are refused by all processes, and by a single one."""
    checkpoints = CheckpointFolder(folder)
    pool = ShardedBackgroundPool(9, group=group)
    checkpoints.save_together("a", {"step": 3, "pool": pool.state_dict()}, step=3)
    slices = folder / "a.slices-000000003"
    saved = checkpoints.load("a")
    assert saved is not None
    loaded = load_slices(saved, folder, device=CPU)["pool"]["omega"].to_local()
    assert torch.equal(loaded, pool.state_dict()["omega"].to_local())

    def flipped(content: bytes) -> bytes:
        # The tensor lies behind the padding of its record: the archive still opens, and loads other numbers.
        place = content.index(b"FB") + 60
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    damages: tuple[tuple[str, Callable[[bytes], bytes] | None], ...] = (
        ("__1_0.distcp", flipped),
        ("__1_0.distcp", lambda content: content[:100]),
        ("__0_0.distcp", lambda content: b""),
        ("__0_0.distcp", None),
        (".metadata", lambda content: content[:50]),
    )
    for name, change in damages:
        content = (slices / name).read_bytes()
        dist.barrier()
        if rank == 0:
            if change is None:
                (slices / name).unlink()
            else:
                (slices / name).write_bytes(change(content))
        dist.barrier()
        with pytest.raises(ValueError, match=r"a\.slices-000000003 is damaged"):
            load_slices(saved, folder, device=CPU)
        dist.barrier()
        if rank == 0:
            (slices / name).write_bytes(content)
        dist.barrier()
    load_slices(saved, folder, device=CPU)


def fill_disk(rank: int, world_size: int, group: dist.ProcessGroup, folder: Path) -> None:
    """A process that cannot write raises on all, and leaves the last checkpoint and no others."""
    checkpoints = CheckpointFolder(folder)
    state = {"pool": ShardedBackgroundPool(9, group=group).state_dict()}
    checkpoints.save_together("a", {"step": 1} | state, step=1)
    before = sorted(path.name for path in folder.iterdir())
    dist.barrier()  # the first process would make the next folder while others list this one
    for kind, name, failing in (
        (FileSystemWriter, "write_data", 1),
        (FileSystemWriter, "finish", 0),
        (Path, "mkdir", 0),
        (CheckpointFolder, "save", 0),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if rank == failing:
                patch.setattr(kind, name, no_space)
            with pytest.raises(OSError, match="No space left on device") as found:
                checkpoints.save_together("a", {"step": 2} | state, step=2)
        assert found.value.errno == errno.ENOSPC
        dist.barrier()
        assert sorted(path.name for path in folder.iterdir()) == before, name
        gather(None, group)


def test_slices_are_whole_or_refused_by_every_process(tmp_path: Path) -> None:
    run_in_groups([damage_slices, fill_disk], tmp_path, sizes=(2,))


def train_in_turns(port: int, args: list[str]) -> int:
    """Open and train runs in a group of the caller, of which one process has a fault, and then one without faults."""
    rank = int(os.environ.pop("TEST_RANK"))
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=30))

    def train(name: str, *options: str) -> None:
        command = complete_command(parse_command([*args, "--name", name, *options]))
        with Run.open(command.config, command.path, resume=command.resume) as run:
            run.train()
            if (evaluation := run.evaluate()) is not None:
                run.report(evaluation)

    missing = FileNotFoundError(errno.ENOENT, "no images on this machine")

    def fail_to_load(*args: object, **kwargs: object) -> Any:
        raise missing

    for name, target, fault, failing, kind, message in (
        ("images", "fastood.train.run._load_parts", fail_to_load, 1, (OSError, ValueError), "no images on this"),
        ("digests", "fastood.train.run.fingerprint", fail_to_load, 1, (OSError, ValueError), "no images on this"),
        ("config", "fastood.train.run.check_config", fail_to_load, 0, (OSError, ValueError), "no images on this"),
        ("weights", "fastood.train.run_folder.RunFolder.write_weights", no_space, 0, OSError, "No space left"),
        ("curve", "fastood.train.engine.loop.write_curve", no_space, 0, OSError, "No space left"),
        ("checkpoint", "fastood.train.engine.checkpoint.CheckpointFolder.save", no_space, 0, OSError, "No space left"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if rank == failing:
                patch.setattr(target, fault)
            with pytest.raises(kind, match=message):
                train(name)
        dist.barrier()
    with pytest.raises(StageFailedError, match="step 1 of 3: the loss is nan"):
        train("diverged", "--method.training.learning-rate", "1e30")
    train("weights", "--resume")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def msp_args(folder: Path) -> list[str]:
    options = [*tiny_data_args(folder), "--model.dropout", "0", "--method.training.epochs", "1"]
    options[options.index("--out") + 1] = "runs"
    return ["msp", *options, "--method.batch-size", "32"]


def test_a_fault_of_one_process_is_an_error_of_all_in_a_group_of_the_caller(tmp_path: Path) -> None:
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    variables = [{"TEST_RANK": str(rank)} for rank in range(2)]
    ended = launched(train_in_turns, variables, folders, free_port(), msp_args(tmp_path))
    assert [process.code for process in ended] == [0, 0], (ended[0].said, ended[1].said)
    runs = folders[0] / "runs"
    assert (runs / "weights" / "metrics.json").exists()
    failure = json.loads((runs / "diverged" / "failed.json").read_text())["msp"]
    # The loss of a step is read after the step, and the failure is that of the step.
    assert failure["step"] == 1
    assert failure["reason"].startswith("the loss is nan; in-distribution images")
    # A process that does not see the run ends the others, which would wait for it to join.
    port = free_port()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ended = launched(evaluate.main, [place | {"RANK": str(rank)} for rank in range(2)], folders, ["runs/weights"])
    assert [process.code for process in ended] == [1, 1], (ended[0].said, ended[1].said)
    assert "no run in runs/weights" in ended[1].said
    assert "error: process 1 of 2 (host " in ended[0].said
    assert "no run in runs/weights" in ended[0].said
