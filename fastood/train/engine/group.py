"""Group of the processes of a run: joined at the beginning under any launcher, and left by all together at the end."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist

from fastood.common.distributed import exchange
from fastood.train.engine.launch import Launch, find_launch
from fastood.train.engine.lifeline import Lifeline
from fastood.train.engine.meeting import meet

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Time that a process waits for the others in a collective.

The first process alone writes checkpoints and the report, and shares of an evaluation differ in length, while the
others wait. It may be long because `Lifeline`, not this timeout, detects the death of a process, within a minute."""


class Group:
    """Processes that train or evaluate one run; without effect for a single process.

    `Group.join` sets up PyTorch's process group. A group that is already set up, by Ray Train, Lightning or the caller,
    is used, and neither monitored nor destroyed. At the end of the context a process without work waits for the last
    one; a process that ends with an error informs the others, which then end, too.

    Args:
        launch: How this process was launched.
        lifeline: Connections to the other processes; None for a single process, or a group that the caller has set up.

    Example:
        >>> with Group.join() as group:
        ...     group.launch.processes
        1
    """

    def __init__(self, launch: Launch, lifeline: Lifeline | None = None) -> None:
        self.launch = launch
        self._lifeline = lifeline
        self._is_left = False

    @classmethod
    def join(cls) -> Self:
        """Join the processes that the launcher has started, and wait until all have joined.

        Raises:
            ConnectionError: If torchrun has ended meanwhile, or a process cannot be reached.
            OSError: If the first process cannot open MASTER_PORT.
            TimeoutError: If a process does not join within `meeting.JOIN_TIMEOUT`; the error names its rank.
            ValueError: If the launcher's variables contradict one another.
        """
        launch = find_launch()
        if launch.processes == 1 or launch.launcher == "group":
            return cls(launch)
        store = meet(launch)
        dist.init_process_group(
            # Objects are exchanged on the CPU, so that processes agree before any of them opens a device.
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.processes,
            timeout=COLLECTIVE_TIMEOUT,
        )
        try:
            return cls(launch, Lifeline(launch.rank, launch.processes, exchange, address=launch.address or None))
        except BaseException:
            close_group()
            raise

    @property
    def ended(self) -> str | None:
        """Description of another process that has ended early: rank, host, process id and cause; None if none has."""
        return None if self._lifeline is None else self._lifeline.ended

    def break_off(self, seconds: float = 5.0) -> str | None:
        """Leave the group if another process has ended, and return the description of that one; None if none has.

        Args:
            seconds: Seconds to wait for the message of its end, which may arrive after the error of a collective.
        """
        if self._lifeline is None or self._lifeline.wait_for_end_of_another(seconds) is None:
            return None
        self.fail("another process has ended")
        return self.ended

    def fail(self, reason: str) -> None:
        """Inform the other processes that this one ends with an error, and leave the group."""
        if self._lifeline is not None and not self._is_left:
            self._is_left = True
            self._lifeline.fail(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lifeline is None:
            return
        try:
            if error is not None:
                self.fail(f"{type(error).__name__}: {error}")
            elif not self._is_left:
                self._is_left = True
                self._lifeline.leave()
                if self.ended is not None:
                    print(f"error: {self.ended}", file=sys.stderr, flush=True)
        finally:
            close_group()


def close_group() -> None:
    """Destroy the process group, if there is one.

    The process that made it must call this on every exit path: threads of a group that still run when the interpreter
    ends abort the process.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # Networks wrapped for the group hold references to it.
        dist.destroy_process_group()


def outcome_of_first(make: Callable[[], T]) -> T:
    """Return on every process of the group the result of the first one, in which alone `make` is called.

    Raises:
        OSError: If the first process raised one; then on every process.
        ValueError: If the first process raised one; then on every process.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except (OSError, ValueError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])
