"""Threads: decided by what is computed, kept with the run, and quiet while they wait."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastood.common import openmp
from fastood.train import cli as train
from fastood.train.config import PRESETS, from_dict, to_dict
from fastood.train.environment import read_sessions
from fastood.train.resolved_config import default_threads, resolve, threads_to_resume
from fastood.train.run_folder import RunFolder
from tests.support.tiny_run import tiny_args


@pytest.fixture(autouse=True)
def own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("load", [1, 2])
def test_small_networks_have_one_thread_whatever_the_machine_has(load: int):
    torch.set_num_threads(load)
    assert default_threads(device="cpu", network="small-cnn", image_size=None) == 1
    assert default_threads(device="cpu", network="lenet-5", image_size=28) == 1
    assert default_threads(device="cpu", network="small-cnn", image_size=64) == load
    assert default_threads(device="cpu", network="wrn-40-4", image_size=32) == load
    assert default_threads(device="cuda", network="small-cnn", image_size=None) == load


def test_the_number_is_part_of_the_configuration():
    config = replace(PRESETS["resample", "embedded"], device="cpu")
    assert resolve(config).threads == 1
    assert resolve(replace(config, threads=3)).threads == 3
    values = to_dict(config)
    del values["threads"]
    assert from_dict(type(config), values).threads is None
    with pytest.raises(ValueError, match="threads must be at least 1, or None, got 0"):
        replace(config, threads=0)


def test_a_run_goes_on_as_it_began_and_warns_of_another_number(capsys: pytest.CaptureFixture[str]):
    assert threads_to_resume(None, 2, 1) == 2
    assert threads_to_resume(None, None, 1) == 1
    assert threads_to_resume(2, 2, 1) == 2
    assert capsys.readouterr().err == ""
    assert threads_to_resume(4, 2, 1) == 4
    assert "began with threads=2 and is resumed with threads=4" in capsys.readouterr().err


def test_the_command_line_keeps_and_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    args = tiny_args(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "run")

    def used() -> list[int]:
        return [session["threads"] for session in read_sessions(folder.environment)]

    before = torch.get_num_threads()
    assert train.main([*args, "--threads", "2"]) == 0
    assert [folder.read_config().threads] == used() == [2]
    assert train.main([*args, "--resume"]) == 0
    assert folder.read_config().threads == 2
    assert used() == [2, 2]
    assert "began with" not in capsys.readouterr().err
    assert train.main([*args, "--threads", "1", "--resume"]) == 0
    assert "began with threads=2 and is resumed with threads=1" in capsys.readouterr().err
    assert used() == [2, 2, 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "setting", "expected"),
    [
        (["-m", "fastood.told"], {}, "PASSIVE"),
        (["-m", "fastood.told"], {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (["-m", "fastood.told"], {"GOMP_SPINCOUNT": "100"}, "None"),
        (["-m", "other"], {}, "None"),
    ],
)
def test_threads_of_a_command_wait_quietly(
    tmp_path: Path, arguments: list[str], setting: dict[str, str], expected: str
):
    """The module alone, in a package of its name: torch would take seconds to load."""
    (tmp_path / "fastood").mkdir()
    source = Path(openmp.__file__).read_text(encoding="utf-8")
    (tmp_path / "fastood" / "__init__.py").write_text(f"{source}\nwait_quietly()\n", encoding="utf-8")
    told = "import os; print(os.environ.get('OMP_WAIT_POLICY'))\n"
    (tmp_path / "fastood" / "told.py").write_text(told, encoding="utf-8")
    (tmp_path / "other.py").write_text(f"import fastood\n{told}", encoding="utf-8")
    known = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if name not in known}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=clean | setting, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
