"""Checks whose results are on a device, reported by a later call, so that no step waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["DeferredChecks", "Origin"]

Origin = Literal["this", "earlier", "replayed"]
"""Call that a result belongs to: the one that reports it, an earlier one, or one that a CUDA graph has replayed."""

_MOST = 64
"""Largest number of unread results. Beyond it `add` waits for the oldest, which the device has passed long before."""


class _Unread(NamedTuple):
    """Result of a check whose copy to the host may not have arrived yet."""

    values: Tensor
    """The result in pinned memory."""
    arrived: torch.cuda.Event
    report: Callable[[list[int], Origin], None]


class DeferredChecks:
    """Results of checks in the order of the calls. On the CPU each is reported at once, by the call itself.

    On a CUDA device a result is copied to pinned memory without waiting, and reported once an event says that it has
    arrived. `poll` reports what has arrived; `settle` waits for the rest. In a CUDA graph nothing can be read: a
    captured call adds its result to `captured`, which keeps the first failure of all replays until `settle` reads it.

    Args:
        device: Device of the results.
    """

    def __init__(self, device: torch.device) -> None:
        self._unread: deque[_Unread] = deque()
        self._report_captured: Callable[[list[int], Origin], None] | None = None
        # Allocated here: memory that a graph allocates has no defined contents before the first replay.
        self._captured = torch.zeros(2, dtype=torch.int64, device=device) if device.type == "cuda" else None

    def __reduce__(self) -> tuple[type[DeferredChecks], tuple[torch.device]]:
        # Copies and pickles of a pool have no unread results: a failed check raises here instead.
        self.settle()
        return DeferredChecks, (torch.device("cpu") if self._captured is None else self._captured.device,)

    def add(self, result: Tensor, report: Callable[[list[int], Origin], None], *, replayed: bool = False) -> None:
        """Report a result: at once on the CPU, at a later call on a CUDA device.

        Args:
            result: int64 `[2]`; the first number is 0 if there is nothing to report.
            report: Function of the numbers and the call that they belong to, which raises if they are an error.
            replayed: Whether to keep the result of a call that is captured in a CUDA graph. All such results of a pool
                have one `report`, the last.

        Raises:
            Exception: The exception of `report`.
        """
        if self._captured is None or not result.is_cuda:
            report(result.tolist(), "this")
        elif _is_capturing():
            if not replayed:
                return
            self._captured.copy_(torch.where(self._captured[0] != 0, self._captured, result))
            self._report_captured = report
        else:
            # The copy allocates pinned memory, because it does not block.
            values = result.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(result.device))
            self._unread.append(_Unread(values, arrived, report))
            if len(self._unread) > _MOST:
                self._report_first()

    def poll(self) -> None:
        """Report the results that have arrived, in the order of the calls; wait only if too many are unread.

        Raises:
            Exception: The first exception of a `report`; later results stay unread.
        """
        # An event cannot be queried while a graph is captured.
        while self._unread and not _is_capturing():
            # Bounded here, at the beginning of a call, so that a call that raises has not done anything.
            if len(self._unread) < _MOST and not self._unread[0].arrived.query():  # type: ignore[no-untyped-call]
                break
            self._report_first()

    def settle(self, *, captured: bool = True) -> None:
        """Wait for all results and report them in the order of the calls; results of a captured graph come last.

        Args:
            captured: Whether to read the result of a captured graph, too, which waits for all work queued so far.

        Raises:
            Exception: The first exception of a `report`; later results stay unread.
        """
        while self._unread and not _is_capturing():
            self._report_first()
        if captured and self._captured is not None and self._report_captured is not None and not _is_capturing():
            numbers = self._captured.tolist()
            self._captured.zero_()
            self._report_captured(numbers, "replayed")

    def _report_first(self) -> None:
        values, arrived, report = self._unread[0]
        if not arrived.query():  # type: ignore[no-untyped-call]
            arrived.synchronize()
        # Not before: a KeyboardInterrupt while the host waits must not lose the result.
        self._unread.popleft()
        report(values.tolist(), "earlier")


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()
