"""A sharded pool on the emulated device, by 2 processes: steps that do not wait, and errors that come late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import ShardedBackgroundPool
from fastood.samplers.processes import Processes
from tests.emulation.device import emulated_cuda
from tests.emulation.tensor import DeviceTensor
from tests.emulation.waits import count_host_waits
from tests.support.gloo import gather, run_in_groups

Group = dist.ProcessGroup


@contextmanager
def device() -> Iterator[list[int]]:
    """The emulated device, whose tensors gloo exchanges within the host; yields the sizes of the exchanges."""
    sizes: list[int] = []
    op = ops.pool_importance

    def exchange(self: Processes, own: Tensor) -> Tensor:
        inner = own.inner if isinstance(own, DeviceTensor) else own
        every = torch.empty(self.size * inner.numel(), dtype=inner.dtype)
        dist.all_gather_into_tensor(every, inner.reshape(-1), group=self.group)
        sizes.append(inner.numel())
        every = every.view(self.size, *own.shape)
        # NCCL leaves its result on the device; this copy to it does not wait, either.
        return every.pin_memory().to("cuda", non_blocking=True) if own.is_cuda else every

    def importance(omega: Tensor, stats: Tensor, index: Tensor, epsilon: float) -> Tensor:
        """Return NaN for an index out of range, as the op on CUDA does, where the op of the CPU raises."""
        outside = (index < 0) | (index >= len(omega))
        return op(omega, stats, index.masked_fill(outside, 0), epsilon).masked_fill(outside, torch.nan)

    with (
        emulated_cuda(),
        mock.patch.object(Processes, "gather", exchange),
        mock.patch.object(ops, "pool_importance", importance),
    ):
        yield sizes


def contents(pool: ShardedBackgroundPool) -> dict[str, Tensor]:
    """State of a slice, without a call that would raise a pending error."""
    return {name: getattr(pool._state, name).cpu().clone() for name in ("omega", "velocity", "masses", "stats")}


def steps(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """Two exchanges a step, no wait but the one of the draw, and the results of the CPU."""
    with device() as sizes:
        pools = {kind: ShardedBackgroundPool(300, device=kind, group=group) for kind in ("cpu", "cuda")}
        sources = {kind: torch.Generator(kind).manual_seed(3) for kind in pools}
        for step in range(6):
            mode, lr = ("exact", "sparse")[step % 2], 10.0**step
            found = []
            for kind, pool in pools.items():
                torch.cuda.synchronize()
                options = {"verify": step == 5, "replacement": step != 4, "stratified": step == 3}
                with count_host_waits() as waits:
                    index, _, position = pool.draw(40, generator=sources[kind], **options)
                loss = (position % 3).float()
                if kind == "cuda" and step < 4:
                    assert len(waits) == 1, waits
                sizes.clear()
                with count_host_waits() as waits:
                    importance = pool.importance(index)
                    pool.ascend(index, loss, lr=lr, mode=mode)
                assert not waits, waits
                # On the CPU new quanta are chosen at once, on the device by the next step.
                assert len(sizes) == 2 or step > 1
                pool.synchronize()
                found.append([tensor.cpu() for tensor in (index, position, importance)])
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        want = contents(pools["cpu"])
        for name, tensor in contents(pools["cuda"]).items():
            torch.testing.assert_close(tensor, want[name], rtol=1e-6, atol=0, msg=name)


def late_errors(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """An invalid batch of one process changes nothing, and raises in the next collective call of every process."""
    last = rank == world_size - 1
    with device():
        pool = ShardedBackgroundPool(100, device="cuda", group=group)
        good, one = torch.tensor([pool.begin]).cuda(), torch.ones(1).cuda()
        bad = torch.tensor([pool.begin + 1, 0]).cuda()
        before = contents(pool)
        empty = good[:0]
        for step, message in (
            (lambda: pool.ascend(bad if last else good, one.expand(2 if last else 1), lr=1.0), "got 0 at position 1"),
            (lambda: pool.ascend(good, -one if last else one, lr=1.0), r"got -1.0 at position 0 \(example"),
            (lambda: pool.ascend(good, one * (1e38 if last else 1), lr=1e5), r"got up to 1e\+38 · 100000"),
            (lambda: pool.ascend(good, one, lr=1.0 + last), "lr must be the same on every process, got 1.0 on rank 0"),
            (lambda: pool.ascend(good, one, lr=1.0, mode="sparse" if last else "exact"), "mode must be the same"),
            (lambda: pool.ascend(empty, empty.float(), lr=1.0), "at least one example on some process"),
        ):
            with count_host_waits() as waits:
                step()
            assert not waits, waits
            after = contents(pool)
            assert all(torch.equal(after[name], before[name]) for name in before)
            with pytest.raises(ValueError, match=message + ".*; this was the batch of an earlier call") as found:
                pool.ascend(good, one, lr=1.0)
            assert len(set(gather(str(found.value).split(": ")[-1], group))) == 1
        pool.draw(6, generator=torch.Generator("cuda").manual_seed(rank), verify=False)
        pool.ascend(good, one, lr=1.0)
        with pytest.raises(ValueError, match="generator and batch_size must be the same on every process"):
            pool.synchronize()
        pool.draw(6, generator=torch.Generator("cuda").manual_seed(1), verify=False)
        assert all(torch.equal(tensor, before[name]) for name, tensor in contents(pool).items())

        # An argument is checked on the host: this process raises at once, the others by their next call.
        if last:
            with pytest.raises(TypeError, match="index must be int64"):
                pool.ascend(good.int(), one, lr=1.0)
        else:
            pool.ascend(good, one, lr=1.0)
            with pytest.raises(ValueError, match=f"ascend got wrong arguments on rank {world_size - 1}; this was"):
                pool.ascend(good, one, lr=1.0)
        # importance is not collective: the next step brings its error to all processes.
        if last:
            assert pool.importance(bad).isnan().tolist() == [False, True]
        torch.cuda.synchronize()
        message = "index must be in .*, got 0; this was an index of an earlier call of importance"
        if last:
            with pytest.raises(ValueError, match=message):
                pool.ascend(good, one, lr=1.0)
        else:
            pool.ascend(good, one, lr=1.0)
            with pytest.raises(ValueError, match="wrong arguments on rank"):
                pool.top(3)
        if last:
            pool.importance(bad)
        with pytest.raises(ValueError, match=message):
            pool.synchronize()
        pool.ascend(good, one, lr=1.0)
        pool.synchronize()
        assert not torch.equal(contents(pool)["omega"], before["omega"])


def test_steps_of_slices_on_a_device(tmp_path: Path) -> None:
    run_in_groups((steps, late_errors), tmp_path, sizes=(2,))
