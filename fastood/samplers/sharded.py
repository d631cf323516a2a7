"""Background pool over several processes: each owns a slice, and all draw from the whole pool."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.ops._arguments import allocating, as_device, is_bool, shown
from fastood.samplers import pool_checks
from fastood.samplers.deferred import DeferredChecks
from fastood.samplers.processes import Processes, slice_bounds
from fastood.samplers.sharded_checkpoint import ShardedCheckpoint
from fastood.samplers.softplus import inverse_softplus
from fastood.samplers.state import PoolState
from fastood.samplers.storage import map_tensors

__all__ = ["ShardedBackgroundPool"]


class ShardedBackgroundPool(ShardedCheckpoint):
    """Slice of a background pool that one process owns.

    The slice of rank k are the `ceil(N / R)` examples from `k ceil(N / R)` on, as `torch.chunk` cuts a tensor. Indices
    always refer to the whole pool. Each process makes the tensors of its slice alone, 8.13 bytes an example.

    All methods except `importance` and `weights` are collective: all processes call them in the same order. If an
    argument is wrong on one process, or differs between processes, every process raises, and nothing changes. A process
    receives the draws that fall into its slice, and takes the ascent step for them.

    Draws from the whole pool are exact: every process draws the same uniform numbers, from generators with the same
    seed, and keeps those that fall into its part of the running sum of all masses. The counts per process are thus
    multinomial. Sums are exact (csrc/background_pool/layout.h), so that totals, draws and selections equal those of the
    undivided pool bit for bit as long as the weights do, except that `BackgroundPool.sample` draws by rejection from a
    pool with similar weights. The loss of a batch is summed per process first, which rounds differently in float64.

    A step of Algorithm 1 (`draw` with `verify=False`, `importance`, `ascend`) has two exchanges, both of `ascend`: six
    numbers of each process before the step, and seven after it. On a CUDA device the host waits for neither. The
    processes' numbers are compared on the device, which refuses an invalid step on every process; all of them raise
    the error in their next collective call, which does nothing itself and works when it is repeated.

    Args:
        num_examples: N, the size of the whole pool, at least one example for each process.
        epsilon: ε in [0, 1]; see `BackgroundPool`.
        momentum: Momentum of the ascent, in [0, 1).
        initial_weight: Initial w of every example, in [1e-30, 1e6].
        device: Device of the slice and of the drawn indices.
        group: Process group of `torch.distributed`; None for the default group.

    Attributes:
        begin: Index of the first example of the slice.
        end: Index after the last example of the slice.
        epsilon: ε, a float.
        momentum: Momentum, a float.

    Raises:
        RuntimeError: If there is no process group.
        TypeError: If a number is not one.
        ValueError: If an argument is out of range or differs between processes, a process would have no example, or
            this process is not in `group`.
        MemoryError: If a slice does not fit into memory.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        epsilon: float = 0.5,
        momentum: float = 0.9,
        initial_weight: float = 1.0,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._processes = Processes(group, torch.device("cpu"))
        error: Exception | None = None
        arguments: tuple[object, ...] = ()
        try:
            device = self._processes.device = as_device("device", device)
            options = pool_checks.checked_options(num_examples, epsilon, momentum, initial_weight)
            num_examples, epsilon, momentum, initial_weight = arguments = options
            begin, end = slice_bounds(num_examples, self._processes.rank, self._processes.size)
        except Exception as wrong:  # of any type, because the other processes wait for the exchange below
            error = wrong
        self._processes.raise_together("ShardedBackgroundPool", error)
        every = exchange(arguments, group, device=self._processes.device)
        for place, name in enumerate(("num_examples", "epsilon", "momentum", "initial_weight")):
            check_alike(name, [values[place] for values in every])
        state = None
        try:
            omega = inverse_softplus(initial_weight)
            with allocating(f"{end - begin} examples of num_examples {num_examples}"):
                state = PoolState.uniform(end - begin, omega, epsilon, device, pool_size=num_examples)
        except Exception as wrong:
            error = wrong
        self._processes.raise_together("ShardedBackgroundPool", error)
        assert state is not None
        self._set_up(state, begin, num_examples, epsilon, momentum, num_examples)

    @classmethod
    def cut(
        cls,
        whole: PoolState,
        rank: int,
        world_size: int,
        *,
        epsilon: float,
        momentum: float,
        group: dist.ProcessGroup | None,
    ) -> ShardedBackgroundPool:
        """Return the slice of a whole pool; see `BackgroundPool.shard` for arguments and errors."""
        processes, size = Processes(group, whole.omega.device), whole.omega.numel()

        def check() -> None:
            for name, value, expected in (("rank", rank, processes.rank), ("world_size", world_size, processes.size)):
                if is_bool(value) or value != expected:
                    raise ValueError(f"{name} must be that of the process group, {expected}, got {shown(value)}")

        processes.attempt("shard", check)
        every = exchange((size, epsilon, momentum, whole.stats.tolist()), group, device=processes.device)
        for place, name in enumerate(("num_examples", "epsilon", "momentum", "the sums over the pool's weights")):
            check_alike(name, [values[place] for values in every])
        begin, end = slice_bounds(size, rank, world_size)
        pool = cls.__new__(cls)
        pool._processes = processes
        pool._set_up(whole.part(begin, end, epsilon), begin, size, epsilon, momentum, whole.drawable)
        return pool

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> ShardedBackgroundPool:
        """Return the pool that `save` of this class or of `BackgroundPool` wrote, with any number of processes.

        Each process maps the file and reads its slice alone.

        Args:
            path: Path of the file.
            device: Device of the slice.
            group: Process group; None for the default group.

        Raises:
            FileNotFoundError: If there is no such file on this process.
            ValueError: If the file is damaged or not a background pool, is missing on another process, or has fewer
                examples than the processes need. Every process raises.
        """
        processes = Processes(group, as_device("device", device))
        state: dict[str, Tensor] = {}
        options: dict[str, str] = {}

        def read() -> None:
            found, metadata = map_tensors(Path(path))
            pool_checks.check_settings(path, found, metadata)
            state.update(found)
            options.update(metadata)

        processes.attempt("from_file", read)
        epsilon, momentum = float(options["epsilon"]), float(options["momentum"])
        pool = cls(state["omega"].numel(), epsilon=epsilon, momentum=momentum, device=device, group=group)
        try:
            pool.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a background pool: {error}") from error
        return pool

    def _set_up(
        self, state: PoolState, begin: int, num_examples: int, epsilon: float, momentum: float, drawable: int
    ) -> None:
        self.epsilon, self.momentum = epsilon, momentum
        self.begin, self.end = begin, begin + state.omega.numel()
        self._num_examples, self._drawable, self._state = num_examples, drawable, state
        self._checks, self._own_checks = DeferredChecks(self.device), DeferredChecks(self.device)
        nothing = torch.zeros(1, dtype=torch.float64, device=self.device)
        self._drawn = 0.0 if self.device.type == "cpu" else nothing
        self._gather_totals()
