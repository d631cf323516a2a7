"""Streams and events, and the errors of a program that forgets to wait for one of them.

Every op runs immediately, but is checked as on a GPU, where streams run concurrently. Vector clocks record the ops of
other streams that a stream has waited for. A stream that reads memory that another has written, or writes memory that
another uses, without having waited for it is an error. A copy to pinned memory arrives only when the host waits for its
stream; until then the memory holds NaN, or the largest integer.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

_ids = itertools.count()
_streams: "WeakSet[Stream]" = WeakSet()


class _Clock:
    """Vector clock: for each stream, the number of the last op that has been waited for."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def learn(self, other: dict[int, int]) -> None:
        for stream, time in other.items():
            if time > self.known.get(stream, 0):
                self.known[stream] = time


class Stream(_Clock):
    """The stand-in for `torch.cuda.Stream`."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        super().__init__()
        self.device = torch.device("cuda:0")
        self.device_index = 0
        self.priority = priority
        self.stream_id = next(_ids)
        self.cuda_stream = self.stream_id
        self.late: list[tuple[int, Callable[[], None]]] = []
        _streams.add(self)

    @property
    def time(self) -> int:
        """Number of the last op of the stream."""
        return self.known.get(self.stream_id, 0)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Return an event that happens after the ops that are in the stream now."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        """Let later ops of this stream wait for an event."""
        self.learn(event.known)

    def wait_stream(self, stream: "Stream") -> None:
        """Let later ops of this stream wait for the ops that are in another stream now."""
        self.learn(stream.known)

    def synchronize(self) -> None:
        """Let the host wait for the stream."""
        from tests.emulation.waits import EXPLICIT, host_waits

        with as_current(self):
            host_waits(EXPLICIT, "Stream.synchronize")

    def query(self) -> bool:
        """Return whether the host has waited for the stream."""
        return host.known.get(self.stream_id, 0) >= self.time

    def is_capturing(self) -> bool:
        """Return whether a CUDA graph captures the stream."""
        from tests.emulation import graphs

        capture = graphs.capturing()
        return capture is not None and capture.stream is self

    def __enter__(self) -> "Stream":
        self._before = current()
        _local.stream = self
        return self

    def __exit__(self, *error: object) -> None:
        _local.stream = self._before


class Event(_Clock):
    """The stand-in for `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self._timing = enable_timing
        self._stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Record the ops that are in a stream now; by default in the current one."""
        self._stream = current() if stream is None else stream
        self.known = dict(self._stream.known)

    def wait(self, stream: Stream | None = None) -> None:
        """Let later ops of a stream, by default the current one, wait for the event."""
        (current() if stream is None else stream).learn(self.known)

    def query(self) -> bool:
        """Return whether the host has waited for the event."""
        return all(host.known.get(stream, 0) >= time for stream, time in self.known.items())

    def synchronize(self) -> None:
        """Let the host wait for the event."""
        from tests.emulation import graphs
        from tests.emulation.waits import EXPLICIT, host_waits, stop_capture

        if graphs.capturing() is not None:
            stop_capture("Event.synchronize")
        if self._stream is not None:
            with as_current(_Past(self._stream, self.known)):
                host_waits(EXPLICIT, "Event.synchronize")

    def elapsed_time(self, end: "Event") -> float:
        """Raise an error: the emulation has no times."""
        raise RuntimeError("the emulated device has no times: measure on a GPU")


class _Past(Stream):
    """A stream as it was when an event was recorded."""

    def __init__(self, stream: Stream, known: dict[int, int]) -> None:
        super().__init__()
        self.stream_id = stream.stream_id
        self.known = dict(known)
        self.late = stream.late


host = _Clock()
default = Stream()
_local = threading.local()


def current() -> Stream:
    """Return the current stream of this thread."""
    return getattr(_local, "stream", default)


@contextmanager
def as_current(stream: Stream | None) -> Iterator[None]:
    """Make a stream the current one; the stand-in for `torch.cuda.stream`."""
    before = current()
    if stream is not None:
        _local.stream = stream
    try:
        yield
    finally:
        _local.stream = before


def host_waited(stream: Stream) -> None:
    """Note that the host has waited for a stream: copies that it holds arrive."""
    host.learn(stream.known)
    time = stream.time
    arrived = [copy for at, copy in stream.late if at <= time]
    stream.late[:] = [(at, copy) for at, copy in stream.late if at > time]
    for copy in arrived:
        copy()


def host_waited_for_all() -> None:
    """Note that the host has waited for every stream."""
    for stream in list(_streams):
        host_waited(stream)


def poison(tensor: Tensor) -> None:
    """Fill memory with NaN, with the largest integer, or with True, so that a read before a write is noticed."""
    if tensor.dtype == torch.bool:
        tensor.fill_(True)
    elif tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(torch.nan)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max)


def copy_late(target: Tensor, source: Tensor) -> None:
    """Copy to pinned memory when the host next waits for the current stream."""
    value = source.detach().clone()
    poison(target)
    stream = current()
    stream.late.append((stream.time, lambda: target.copy_(value)))


def check_late(source: Tensor) -> None:
    """Raise an error when the host next waits, if it has written over pinned memory that a copy still reads."""
    value = source.detach().clone()

    def check() -> None:
        if not torch.equal(source.nan_to_num(nan=0), value.nan_to_num(nan=0)):
            raise RuntimeError("pinned memory was written before a copy from it to the device had been waited for")

    stream = current()
    stream.late.append((stream.time, check))


class Memory:
    """Reads and writes of one allocation of the device.

    Attributes:
        written: Stream and number of the op that wrote last.
        read: Number of the last op that read, for each stream.
        owner: Stream on which it was allocated, whose next allocation may take its place; None in a CUDA graph.
        kept_for: Streams named by `Tensor.record_stream`.
    """

    __slots__ = ("__weakref__", "kept_for", "owner", "read", "written")

    def __init__(self, owner: "Stream | None" = None) -> None:
        self.written: tuple[int, int] | None = None
        self.read: dict[int, int] = {}
        self.owner = owner
        self.kept_for: set[int] = set()

    def __del__(self) -> None:
        if self.owner is None:
            return
        uses = [*self.read.items(), *([] if self.written is None else [self.written])]
        for stream, time in uses:
            waited = max(self.owner.known.get(stream, 0), host.known.get(stream, 0))
            if stream not in self.kept_for and stream != self.owner.stream_id and waited < time:
                FAULTS.append(
                    f"memory of stream {self.owner.stream_id} was freed while stream {stream} may still use it: "
                    "tensor.record_stream(stream)"
                )


FAULTS: list[str] = []
"""Errors found where none can be raised; `emulated_cuda` raises them at its end."""


def launch(op: str, reads: Iterable[Memory], writes: Iterable[Memory]) -> None:
    """Put an op into the current stream.

    Raises:
        RuntimeError: If it reads or writes memory that another stream may still write or read.
    """
    stream = current()
    stream.learn(host.known)
    me, known = stream.stream_id, stream.known
    now = known.get(me, 0) + 1
    writes = list(writes)
    for memory in (*reads, *writes):
        if (written := memory.written) is not None and written[0] != me and known.get(written[0], 0) < written[1]:
            raise RuntimeError(
                f"race between streams: {op} on stream {me} uses what stream {written[0]} writes, without having "
                "waited for it: stream.wait_stream(other)"
            )
    for memory in writes:
        for other, time in memory.read.items():
            if other != me and known.get(other, 0) < time:
                raise RuntimeError(
                    f"race between streams: {op} on stream {me} writes what stream {other} may still read: "
                    "stream.wait_stream(other)"
                )
    known[me] = now
    for memory in reads:
        memory.read[me] = now
    for memory in writes:
        memory.written, memory.read = (me, now), {}
