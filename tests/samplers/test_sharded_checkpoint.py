"""Checkpoints and files of a pool over 4, 3, 2 and 1 processes: resharded, complete, and refused when wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from tests.support.background_pool_samples import LAYOUTS, pool_of
from tests.support.gloo import gather, run_in_groups

Group = dist.ProcessGroup
NAMES = ("omega", "velocity", "masses", "stats")


def trained() -> BackgroundPool:
    pool = pool_of(LAYOUTS["half without weight"], epsilon=0.3, momentum=0.8)
    source = torch.Generator().manual_seed(5)
    for mode in ("sparse", "exact", "sparse"):
        index, _ = pool.sample(50, generator=source)
        pool.ascend(index, (index % 7).float(), lr=40.0, mode=mode)
    return pool


def groups_of(rank: int) -> list[tuple[int, Group]]:
    groups = [(size, dist.new_group(list(range(size)))) for size in (2, 3, 4)]
    return [(size, group) for size, group in groups if rank < size]


def is_slice_of(pool: ShardedBackgroundPool, whole: BackgroundPool, rank: int, size: int, group: Group) -> None:
    """The tensors are those of a slice cut from the whole pool, and further draws have the same bits."""
    want = whole.shard(rank, size, group=group)
    for name in NAMES:
        assert torch.equal(getattr(pool._state, name)[:6], getattr(want._state, name)[:6]), name
    assert pool.drawable == whole.drawable
    sources = [torch.Generator().manual_seed(1) for _ in range(2)]
    draws = [each.draw(30, generator=source) for each, source in zip((pool, want), sources, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def resharded(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """4 processes save; 4, 3, 2 and a pool of one process load, by torch's checkpoints, by files and by tensors."""
    whole = trained()
    pool = whole.shard(rank, world_size, group=group)
    state = pool.state_dict()
    assert state["omega"].shape == (len(whole),)
    dcp.save({"pool": state}, checkpoint_id=folder / "dcp", process_group=group)
    pool.save(folder / "sharded")
    if rank == 0:
        whole.save(folder / "whole")
        assert (folder / "sharded").read_bytes() == (folder / "whole").read_bytes()
    dist.barrier(group)
    for size, smaller in groups_of(rank):
        other = ShardedBackgroundPool(len(whole), epsilon=0.3, momentum=0.8, group=smaller)
        loaded = {"pool": other.state_dict()}
        dcp.load(loaded, checkpoint_id=folder / "dcp", process_group=smaller)
        other.load_state_dict(loaded["pool"])
        is_slice_of(other, whole, rank, size, smaller)
        is_slice_of(ShardedBackgroundPool.from_file(folder / "sharded", group=smaller), whole, rank, size, smaller)
        # Tensors of the whole pool, and of the slice alone.
        other.load_state_dict(BackgroundPool(len(whole)).state_dict())
        other.load_state_dict(whole.state_dict())
        is_slice_of(other, whole, rank, size, smaller)
        own = {name: part.to_local() if name != "scale" else part for name, part in other.state_dict().items()}
        other.load_state_dict({name: own[name] for name in ("omega", "velocity")})
        assert torch.equal(other._state.omega, whole._state.omega[other.begin : other.end])
        # Sharded again by fewer processes.
        if size == 2:
            dcp.save({"pool": loaded["pool"]}, checkpoint_id=folder / "two", process_group=smaller)
    if rank == 0:
        for name in ("dcp", "two"):
            one = BackgroundPool(len(whole), epsilon=0.3, momentum=0.8)
            loaded = {"pool": one.state_dict()}
            dcp.load(loaded, checkpoint_id=folder / name, no_dist=True)
            one.load_state_dict(loaded["pool"])
            assert all(torch.equal(getattr(one._state, part), getattr(whole._state, part)) for part in NAMES)
        assert torch.equal(BackgroundPool.from_file(folder / "sharded").weights, whole.weights)
        assert sorted(path.name for path in folder.iterdir()) == ["dcp", "sharded", "two", "whole"]
    dist.barrier(group)


def raises(call: Callable[[], object], message: str, group: Group, kind: type[Exception] = ValueError) -> None:
    with pytest.raises((kind, ValueError), match=message) as found:
        call()
    gather(str(found.value), group)


def refused(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """A state that is wrong on one process, or overall, changes nothing on any."""
    whole = trained()
    pool = ShardedBackgroundPool(len(whole), epsilon=0.3, group=group)
    last, size = rank == world_size - 1, pool.end - pool.begin
    before = [getattr(pool._state, name).clone() for name in NAMES]
    good = {"omega": torch.zeros(size), "velocity": torch.zeros(size)}
    scale, nan = whole.state_dict()["scale"], torch.full((size,), torch.nan)
    for state, message in (
        ({**good, "omega": nan}, r"state\['omega'\] must be finite"),
        ({**good, "velocity": nan}, r"state\['velocity'\] must be finite"),
        ({**good, "omega": torch.zeros(size + 1)}, r"state\['omega'\] must be float32 of shape"),
        ({**good, "omega": torch.zeros(size).double()}, r"state\['omega'\] must be float32 of shape"),
        ({"omega": good["omega"]}, "state must hold 'omega' and 'velocity'"),
        ({**good, "omega": [0.0]}, r"state\['omega'\] must be a torch.Tensor, got list"),
        ({**good, "scale": scale[:3]}, r"state\['scale'\] must be float64 of shape"),
        ({**good, "scale": scale}, r"state\['scale'\] must be the same on every process"),
        ([1], "state must be a mapping"),
    ):
        raises(lambda state=state: pool.load_state_dict(state if last else good), message, group, Exception)
    none = {"omega": torch.full((size,), -torch.inf), "velocity": torch.zeros(size)}
    raises(lambda: pool.load_state_dict(none), "every example has weight zero", group)
    raises(lambda: pool.load_state_dict({**good, "scale": scale / 1e9}), "does not belong to these weights", group)
    other = ShardedBackgroundPool(len(whole) + world_size, group=group).state_dict()
    raises(lambda: pool.load_state_dict(other), rf"state\['omega'\] must have {len(whole)} examples", group)
    assert all(torch.equal(getattr(pool._state, name), was) for name, was in zip(NAMES, before, strict=True))
    pool.load_state_dict(none if last else good)
    assert pool.drawable == len(pool) - (len(pool) - (world_size - 1) * -(-len(pool) // world_size))

    path = folder / "pool.safetensors"
    pool.save(path)
    old = path.read_bytes()
    real = torch.split

    def full(*args: object) -> object:
        raise OSError(28, "No space left on device")

    if last:
        torch.split = full
    raises(lambda: pool.save(path), "No space left on device", group, OSError)
    torch.split = real
    differ = folder / f"{rank}"
    raises(lambda: pool.save(differ), "path must be the same on every process", group)
    unseen = folder / "unseen"
    if last:
        folder.joinpath("other").mkdir()
        import fastood.samplers.storage as storage

        exists, storage.Path.exists = storage.Path.exists, lambda path: False
    raises(lambda: pool.save(unseen), "must be on a file system that all processes share", group, OSError)
    if last:
        storage.Path.exists = exists
        folder.joinpath("other").rmdir()
    dist.barrier(group)
    assert path.read_bytes() == old
    assert [file.name for file in folder.iterdir()] == ["pool.safetensors"]

    dist.barrier(group)
    damaged = folder / "damaged"
    for content, message in ((old[:-9], "is not a complete background pool"), (b"", "is not a complete")):
        if rank == 0:
            damaged.write_bytes(content)
        dist.barrier(group)
        raises(lambda: ShardedBackgroundPool.from_file(damaged, group=group), message, group)
        dist.barrier(group)
    if rank == 0:
        damaged.write_bytes(old[:-4] + torch.tensor([torch.nan]).numpy().tobytes())
    dist.barrier(group)
    raises(lambda: ShardedBackgroundPool.from_file(damaged, group=group), "does not hold a background pool", group)
    absent = folder / "absent" if last else path
    raises(lambda: ShardedBackgroundPool.from_file(absent, group=group), "absent", group, OSError)


def test_slices_are_saved_and_resharded(tmp_path: Path) -> None:
    run_in_groups((resharded, refused), tmp_path, sizes=(4,))
