"""Standard streams that are closed, full or of another encoding; help that fits the terminal, and soon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastood
from fastood.console.help import paragraph
from tests.support.tiny_run import finished_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished"))


def run_command(
    *args: str, folder: Path, stdout: object = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(fastood.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | variables,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=300,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_ends_no_command(finished: Path, tmp_path: Path, encoding: str):
    done = run_command("fastood.evaluate", str(finished), folder=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"the same as metrics.json" in done.stdout


def test_a_full_or_closed_stdout_ends_no_command(finished: Path, tmp_path: Path):
    with Path("/dev/full").open("wb") as full:
        done = run_command("fastood.evaluate", str(finished), folder=tmp_path, stdout=full)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().strip() == "warning: stdout cannot be written: [Errno 28] No space left on device"
    read, write = os.pipe()
    os.close(read)
    done = run_command("fastood.train", "--help", folder=tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_fits_the_terminal_and_has_examples(tmp_path: Path):
    for command in (["fastood.train", "msp"], ["fastood.evaluate"], ["fastood.data"]):
        text = run_command(*command, "--help", folder=tmp_path, COLUMNS="80").stdout.decode()
        assert max(map(len, text.splitlines())) <= 80
        assert "Examples:" in text
        assert "0.33333" not in text
    wrong = run_command("fastood.train", "msp", "--bad", folder=tmp_path, COLUMNS="100").stderr.decode()
    assert "python -m fastood.train msp --help" in wrong


def test_help_waits_for_no_training(tmp_path: Path):
    heavy = ["lightning_fabric", "torchvision", "sklearn", "scipy", "matplotlib", "tensorboard", "torch._dynamo"]
    code = (
        "import sys; from fastood.train import cli as train\n"
        "try: train.main(['msp', '--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stderr.strip() == "[]"


def test_paragraphs_keep_items():
    assert paragraph("a b\n    (c\n    d).\n    odd: one; odd\n    two") == "a b (c d).\nodd: one; odd two"
