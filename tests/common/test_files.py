"""Files that are whole or absent, and what is said when they cannot be written."""

import errno
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch

from fastood.common.files import remove_temporaries, write_atomically
from fastood.train.engine.checkpoint import CheckpointFolder


def on_a_full_disk(limit: int, work: Callable[[], None]) -> None:
    """Run with files that the kernel lets grow no further than this, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("content", [b"x" * 5000, lambda file: [file.write(b"x" * 2500) for _ in range(2)]])
def test_a_full_disk_names_file_and_bytes_and_keeps_the_old(tmp_path: Path, content: bytes):
    path = tmp_path / "scores"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"cannot write .*scores: .*; 5,000 bytes are needed, [\d,]+ are free") as caught:
        on_a_full_disk(4000, lambda: write_atomically(path, content))
    assert caught.value.errno == errno.EFBIG
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("scores", b"old")]


def test_a_checkpoint_on_a_full_disk_is_no_torch_error(tmp_path: Path):
    checkpoints = CheckpointFolder(tmp_path)
    state = {"weights": torch.zeros(100_000)}
    checkpoints.save("whole", state)
    needed = f"{checkpoints.path('whole').stat().st_size:,} bytes are needed"
    for limit in (100, 200_000, 400_200):
        with pytest.raises(OSError, match=rf"cannot write .*pretrain\.pt: .*; {needed}"):
            on_a_full_disk(limit, lambda: checkpoints.save("pretrain", state))
    assert [file.name for file in tmp_path.iterdir()] == ["whole.pt"]


def test_a_folder_that_cannot_be_made_names_the_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/note: "):
        write_atomically(tmp_path / "file" / "note", b"")


def test_other_errors_are_passed_on(tmp_path: Path):
    def fail(file: IO[bytes]) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write_atomically(tmp_path / "note", fail)
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0")
    (tmp_path / ".note.0.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "note", b"other")
    assert victim.read_text() == "mine"


def write_often(path: Path, content: bytes) -> None:
    for _ in range(200):
        write_atomically(path, content)


def test_two_writers_of_one_file_leave_one_of_theirs(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    contents = [bytes([number]) * 20_000 for number in range(2)]
    writers = [context.Process(target=write_often, args=(tmp_path / "file", content)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_temporaries_of_given_names_alone(tmp_path: Path):
    for name in (".a[1].json.12.tmp", ".a[1].json.tmp", ".b.12.tmp", "c.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, "a[1].json")
    assert {path.name for path in tmp_path.iterdir()} == {".b.12.tmp", "c.tmp"}
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c.tmp"]
