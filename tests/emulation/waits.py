"""Counts of the moments at which the host waits for the device, each with its cause and the line that caused it."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

_HERE = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_ROOT = Path(__file__).parents[2]

EXPLICIT = "asked for"
"""Cause of `torch.cuda.synchronize` and of `synchronize` of streams and events."""


@dataclass(frozen=True)
class HostWait:
    """One wait of the host for the device.

    Attributes:
        cause: Reason of the wait, for example "copy to the host".
        op: Op that waited, for example "aten::_to_copy".
        line: Line of the program that called the op, as `path:number`; paths in the repository are relative.
    """

    cause: str
    op: str
    line: str


class HostWaits(list[HostWait]):
    """The waits of a block of code, in order."""

    def __str__(self) -> str:
        return "\n".join(f"{wait.line}: {wait.cause} ({wait.op})" for wait in self) or "no waits"


_counting: list[HostWaits] = []
_quiet = 0


def _calling_line() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_HERE, _TORCH, "<")) or Path(name).name.startswith("test_"):
            path = Path(name)
            return f"{path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown:0"


@contextmanager
def count_host_waits() -> Iterator[HostWaits]:
    """Count the waits of a block of code on the emulated device.

    Example:
        with emulated_cuda(), count_host_waits() as waits:
            pool.ascend(index, loss, lr=1.0)
        assert not waits, waits
    """
    from tests.emulation.device import is_on

    if not is_on():
        raise RuntimeError("count_host_waits counts on the emulated device: enter emulated_cuda() first")
    waits = HostWaits()
    _counting.append(waits)
    try:
        yield waits
    finally:
        # By identity: two empty lists are equal.
        _counting[:] = [other for other in _counting if other is not waits]


def stop_capture(message: str) -> NoReturn:
    """Raise the error of a call that a capture does not permit."""
    raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({message})")


def host_waits(cause: str, op: str) -> None:
    """Count a wait of the host for the current stream, and let the copies that the stream holds arrive.

    Raises:
        RuntimeError: If a CUDA graph is captured, or by `torch.cuda.set_sync_debug_mode("error")`.
    """
    from tests.emulation import graphs, patches, streams

    wait = HostWait(cause, op, _calling_line())
    if graphs.capturing() is not None:
        stop_capture(f"{cause} by {op} at {wait.line}")
    for waits in _counting:
        waits.append(wait)
    if cause != EXPLICIT:
        if patches.SYNC_DEBUG_MODE.value == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {cause} by {op} at {wait.line}")
        if patches.SYNC_DEBUG_MODE.value == 1:
            warnings.warn(f"called a synchronizing CUDA operation: {cause} by {op} at {wait.line}", stacklevel=2)
    streams.host_waited(streams.current())
