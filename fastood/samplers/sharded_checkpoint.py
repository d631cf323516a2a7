"""State of a sharded pool: in memory as distributed tensors, and as one file that all processes write."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.ops import background_pool as ops
from fastood.samplers import pool_checks
from fastood.samplers.sharded_ascent import ShardedAscent
from fastood.samplers.state import NO_WEIGHT
from fastood.samplers.storage import SharedFile

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["ShardedCheckpoint"]


class ShardedCheckpoint(ShardedAscent):
    """Base class of `ShardedBackgroundPool` with the methods that save and load its state."""

    def synchronize(self) -> None:
        """Wait for the device, and raise the error of an earlier call on it on every process.

        Raises:
            ValueError: If a batch of `ascend`, or an index of `importance`, was invalid on a process.
        """
        self._checks.settle()
        with self._processes.agreeing("synchronize"):
            self._own_checks.settle()

    def _leaves(self) -> dict[str, Tensor]:
        """Return the tensors that determine the slice, not copied, with the bound of the whole pool."""
        return {**self._state.leaves(), "scale": self._whole[ops.MASS_QUANTUM :]}

    def state_dict(self) -> dict[str, Tensor | DTensor]:
        """Return copies of the tensors that determine the pool, for a checkpoint.

        `torch.distributed.checkpoint` saves each slice from its process, and loads it into any number of processes, or
        into the `state_dict` of a `BackgroundPool`:

            dcp.save({"pool": pool.state_dict()}, checkpoint_id=folder)
            state = {"pool": other.state_dict()}
            dcp.load(state, checkpoint_id=folder)
            other.load_state_dict(state["pool"])

        Returns:
            `omega` and `velocity`, float32 DTensors `[N]` of placement `Shard(0)`, and `scale`, the rounding units of
            the sums, float64 `[4]`, equal on every process.

        Raises:
            ValueError: If an earlier call on a CUDA device had values out of range. Every process raises.
        """
        self.synchronize()
        leaves = {name: tensor.clone() for name, tensor in self._leaves().items()}
        return {
            "omega": self._distributed(leaves["omega"]),
            "velocity": self._distributed(leaves["velocity"]),
            "scale": leaves["scale"],
        }

    def _distributed(self, own: Tensor) -> DTensor:
        """Return the distributed tensor `[N]` of which this process holds the slice."""
        # Imported here: the modules take longer to import than PyTorch's own samplers.
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        group = dist.group.WORLD if self._processes.group is None else self._processes.group
        assert group is not None
        mesh = DeviceMesh.from_group(group, self.device.type)
        # With the shape given, slices may differ in length, and nothing is exchanged.
        return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=torch.Size([len(self)]), stride=(1,))

    def load_state_dict(self, state: Mapping[str, Tensor | DTensor]) -> None:
        """Load the state of a pool of the same size, sharded by any number of processes or not at all.

        Args:
            state: Tensors that `state_dict` of this class or of `BackgroundPool` returned: `omega` and `velocity` as
                distributed tensors, as this slice alone `[end - begin]`, or as the whole pool `[N]`, of which the slice
                is taken. Without `scale` new rounding units are chosen.

        Raises:
            KeyError: If `omega` or `velocity` is missing.
            TypeError: If `state` is not a mapping of tensors.
            ValueError: If a tensor has another size or dtype or a value that is not finite on any process, or no
                example of the whole pool has weight. Every process raises, and the pool is unchanged.
        """
        self.synchronize()
        error: Exception | None = None
        try:
            own = self._own_part(state)
            pool_checks.check_state(own, self.end - self.begin)
            omega, drawable = self._state.clamped(own["omega"])
            sums = ops.pool_sums(omega, self.epsilon)
            scale = own.get("scale")
            found = (drawable, sums.tolist(), None if scale is None else scale.tolist())
        except Exception as wrong:  # of any type, because the other processes wait for the exchange below
            error = wrong
        self._processes.raise_together("load_state_dict", error)
        every = exchange(found, self._processes.group, device=self.device)
        check_alike("state['scale']", [quanta for *_, quanta in every])
        if not any(count for count, *_ in every):
            raise ValueError(NO_WEIGHT)
        total = torch.tensor([numbers for _, numbers, _ in every], dtype=torch.float64).sum(0)
        if found[2] is not None:
            pool_checks.check_scale(torch.tensor(found[2], dtype=torch.float64), total)
        total = total.to(self.device)
        self._state = self._state.write(
            omega, own["velocity"], self.epsilon, drawable=drawable, sums=total, scale=scale
        )
        self._drawable = sum(count for count, *_ in every)
        self._gather_totals()

    def _own_part(self, state: Mapping[str, Tensor | DTensor]) -> dict[str, Tensor]:
        """Return the tensors of a state with ω and velocity of this slice alone."""
        from torch.distributed.tensor import DTensor

        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping as state_dict returns it, got {type(state).__name__}")
        own = {}
        for name, tensor in state.items():
            if isinstance(tensor, DTensor):
                if name in ("omega", "velocity") and tensor.shape != (len(self),):
                    raise ValueError(f"state[{name!r}] must have {len(self)} examples, got shape {tuple(tensor.shape)}")
                tensor = tensor.to_local()
            is_whole = isinstance(tensor, Tensor) and tensor.shape == (len(self),)
            own[name] = tensor[self.begin : self.end] if is_whole and name in ("omega", "velocity") else tensor
        return own

    def save(self, path: str | PathLike[str]) -> None:
        """Write ε, momentum and the state of all slices as one safetensors file, which each process writes a part of.

        `BackgroundPool.save` writes equal files: `from_file` of either class reads them, with any number of processes.
        At any time the file is the complete old or the complete new one: a kill leaves a temporary file `.NAME.….tmp`.

        Args:
            path: Path of the file, on a file system that all processes share; an existing one is replaced.

        Raises:
            OSError: If the folder cannot be written, or a process does not see the file that rank 0 has begun. Every
                process raises, and the old file is unchanged.
            ValueError: If `path` differs between processes, or the error of a process that could not write.
        """
        self.synchronize()
        processes = self._processes
        leaves = self._leaves()
        options = {"epsilon": repr(self.epsilon), "momentum": repr(self.momentum)}
        tokens = exchange((str(path), token_hex(8)), processes.group, device=self.device)
        check_alike("path", [name for name, _ in tokens])
        lengths = {"omega": len(self), "velocity": len(self), "scale": 4}
        file = SharedFile(Path(path), tokens[0][1], leaves, lengths, options)
        is_first = processes.rank == 0
        try:
            processes.attempt("save", file.begin if is_first else None)
            begins = {"omega": self.begin, "velocity": self.begin, "scale": 0}
            if not is_first:
                del begins["scale"]
            processes.attempt("save", lambda: file.write(begins))
            processes.attempt("save", file.publish if is_first else None)
        finally:
            if is_first:
                file.discard()
