"""Examples of a pool in the loops of other libraries: each runs as its docstring says, on two processes."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"rank (\d): (mean weight (\d+\.\d+) of background like the images, (\d+\.\d+) of the rest)")


def start(*command: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, text=True, **output)


def check(*processes: subprocess.Popen[str]) -> None:
    """The replicas of both ranks are equal, and the background that fools the network has the larger weights."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    output = "\n".join(outputs)
    assert [process.returncode for process in processes] == [0] * len(processes), output
    found = LINE.findall(output)
    assert sorted(rank for rank, *_ in found) == ["0", "1"], output
    assert found[0][1] == found[1][1], output
    assert float(found[0][2]) > 2 * float(found[0][3]), output


def launch(example: str) -> None:
    """Start the two processes that torchrun would start, without the time that torchrun takes itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    check(*(start(f"examples/{example}", RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)))


def test_ddp() -> None:
    check(start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "examples/pool_ddp.py"))


def test_lightning() -> None:
    check(start("examples/pool_lightning.py"))


def test_accelerate() -> None:
    pytest.importorskip("accelerate", reason="the extra `examples` is not installed")
    launch("pool_accelerate.py")


def test_hf_trainer() -> None:
    pytest.importorskip("transformers", reason="the extra `examples` is not installed")
    launch("pool_hf_trainer.py")


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_stateful_loader_resumes_within_an_epoch(tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("torchdata", reason="the extra `examples` is not installed")
    spec = importlib.util.spec_from_file_location("pool_stateful_loader", ROOT / "examples/pool_stateful_loader.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    checkpoint = tmp_path / "checkpoint.pt"
    with torch.random.fork_rng():
        whole = example.train(epochs=2)
        stopped = example.train(checkpoint, stop_after=25, epochs=2)
        assert not torch.equal(stopped, whole)
        assert torch.equal(example.train(checkpoint, epochs=2), whole)
