"""CUDA graphs of the emulated device: a captured op takes effect only when the graph is replayed.

A capture runs its ops, because the program may need their results, and undoes them at its end: tensors from before the
capture have their earlier values again, and results of the capture hold NaN until the first replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.emulation import streams
from tests.emulation.generators import default


class _Step:
    """One op of a graph, and the memory that it uses."""

    def __init__(
        self,
        call: Callable[[], Any],
        results: list[tuple[int, Tensor]],
        reads: Iterable[streams.Memory],
        writes: Iterable[streams.Memory],
    ) -> None:
        self.call = call
        self.results = results
        self.reads = list(reads)
        self.writes = list(writes)

    def run(self) -> None:
        streams.launch("CUDAGraph.replay", self.reads, self.writes)
        again = [x for x in tree_leaves(self.call()) if isinstance(x, Tensor)]
        for position, memory in self.results:
            memory.copy_(again[position])


class Capture:
    """The ops that have been captured so far."""

    def __init__(self, stream: streams.Stream) -> None:
        self.stream = stream
        self.steps: list[_Step] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._mine: dict[int, Tensor] = {}
        self._random = default.get_state()

    @staticmethod
    def _bytes(tensor: Tensor) -> Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())

    def keep(self, tensors: list[Tensor]) -> None:
        """Remember the values of tensors that the next op writes."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key not in self._mine and key not in self._before:
                memory = self._bytes(tensor)
                self._before[key] = (memory, memory.clone())

    def add(
        self,
        call: Callable[[], Any],
        out: Any,
        inputs: Any,
        reads: Iterable[streams.Memory],
        writes: Iterable[streams.Memory],
    ) -> None:
        """Add an op that has run."""
        old = {x.untyped_storage()._cdata for x in tree_leaves(inputs) if isinstance(x, Tensor)}
        results = []
        for position, tensor in enumerate(x for x in tree_leaves(out) if isinstance(x, Tensor)):
            key = tensor.untyped_storage()._cdata
            if key not in old:
                self._mine[key] = tensor
                results.append((position, tensor))
        self.steps.append(_Step(call, results, reads, writes))

    def take_back(self) -> None:
        """Undo the writes of the captured ops."""
        for memory, values in self._before.values():
            memory.copy_(values)
        for tensor in self._mine.values():
            streams.poison(tensor)
        default.set_state(self._random)


_capture: Capture | None = None


def capturing() -> Capture | None:
    """Return the capture in progress, or None."""
    return _capture


def is_current_stream_capturing() -> bool:
    """Return whether a graph is being captured; the stand-in for `torch.cuda.is_current_stream_capturing`."""
    return _capture is not None and streams.current() is _capture.stream


class CUDAGraph:
    """The stand-in for `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._steps: list[_Step] | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Start to capture the current stream."""
        global _capture
        if _capture is not None:
            raise RuntimeError("a CUDA graph is being captured already")
        if streams.current() is streams.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        _capture = Capture(streams.current())

    def capture_end(self) -> None:
        """End the capture, and undo the ops that it ran."""
        global _capture
        assert _capture is not None
        capture, _capture = _capture, None
        capture.take_back()
        self._steps = capture.steps

    def replay(self) -> None:
        """Run the captured ops in order."""
        if self._steps is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if _capture is not None:
            raise RuntimeError("the emulated device replays no graph inside of a capture")
        for step in self._steps:
            step.run()

    def reset(self) -> None:
        """Discard the captured ops."""
        self._steps = None

    def pool(self) -> tuple[int, int]:
        """Return a handle of the graph's memory."""
        return (0, id(self))


@contextmanager
def graph(
    cuda_graph: CUDAGraph, pool: Any = None, stream: streams.Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """Capture a block of code; the stand-in for `torch.cuda.graph`."""
    from tests.emulation.patches import synchronize

    synchronize()
    with streams.as_current(streams.Stream() if stream is None else stream):
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        except BaseException:
            cuda_graph.capture_end()
            cuda_graph.reset()
            raise
        cuda_graph.capture_end()
