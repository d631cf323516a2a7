"""The group of processes of a run: joined at its beginning, under any launcher, and left together at its end."""

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

The first process alone writes checkpoints and the report, and shares of an evaluation differ in length: the others wait
for it meanwhile. It may be long, since the death of a process is not found by it but by `Lifeline`, within a minute."""


class Group:
    """The processes that train one run. It does nothing for a single process.

    `Group.join` sets up PyTorch's process group. A group that is already set up, by Ray Train, Lightning or the
    caller, is used, and neither watched nor destroyed. As a context manager it is left at the end: a process without
    work waits for the last one; after an error it tells the others, which then end as well.

    Args:
        launch: How this process was launched.
        lifeline: Connections to the other processes; None for a single process or another's group.

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
            TimeoutError: If a process does not join within `meeting.JOIN_TIMEOUT`; the error has its rank.
            ValueError: If the launcher's variables contradict one another.
        """
        launch = find_launch()
        if launch.processes == 1 or launch.launcher == "group":
            return cls(launch)
        store = meet(launch)
        dist.init_process_group(
            # Objects travel through the CPU, so that processes agree before any of them opens a device.
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
        """Another process that has ended before its time, with host, process id and cause; None if there is none."""
        return None if self._lifeline is None else self._lifeline.ended

    def break_off(self, seconds: float = 5.0) -> str | None:
        """Leave a group of which another process has ended, and return which; None if there is no such process.

        Args:
            seconds: Time to wait for the news, which may come after an error in a collective.
        """
        if self._lifeline is None or self._lifeline.wait_for_end_of_another(seconds) is None:
            return None
        self.fail("another process has ended")
        return self.ended

    def fail(self, reason: str) -> None:
        """Tell the other processes that this one ends with an error, and leave them."""
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

    Must be called on every exit path of the process that made it: threads of the group that run when the interpreter
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
