"""A pool over 2 and 4 processes (gloo) against the undivided pool, which every process keeps beside its slice."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from tests.support.background_pool_samples import LAYOUTS, pool_of


def gather(values: torch.Tensor) -> torch.Tensor:
    """Tensors of different lengths from all processes, joined in order of rank."""
    parts: list[torch.Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return torch.cat(parts)


def same_as_whole(slice_: ShardedBackgroundPool, whole: BackgroundPool) -> None:
    torch.testing.assert_close(slice_.weights, whole.weights[slice_.begin : slice_.end], rtol=1e-6, atol=0)
    assert slice_.effective_sample_size() == pytest.approx(whole.effective_sample_size(), rel=1e-7)


def draws_and_steps(rank: int, world_size: int) -> None:
    for name in ("skewed", "half without weight", "three levels", "one of many"):
        whole = pool_of(LAYOUTS[name])
        slice_ = whole.shard(rank, world_size)
        sources = [torch.Generator().manual_seed(4) for _ in range(2)]
        for step in range(12):
            # As long as weights are equal bit for bit, so are draws, normalisers and selections.
            slice_ = whole.shard(rank, world_size) if step % 3 == 0 else slice_
            uniform = torch.rand(64, dtype=torch.float64, generator=sources[0])
            want = whole._state.find(uniform, whole.epsilon)
            index, importance = slice_.sample(64, generator=sources[1])
            if step % 3 == 0:
                assert torch.equal(gather(index).sort().values, want.sort().values)
                assert torch.equal(importance, whole.importance(index))
                assert torch.equal(slice_.importance(index), importance)
                assert slice_.effective_sample_size() == whole.effective_sample_size()
                chosen = [pool.select(0.3, generator=torch.Generator().manual_seed(9)) for pool in (slice_, whole)]
                assert torch.equal(gather(chosen[0]), chosen[1])
            mode = ("exact", "sparse")[step % 2]
            slice_.ascend(index, (index % 5).float(), lr=20.0, mode=mode)
            both = gather(index)
            whole.ascend(both, (both % 5).float(), lr=20.0, mode=mode)
            same_as_whole(slice_, whole)


def growth(rank: int, world_size: int) -> None:
    """Totals outgrow their quanta, in one slice alone."""
    whole = BackgroundPool(100, momentum=0.0)
    slice_ = whole.shard(rank, world_size)
    before = slice_.state_dict()["scale"]
    index = torch.arange(8) if rank == 0 else torch.zeros(0, dtype=torch.int64)
    for _ in range(10):
        slice_.ascend(index, torch.full((len(index),), 1e3), lr=1e4)
        whole.ascend(torch.arange(8), torch.full((8,), 1e3), lr=1e4)
        same_as_whole(slice_, whole)
    assert not torch.equal(slice_.state_dict()["scale"][:3], before[:3])
    torch.testing.assert_close(slice_.state_dict()["scale"][:3], whole.state_dict()["scale"][:3], rtol=0, atol=0)


def bad_batches(rank: int, world_size: int) -> None:
    slice_ = BackgroundPool(10).shard(rank, world_size)
    before = slice_.state_dict()
    good = torch.tensor([slice_.begin])
    last = world_size - 1
    for index, loss, error, message in (
        (torch.tensor([10]), torch.ones(1), ValueError, "index must be in .* … 9, got 10"),
        (torch.tensor([0]), torch.ones(1), ValueError, "index must be in .* … 9, got 0"),
        (good, torch.tensor([float("nan")]), ValueError, "got nan at position 0"),
        (good.int(), torch.ones(1), TypeError, "index must be int64"),
    ):
        if rank == last:
            with pytest.raises(error, match=message):
                slice_.ascend(index, loss, lr=1.0)
        else:
            with pytest.raises(ValueError, match="the batches of 1 other processes"):
                slice_.ascend(good, torch.ones(1), lr=1.0)
    alone = good if rank == 0 else good[:0]
    with pytest.raises(ValueError, match="must stay in float32's range"):
        slice_.ascend(alone, torch.full((len(alone),), 1e38), lr=1e5)
    with pytest.raises(ValueError, match="at least one example on some process"):
        slice_.ascend(good[:0], torch.ones(0), lr=1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in slice_.state_dict().items())
    # torch's own generator would have each process draw another batch.
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got NoneType"):
        slice_.sample(4, generator=None)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got NoneType"):
        slice_.select(0.5, generator=None)
    with pytest.raises(ValueError, match="rank must be that of the process group"):
        BackgroundPool(10).shard(rank + 1, world_size)
    with pytest.raises(ValueError, match="at most the 1 examples of the pool"):
        BackgroundPool(1).shard(rank, world_size)


def run(rank: int, world_size: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        for body in (draws_and_steps, growth, bad_batches):
            body(rank, world_size)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_act_as_the_undivided_pool(world_size: int, tmp_path: Path) -> None:
    mp.spawn(run, args=(world_size, str(tmp_path / "rendezvous")), nprocs=world_size)
