"""Counts of host waits, streams, events and CUDA graphs of the emulated device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.emulation import streams
from tests.emulation.device import emulated_cuda, is_on
from tests.emulation.waits import count_host_waits

pytestmark = pytest.mark.skipif(torch.cuda.is_available() and not is_on(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    with emulated_cuda():
        yield


WAITS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "item": ("element read", lambda x: x.sum().item()),
    "bool": ("element read", lambda x: bool(x.sum() > 0)),
    "float": ("element read", lambda x: float(x[0])),
    "equal": ("element read", lambda x: torch.equal(x, x)),
    "allclose": ("element read", lambda x: torch.allclose(x, x)),
    "cpu": ("copy to the host", lambda x: x.cpu()),
    "tolist": ("copy to the host", lambda x: x.tolist()),
    "copy to pageable memory": ("copy to the host", lambda x: torch.zeros(3).copy_(x, non_blocking=True)),
    "copy from the host": ("blocking copy from the host", lambda x: torch.ones(3).to("cuda")),
    "tensor": ("blocking copy from the host", lambda x: torch.tensor([1.0], device="cuda")),
    "copy_": ("blocking copy from the host", lambda x: x.copy_(torch.ones(3))),
    "index of the CPU": ("blocking copy from the host", lambda x: x[torch.tensor([0, 1])]),
    "nonzero": ("shape of the result", lambda x: x.nonzero()),
    "mask": ("shape of the result", lambda x: x[x > 0]),
    "assignment of a mask": ("shape of the result", lambda x: x.__setitem__(x > 0, torch.ones_like(x))),
    "masked_select": ("shape of the result", lambda x: x.masked_select(x > 0)),
    "unique": ("shape of the result", lambda x: x.unique()),
    "bincount": ("shape of the result", lambda x: x.long().bincount()),
    "repeat_interleave": ("shape of the result", lambda x: x.repeat_interleave(x.long())),
    "multinomial": ("check of the values", lambda x: x.multinomial(2)),
    "cholesky": ("check of the values", lambda x: torch.linalg.cholesky(torch.eye(3, device="cuda"))),
    "synchronize": ("asked for", lambda x: torch.cuda.synchronize()),
    "stream": ("asked for", lambda x: torch.cuda.current_stream().synchronize()),
    "event": ("asked for", lambda x: torch.cuda.current_stream().record_event().synchronize()),
}

NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).sum().sqrt(),
    "sort": lambda x: x.sort(),
    "index": lambda x: x[torch.zeros(2, dtype=torch.int64, device="cuda")],
    "scalar to a mask": lambda x: x.__setitem__(x > 0, 2.0),
    "factories": lambda x: (torch.zeros(3, device="cuda"), torch.arange(4, device="cuda"), x.new_ones(2)),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long(), output_size=3),
    "pinned": lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "to pinned": lambda x: x.to("cpu", non_blocking=True),
    "empty": lambda x: torch.zeros(0).to("cuda"),
    "dtype": lambda x: x.double().half(),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted_with_cause_and_line(name: str) -> None:
    cause, call = WAITS[name]
    x = torch.ones(3, device="cuda")
    with count_host_waits() as waits:
        call(x)
    assert [wait.cause.startswith(cause) or cause in wait.cause for wait in waits] == [True], waits
    path, _, line = waits[0].line.rpartition(":")
    assert Path(path).name == "test_waits.py"
    assert f'"{name}"' in Path(__file__).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not_wait_is_not_counted(name: str) -> None:
    x = torch.ones(3, device="cuda")
    with count_host_waits() as waits:
        NO_WAITS[name](x)
    assert not waits, waits


def test_blocks_nest_and_end() -> None:
    x = torch.ones((), device="cuda")
    with count_host_waits() as outer:
        x.item()
        with count_host_waits() as inner:
            x.item()
    x.item()
    assert (len(outer), len(inner)) == (2, 1)


def test_the_debug_mode_of_pytorch_raises() -> None:
    x = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        x.item()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with pytest.warns(UserWarning, match="called a synchronizing CUDA operation"):
        x.item()
    torch.cuda.set_sync_debug_mode("default")


def test_a_copy_to_pinned_memory_arrives_when_it_is_waited_for() -> None:
    x = torch.ones(3, device="cuda")
    copied = x.to("cpu", non_blocking=True)
    assert copied.is_pinned()
    into = torch.zeros(3, dtype=torch.int64).pin_memory()
    into.copy_(x, non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    x.zero_()
    later = x.to("cpu", non_blocking=True)
    assert copied.isnan().all()
    assert into.tolist() == [2**63 - 1] * 3
    assert not event.query()
    event.synchronize()
    assert event.query()
    assert copied.tolist() == [1, 1, 1] == into.tolist()
    assert later.isnan().all()
    torch.cuda.synchronize()
    assert later.tolist() == [0, 0, 0]


def test_streams_must_wait_for_each_other() -> None:
    x = torch.ones(3, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), pytest.raises(RuntimeError, match="stream 0 writes, without having waited for it"):
        x + 1
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x + 1
    with pytest.raises(RuntimeError, match="may still read"):
        x.zero_()
    torch.cuda.current_stream().wait_event(stream.record_event())
    x.zero_()
    assert y.tolist() == [2, 2, 2]
    with torch.cuda.stream(stream):
        z = y * 2
    stream.synchronize()
    assert z.tolist() == [4, 4, 4]


def test_pinned_memory_is_left_alone_until_its_copy_is_waited_for() -> None:
    source = torch.ones(3).pin_memory()
    source.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    source.zero_()
    source.to("cuda", non_blocking=True)
    source.fill_(2)
    with pytest.raises(RuntimeError, match="pinned memory was written before a copy"):
        torch.cuda.synchronize()


@pytest.mark.parametrize("kept", [False, True])
def test_memory_is_not_freed_while_another_stream_uses_it(kept: bool) -> None:
    x = torch.ones(3, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x + 1
    if kept:
        x.record_stream(stream)
    del x
    assert ["was freed while" in fault for fault in streams.FAULTS] == ([] if kept else [True])
    streams.FAULTS.clear()
    stream.synchronize()
    assert y.tolist() == [2, 2, 2]


def test_a_graph_runs_when_it_is_replayed() -> None:
    x = torch.ones(3, device="cuda", requires_grad=True)
    total = torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert torch.cuda.is_current_stream_capturing()
        y = x * x
        (gradient,) = torch.autograd.grad(y.sum(), x)
        total.add_(y.detach())
        noise = torch.rand(3, device="cuda")
    assert not torch.cuda.is_current_stream_capturing()
    assert y.isnan().all()
    assert total.tolist() == [0, 0, 0]
    with torch.no_grad():
        x.fill_(3)
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(noise.tolist())
    assert y.tolist() == [9, 9, 9]
    assert gradient.tolist() == [6, 6, 6]
    assert total.tolist() == [18, 18, 18]
    assert seen[0] != seen[1]


def test_a_graph_copies_from_pinned_memory_alone() -> None:
    source, target = torch.ones(3).pin_memory(), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target.copy_(source, non_blocking=True)
    source.fill_(4)
    graph.replay()
    assert target.tolist() == [4, 4, 4]
    with pytest.raises(RuntimeError, match="pageable"), torch.cuda.graph(graph):
        target.copy_(torch.ones(3), non_blocking=True)


@pytest.mark.parametrize("name", WAITS)
def test_a_graph_refuses_every_wait(name: str) -> None:
    x = torch.ones(3, device="cuda")
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            x.add_(1)
            WAITS[name][1](x)

    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
        capture()
    assert x.tolist() == [1, 1, 1], "the capture is taken back"
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()
