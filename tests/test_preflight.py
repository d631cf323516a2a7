"""`make setup` on machines that lack something: it says what, all at once, and leaves nothing in the way of a retry."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PREFLIGHT: dict[str, Any] = runpy.run_path(str(ROOT / ".ci/preflight.py"))
GLOBALS: dict[str, Any] = PREFLIGHT["missing"].__globals__


def test_nothing_is_missing_where_the_tests_run(tmp_path: Path) -> None:
    if not PREFLIGHT["compiler_problem"]():
        sentences, packages = PREFLIGHT["missing"]()
        assert (sentences, packages) == ([], [])


def test_everything_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    monkeypatch.setitem(GLOBALS, "GIGABYTES", 1e9)
    monkeypatch.setattr(GLOBALS["sysconfig"], "get_path", lambda name: str(tmp_path))
    sentences, packages = PREFLIGHT["missing"](str(tmp_path / "venv"))
    headers, venv, compiler, disk = sentences
    assert headers == f"Python's headers: {tmp_path}/Python.h is not there"
    assert venv.startswith(f"a complete venv: {sys.executable} has no working ensurepip")
    assert compiler == "a C++20 compiler: /bin/false cannot build a program of C++20 (exit 1)"
    assert disk.endswith(f"are free in {tmp_path}")
    python = f"python3.{sys.version_info[1]}"
    assert packages == [(f"{python}-dev", f"{python}-devel"), (f"{python}-venv", python), ("g++", "gcc-c++")]
    lines = PREFLIGHT["describe"](sentences, packages)
    assert any(f"install {python}-dev {python}-venv g++" in line or f"{python}-devel" in line for line in lines)


@pytest.mark.parametrize("newer", [None, "python3.99"])
def test_an_old_python_is_told_which_to_take(newer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GLOBALS, "OLDEST", (3, 99))
    monkeypatch.setitem(GLOBALS, "newer_python", lambda: newer)
    monkeypatch.setitem(GLOBALS, "compiler_problem", lambda: None)
    (sentence,), packages = PREFLIGHT["missing"]("venv")
    assert sentence.endswith("; give PYTHON=python3.99")
    wanted = [("python3.99", "python3.99"), ("python3.99-dev", "python3.99-devel"), ("python3.99-venv", "python3.99")]
    assert packages == ([] if newer else wanted)


def make_setup(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make setup`, whose PYTHON refuses to make environments, so that nothing is ever downloaded."""
    python = venv.parent / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = venv ] && {{ mkdir "$3/half"; exit 1; }}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = ["make", "-C", ROOT, "setup", f"VENV={venv}", f"PYTHON={python}"]
    # Without the flags of a make that runs the tests.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **environment})


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_a_set_up_that_stopped_is_started_again(tmp_path: Path) -> None:
    venv = tmp_path / "an environment"
    for _ in range(2):
        done = make_setup(venv)
        assert done.returncode != 0
        assert "was not made by this Makefile" not in done.stdout
        assert sorted(path.name for path in venv.iterdir()) == [".made-by-fastood", "half"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_what_is_missing_stops_a_set_up_before_it_begins(tmp_path: Path) -> None:
    venv = tmp_path / "an environment"
    done = make_setup(venv, CXX="nowhere-c++")
    assert done.returncode != 0
    assert "a C++20 compiler: no nowhere-c++ on PATH, which CXX names" in done.stdout
    assert "g++" in done.stdout
    assert not venv.exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_environment_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    venv = tmp_path / "mine"
    venv.mkdir()
    (venv / "precious").touch()
    done = make_setup(venv)
    assert done.returncode != 0
    assert "exists and was not made by this Makefile" in done.stdout
    assert [path.name for path in venv.iterdir()] == ["precious"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_environment_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    """Its `activate` would enter the folder where it was."""
    venv = tmp_path / "here"
    make_setup(venv)
    pins = subprocess.run(
        ["make", "-C", ROOT, "-n", "setup", f"PYTHON={tmp_path}/python"], capture_output=True, text=True
    )
    stamp = pins.stdout.partition('!= "')[2].partition('"')[0]
    (venv / "bin").mkdir()
    (venv / "bin/activate").write_text(f"VIRTUAL_ENV={venv}\n")
    (venv / ".made-by-fastood").write_text(stamp)
    assert make_setup(venv).returncode == 0, "it is up to date"
    moved = tmp_path / "there"
    venv.rename(moved)
    done = make_setup(moved)
    assert f"Setting up {moved}" in done.stdout
