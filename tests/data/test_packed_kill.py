import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fastood.data.packed import writer as packing
from fastood.data.packed.writer import pack
from tests.support.packed_pool_samples import digests, open_tree, write_tree

# Where a pool's folder changes on disk. A write may also be cut in its middle.
CHANGES = ("pwrite", "ftruncate", "replace", "rename", "unlink")


def _kill_at_change(tree: Path, out: Path, store: str, kill_at: int) -> bool:
    """Pack in a child that kills itself at its k-th change of the disk; whether it got there."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    calls = 0

    def kill_before(original):
        def change(*args, **options):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                if original.__name__ == "pwrite":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return change

    for name in CHANGES:
        setattr(os, name, kill_before(getattr(os, name)))
    try:
        pack(open_tree(tree), out, origin="folder:tree", store=store, threads=1)
    finally:
        os._exit(0)


def _kill_at_changes(tree: Path, folder: Path, store: str, step: int) -> None:
    """For k = 1, 1 + step, …: kill an attempt at its k-th change, now and then the next one too, and let one finish."""
    torch.set_num_threads(1)
    # A killed process loses nothing that it has written: waiting for the disk only takes time here.
    os.fsync = lambda descriptor: None
    packing._CHECKPOINT_SECONDS, packing._CHUNK = 0.0, 8
    wanted = digests(pack(open_tree(tree), folder / "whole", origin="folder:tree", store=store, threads=1).path)
    kill_at = 1
    while _kill_at_change(tree, out := folder / f"killed{kill_at}", store, kill_at):
        if kill_at % 4 == 0 and not out.exists():
            _kill_at_change(tree, out, store, 5 + kill_at % 7)
        if not out.exists():
            pack(open_tree(tree), out, origin="folder:tree", store=store, threads=1)
        assert digests(out) == wanted, kill_at
        shutil.rmtree(out)
        kill_at += step
    assert digests(out) == wanted
    assert kill_at > 30


@pytest.mark.parametrize(("store", "step"), [("pixels", 6), ("jpeg", 1)])
def test_kill_at_any_change_of_the_disk_leaves_the_same_bytes(tmp_path, store, step):
    tree = write_tree(tmp_path / "tree", per_class=10)
    (tree / "ant/009.jpg").write_bytes(b"no image")
    # In a fresh process: a fork of this one would inherit locks of its threads.
    process = multiprocessing.get_context("spawn").Process(target=_kill_at_changes, args=(tree, tmp_path, store, step))
    process.start()
    process.join()
    assert process.exitcode == 0
