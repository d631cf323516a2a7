"""Launchers whose processes join one run, also without a shared disk, and the ends of a run by death and signal."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import fastood
from fastood.train import cli as train
from fastood.train.engine import lifeline
from fastood.train.engine.group import Group
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.engine.interrupt import StopRequest
from fastood.train.engine.launch import find_launch
from fastood.train.engine.processes import open_fabric
from fastood.train.engine.shared_folder import is_folder_shared, see_folder
from fastood.train.environment import begin_session, is_restarted
from tests.support.launched import free_port, launched
from tests.support.tiny_run import tiny_args, tiny_data_args

Variables = list[dict[str, str]]


def plain(port: int, **more: str) -> Variables:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | more
    return [place | {"RANK": str(rank)} for rank in range(2)]


def slurm(port: int) -> Variables:
    """Two tasks of `srun`, with the variables of an allocation and none that Fabric alone asks for."""
    names = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive", "SLURM_NODEID": "0"}
    place = names | {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(port - 15000), "SLURMD_NODENAME": "a"}
    return [place | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


def open_mpi(port: int) -> Variables:
    place = {"OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [place | {"OMPI_COMM_WORLD_RANK": str(rank)} for rank in range(2)]


def slurm_port() -> int:
    """A free port among those that `srun`'s tasks derive from the number of their job."""
    for port in range(15000 + os.getpid() % 9000, 25000):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def two_folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    return folders


def msp_args(folder: Path) -> list[str]:
    options = [*tiny_data_args(folder), "--model.dropout", "0", "--method.training.epochs", "1"]
    options[options.index("--out") + 1] = "runs"
    return ["msp", *options, "--method.batch-size", "32"]


def train_in_a_group_of_its_own(port: int, args: list[str]) -> int:
    """Train as Ray Train and Lightning do: within a group that the caller has set up and goes on to use."""
    rank = int(os.environ.pop("TEST_RANK"))
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    code = train.main(args)
    dist.barrier()
    dist.destroy_process_group()
    return code


def train_on_nodes(args: list[str], stop: tuple[str, int] | None) -> int:
    """Train; with `stop`, send SIGUSR1 to the second process alone at that step of that stage."""
    step = ImageStageRun.train_step

    def train_step(run: ImageStageRun) -> float:
        if (run.name, run.step) == stop and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGUSR1)
        return step(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageStageRun, "train_step", train_step)
        code = train.main(args)
    return code


def test_each_launcher_joins_one_run(tmp_path: Path):
    weights = []
    port = free_port()
    of_a_group = [{"TEST_RANK": str(rank)} for rank in range(2)]
    for name, variables in (("srun", slurm(slurm_port())), ("mpirun", open_mpi(port)), ("group", of_a_group)):
        (tmp_path / name).mkdir()
        folders = two_folders(tmp_path / name)
        args = msp_args(tmp_path / name)
        if name == "group":
            ended = launched(train_in_a_group_of_its_own, variables, folders, port, args)
        else:
            ended = launched(train.main, variables, folders, args)
        assert [process.code for process in ended] == [0, 0], (name, ended[0].said, ended[1].said)
        assert not (folders[1] / "runs").exists(), "the first process alone writes"
        session = json.loads((folders[0] / "runs" / "run" / "environment.json").read_text())["sessions"][0]
        assert session["processes"] == 2
        weights.append(load_file(folders[0] / "runs" / "run" / "models" / "msp.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_nodes_without_a_shared_disk_stop_and_resume(tmp_path: Path):
    """All stages, of which each begins with weights of another; the second node never sees the folder of the run."""
    folders = two_folders(tmp_path)
    args = tiny_args(tmp_path, out=Path("runs"))
    ended = launched(train_on_nodes, plain(free_port()), folders, args, ("finetune-random", 7))
    assert [process.code for process in ended] == [130, 130], (ended[0].said, ended[1].said)
    assert "stopped in stage 'finetune-random' after step 8" in ended[0].said
    # The first node alone knows the configuration of the run.
    again = ["--name", "run", "--resume"]
    ended = launched(train_on_nodes, plain(free_port()), folders, again, None)
    assert [process.code for process in ended] == [0, 0], (ended[0].said, ended[1].said)
    assert len(json.loads((folders[0] / "runs" / "run" / "metrics.json").read_text())["arms"]) == 4
    assert [path.name for path in folders[1].iterdir()] == ["rank1.log"]


def see(folder: Path) -> int:
    with Group.join():
        fabric = open_fabric("cpu", precision="32-true")
        seen = see_folder(Path("runs"), fabric), see_folder(folder, fabric), is_folder_shared(Path("runs"), fabric)
        assert seen == ([True, False], [True, True], False)
        assert fabric.world_size == 2
    return 0


def test_a_folder_that_only_some_processes_see_is_recognised(tmp_path: Path):
    folders = two_folders(tmp_path)
    ended = launched(see, plain(free_port()), folders, tmp_path / "shared")
    assert [process.code for process in ended] == [0, 0], (ended[0].said, ended[1].said)
    assert list((tmp_path / "shared").iterdir()) == list((folders[0] / "runs").iterdir()) == []
    assert not (folders[1] / "runs").exists()


def end_badly(how: str, args: list[str]) -> int:
    """Train, and end the second process at a step."""
    step = ImageStageRun.train_step

    def train_step(run: ImageStageRun) -> float:
        if run.step == 2 and os.environ["RANK"] == "1":
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise AttributeError("a fault of the second process")
        return step(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageStageRun, "train_step", train_step)
        return train.main(args)


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("kill", -signal.SIGKILL, "has ended without a message; it may have been killed"),
        ("raise", 1, "has failed: AttributeError: a fault of the second process"),
    ],
)
def test_a_process_that_dies_ends_the_others_by_name(tmp_path: Path, how: str, code: int, told: str):
    folders = two_folders(tmp_path)
    began = time.monotonic()
    ended = launched(end_badly, plain(free_port()), folders, how, msp_args(tmp_path))
    assert time.monotonic() - began < 60
    assert [process.code for process in ended] == [1, code], (ended[0].said, ended[1].said)
    assert ended[0].said.count("error: process 1 of 2 (host ") == 1
    assert told in ended[0].said
    assert "Traceback" not in ended[0].said


def wait_in_vain() -> int:
    """Wait in a call that does not return when the other process dies, as a collective of NCCL."""
    lifeline.GRACE = 1.0
    with Group.join() as group:
        if group.launch.rank == 0:
            os._exit(9)
        time.sleep(60)
    return 0


def test_a_process_that_waits_for_a_dead_one_is_ended(tmp_path: Path):
    ended = launched(wait_in_vain, plain(free_port()), two_folders(tmp_path))
    assert [process.code for process in ended] == [9, 1]
    assert "error: process 0 of 2 (host " in ended[1].said
    assert "this process still waits for it, and ends now" in ended[1].said


RESTARTED = """
import os, signal, sys
import pytest
from fastood.train import cli
from fastood.train.engine.image_stage import ImageStageRun
step = ImageStageRun.train_step
def train_step(run):
    if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"], run.step) == ("0", "1", 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run)
ImageStageRun.train_step = train_step
pytest.MonkeyPatch().setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_torchrun_restarts_from_the_last_checkpoint(tmp_path: Path):
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    there = {"PYTHONPATH": str(Path(fastood.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    args = [*torchrun, "--max-restarts", "1", str(script), *msp_args(tmp_path), "--checkpoint-every", "1"]
    done = subprocess.run(args, cwd=tmp_path, env=os.environ | there, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sessions = json.loads((tmp_path / "runs" / "run" / "environment.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert "epoch 1/1, step 3/3" in done.stdout


def test_another_torchrun_does_not_resume_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sessions = tmp_path / "environment.json"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    begin_session(sessions, command="train", device="cpu")
    assert not is_restarted(sessions), "the same process"
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert is_restarted(sessions)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    assert not is_restarted(sessions)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not is_restarted(sessions)
    assert not is_restarted(tmp_path / "absent.json")


def test_usr1_asks_for_the_end_of_the_step():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert stop.requested


PLACE = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": "n[7-9],b"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE, the number of processes, is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR, where the process of rank 0 is reached"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "but MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", **PLACE, "MASTER_PORT": "99999"}, "MASTER_PORT must be in 1 … 65535"),
        ({"WORLD_SIZE": "2", "RANK": "2", **PLACE}, "RANK must be less than WORLD_SIZE, which is 2, got 2"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE must be a whole number of at least 1, got 'two'"),
        (
            {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2", **PLACE},
            "LOCAL_RANK must be less than LOCAL_WORLD_SIZE, which is 2, got 2",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "4", **PLACE}, "LOCAL_WORLD_SIZE must be at most"),
        (SRUN | PLACE | {"WORLD_SIZE": "4", "RANK": "1"}, "contradict one another in the number of processes: 4 and 2"),
        (SRUN | PLACE | {"WORLD_SIZE": "2", "RANK": "0"}, "contradict one another in the rank: 0 and 1"),
        (SRUN | {"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, but 2 by Slurm"),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS is 2, but srun has not started this process"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n"}, "srun has not started this process"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "MASTER_ADDR, where the process of rank 0 is"),
        ({"PMI_SIZE": "4"}, "PMI_SIZE is 4, but PMI_RANK is not set"),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2"}, "torchrun must set RANK and WORLD_SIZE"),
    ],
)
def test_variables_that_contradict_one_another_are_refused(variables: Mapping[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        find_launch(variables)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"WORLD_SIZE": "1"}, ("none", 0, 1, None)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ("none", 0, 1, None)),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, ("none", 0, 1, None)),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ("none", 0, 1, None)),
        (SRUN, ("srun", 1, 2, ("n7", 18456))),
        (SRUN | {"SLURM_JOB_NAME": "bash", "WORLD_SIZE": "2", "MASTER_PORT": "5"}, ("srun", 1, 2, ("n7", 5))),
        ({"SLURM_NTASKS": "3", "SLURM_PROCID": "2"}, ("srun", 2, 3, ("127.0.0.1", 15000))),
        # torchrun as one task per node.
        (
            SRUN | PLACE | {"TORCHELASTIC_RUN_ID": "r", "WORLD_SIZE": "8", "RANK": "7"},
            ("torchrun", 7, 8, ("a", 1)),
        ),
        (PLACE | {"PMI_SIZE": "2", "PMI_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, ("variables", 1, 2, ("a", 1))),
    ],
)
def test_a_launch_is_read_from_its_variables(variables: Mapping[str, str], found: tuple[object, ...]):
    launch = find_launch(variables)
    place = (launch.address, launch.port) if launch.address else None
    assert (launch.launcher, launch.rank, launch.processes, place) == found


def test_a_contradiction_ends_the_command_before_data_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.train.command.read_recipe", lambda *args, **kwargs: pytest.fail("worked"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main([*tiny_args(tmp_path), "--config", "recipe.yaml"]) == 1
    assert "error: WORLD_SIZE is 2, but RANK is not set" in capsys.readouterr().err


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.engine.meeting.JOIN_TIMEOUT", timedelta(seconds=1))
    for name, value in plain(port := free_port())[0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TimeoutError, match="of 2 processes, those of rank 1 have not joined within 1 s"):
        Group.join()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(TimeoutError, match=f"process 1 of 2 has not reached process 0 on 127.0.0.1:{port}"):
        Group.join()
    monkeypatch.setenv("RANK", "0")
    with socket.create_server(("", port)), pytest.raises(OSError, match=f"process 0 cannot open port {port}"):
        Group.join()
    assert not dist.is_initialized()
