"""Locks of folders: one holder, whose end is the lock's, however it comes."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fastood.common.locking import LOCK_NAME, hold_lock

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, told: Connection, with_child: bool) -> None:
    """Hold the lock until killed; with a child that outlives the kill."""
    with hold_lock(folder, doing="writing this run"):
        child = FORK.Process(target=time.sleep, args=(60,))
        if with_child:
            child.start()
        told.send(child.pid)
        time.sleep(60)


@pytest.mark.parametrize("with_child", [False, True])
def test_a_kill_releases_the_lock_even_while_a_child_lives(tmp_path: Path, with_child: bool):
    ours, theirs = FORK.Pipe()
    holder = FORK.Process(target=hold, args=(tmp_path, theirs, with_child))
    holder.start()
    child = ours.recv()
    named = rf"another process \(pid {holder.pid}, host .*\) is writing this run: "
    with pytest.raises(BlockingIOError, match=named), hold_lock(tmp_path, doing="writing this run"):
        pass
    holder.kill()
    holder.join()
    with hold_lock(tmp_path, doing="writing this run"):
        assert f"pid {os.getpid()}," in (tmp_path / LOCK_NAME).read_text()
    if with_child:
        os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_an_error_releases_the_lock_and_leaves_no_folder(tmp_path: Path):
    folder = tmp_path / "runs" / "run"
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"), hold_lock(folder, doing="writing"):
            raise ValueError("mine")
        assert not list(tmp_path.iterdir())


def test_a_folder_that_must_be_new(tmp_path: Path):
    with pytest.raises(FileExistsError), hold_lock(tmp_path, doing="writing", exist_ok=False):
        pass
    assert not list(tmp_path.iterdir())


def test_the_folder_may_be_renamed(tmp_path: Path):
    folder = tmp_path / "half"
    with hold_lock(folder, doing="writing"):
        (folder / "file").touch()
        folder.rename(tmp_path / "whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["whole", "file"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "run").touch()
    with pytest.raises(OSError, match="run"), hold_lock(tmp_path / "run", doing="writing"):
        pass
    with (
        pytest.raises(OSError, match=r"cannot write .*run/inside"),
        hold_lock(tmp_path / "run/inside", doing="writing"),
    ):
        pass


def test_where_files_cannot_be_locked_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_lock(tmp_path, doing="writing"):
        pass
    assert "has no locks: do not write it twice" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
