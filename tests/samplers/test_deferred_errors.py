"""The pool on a device: no step waits, and errors of values are raised by a later call."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import BackgroundPool
from fastood.samplers import deferred as deferred_module
from tests.emulation.device import emulated_cuda
from tests.emulation.waits import EXPLICIT, count_host_waits
from tests.support.background_pool_samples import LAYOUTS, pool_of

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def cuda() -> Iterator[None]:
    """The emulated device: a copy to pinned memory arrives only when the host waits for it."""
    with emulated_cuda():
        yield


@pytest.fixture
def nan_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA op returns NaN for an index out of range, where the op of the CPU, which stands in for it, raises."""

    def importance(omega: Tensor, stats: Tensor, index: Tensor, epsilon: float) -> Tensor:
        outside = (index < 0) | (index >= len(omega))
        return op(omega, stats, index.masked_fill(outside, 0), epsilon).masked_fill(outside, torch.nan)

    op = ops.pool_importance
    monkeypatch.setattr(ops, "pool_importance", importance)


def host(tensor: Tensor) -> Tensor:
    return tensor.cpu()


def contents(pool: BackgroundPool) -> dict[str, Tensor]:
    """State of a pool, without the call that would raise a pending error."""
    return {name: host(getattr(pool._state, name)).clone() for name in ("omega", "velocity", "masses", "stats")}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def batch(*index: int, loss: float = 1.0) -> tuple[Tensor, Tensor]:
    return torch.tensor(index).cuda(), torch.full((len(index),), loss).cuda()


BAD = {
    "index": ((3, 100), 1.0, r"index must be in 0 … 99, got 100 at position 1"),
    "loss": ((3, 4), -2.0, r"per_sample_loss must be finite and >= 0, got -2.0 at position 0 .example 3."),
    "range": ((3, 4), 1e38, r"must stay in float32's range, got up to 1e\+38 · 10"),
}


@pytest.mark.parametrize("mode", ["exact", "sparse"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_changes_nothing_and_the_next_call_raises(kind: str, mode: str) -> None:
    index, loss, message = BAD[kind]
    pool = BackgroundPool(100, device="cuda")
    before, bad = contents(pool), batch(*index, loss=loss)
    with count_host_waits() as waits:
        pool.ascend(*bad, lr=10.0, mode=mode)
    assert not waits, waits
    assert_same(contents(pool), before)
    good = batch(1, 2)
    with pytest.raises(ValueError, match=message + ".*; this was the batch of an earlier call of ascend"):
        pool.ascend(*good, lr=10.0, mode=mode)
    assert_same(contents(pool), before)
    pool.ascend(*good, lr=10.0, mode=mode)
    pool.synchronize()
    cpu = BackgroundPool(100)
    cpu.ascend(torch.tensor([1, 2]), torch.ones(2), lr=10.0, mode=mode)
    assert_same(contents(pool), contents(cpu))


def test_steps_that_do_not_wait_report_late() -> None:
    pool = BackgroundPool(100, device="cuda")
    good, bad = batch(1, 2), batch(100)
    with count_host_waits() as waits:
        pool.ascend(*bad, lr=1.0)
        for _ in range(deferred_module._MOST - 1):
            pool.ascend(*good, lr=1.0, wait=False)
    assert not waits, waits
    before = contents(pool)
    with pytest.raises(ValueError, match="got 100 at position 0"):
        pool.ascend(*good, lr=1.0, wait=False)
    assert_same(contents(pool), before)
    with pytest.raises(TypeError, match="wait must be"):
        pool.ascend(*good, lr=1.0, wait=None)


CALLS: dict[str, Callable[[BackgroundPool, Path], object]] = {
    "synchronize": lambda pool, _: pool.synchronize(),
    "state_dict": lambda pool, _: pool.state_dict(),
    "load_state_dict": lambda pool, _: pool.load_state_dict({}),
    "save": lambda pool, path: pool.save(path),
    "pickle": lambda pool, _: pickle.dumps(pool),
    "deepcopy": lambda pool, _: copy.deepcopy(pool),
    "effective_sample_size": lambda pool, _: pool.effective_sample_size(),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_read_the_state_wait_for_the_error(call: str, tmp_path: Path) -> None:
    pool = BackgroundPool(100, device="cuda")
    pool.ascend(*batch(100), lr=1.0)
    path = tmp_path / "pool.safetensors"
    with pytest.raises(ValueError, match="got 100 at position 0"):
        CALLS[call](pool, path)
    assert not path.exists()
    pool.synchronize()  # raised once
    assert pool.state_dict()["omega"].shape == (100,)


def test_copies_and_pickles_are_pools() -> None:
    pool = BackgroundPool(100, device="cuda")
    pool.ascend(*batch(3, 4), lr=1.0)
    for other in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert_same(contents(other), contents(pool))
        other.ascend(*batch(100), lr=1.0)
        with pytest.raises(ValueError, match="got 100"):
            other.synchronize()
        pool.synchronize()


def test_a_draw_does_not_wait_for_the_error_and_does_not_draw_when_it_raises() -> None:
    pool = BackgroundPool(100, device="cuda")
    generator, index = torch.Generator("cuda"), torch.arange(3, device="cuda")
    pool.ascend(*batch(100), lr=1.0)
    with count_host_waits() as waits:
        pool.sample(4, generator=generator)
        pool.importance(index)
    assert not waits, waits
    torch.cuda.synchronize()
    state = generator.get_state()
    with count_host_waits() as waits, pytest.raises(ValueError, match="got 100"):
        pool.sample(4, generator=generator)
    assert torch.equal(generator.get_state(), state)
    assert not any(wait.op == "Event.synchronize" for wait in waits), waits


@pytest.mark.usefixtures("nan_outside")
def test_errors_come_in_the_order_of_the_calls() -> None:
    pool = BackgroundPool(100, device="cuda")
    indices = [torch.tensor(index).cuda() for index in ([5, 100], [-7], [300])]
    missing = pool.importance(indices[0])
    pool.importance(indices[1])
    assert host(missing).isnan().tolist() == [False, True]
    for index in (100, -7):
        with pytest.raises(ValueError, match=f"index must be in 0 … 99, got {index}; this was an index of an earlier"):
            pool.ascend(*batch(1), lr=1.0)
    pool.ascend(*batch(200), lr=1.0)
    pool.importance(indices[2])
    for index in (200, 300):
        with pytest.raises(ValueError, match=f"got {index}"):
            pool.synchronize()
    pool.synchronize()


def test_an_interrupt_while_the_host_waits_loses_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BackgroundPool(100, device="cuda")
    pool.ascend(*batch(100), lr=1.0)

    def interrupted(event: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda.Event, "synchronize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.synchronize()
    with pytest.raises(ValueError, match="got 100 at position 0"):
        pool.synchronize()


def test_two_pools_of_a_device_report_their_own_errors() -> None:
    pools = [BackgroundPool(size, device="cuda") for size in (100, 50)]
    for pool in pools:
        pool.ascend(*batch(200), lr=1.0)
    for pool, last in zip(pools, (99, 49), strict=True):
        with pytest.raises(ValueError, match=f"index must be in 0 … {last}, got 200"):
            pool.ascend(*batch(1), lr=1.0)
        pool.synchronize()


def test_an_error_in_a_capture_leaves_the_pool_usable() -> None:
    pool = BackgroundPool(100, device="cuda")
    pool.ascend(*batch(100), lr=1.0)
    index, loss = batch(3)
    with pytest.raises(ValueError, match="lr must be"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        pool.ascend(index, loss, lr=-1.0)
    with pytest.raises(ValueError, match="got 100 at position 0"):
        pool.synchronize()
    pool.ascend(index, loss, lr=1.0)
    pool.synchronize()


@pytest.mark.usefixtures("nan_outside")
def test_errors_do_not_pile_up() -> None:
    """A loop that only asks for importance has its error after a fixed number of calls, whatever the device does."""
    pool = BackgroundPool(100, device="cuda")
    index = torch.tensor([100]).cuda()
    for _ in range(deferred_module._MOST):
        pool.importance(index)
    with pytest.raises(ValueError, match="got 100"):
        pool.importance(index)
    assert len(pool._checks._unread) == deferred_module._MOST - 1


def test_values_that_were_overwritten_are_not_reported() -> None:
    pool = BackgroundPool(100, device="cuda")
    index, loss = batch(3, 100)
    pool.ascend(index, loss, lr=1.0)
    index.fill_(5)
    with pytest.raises(ValueError, match="got a value that has been overwritten since at position 1"):
        pool.synchronize()
    # The float64 copy of the losses is the pool's own.
    index, loss = batch(3, 4, loss=-1.0)
    pool.ascend(index, loss, lr=1.0)
    loss.fill_(5)
    with pytest.raises(ValueError, match=r"got -1.0 at position 0 \(example 3\)"):
        pool.synchronize()


def test_batches_of_inference_mode_count_no_changes() -> None:
    with torch.inference_mode():
        index, loss = torch.tensor([3, 100]), torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got 100 at position 1$"):
        BackgroundPool(100).ascend(index, loss, lr=1.0)


@pytest.mark.parametrize("is_behind", [False, True])
@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_a_loop_on_the_device_waits_for_the_step_before_at_most(mode: str, is_behind: bool) -> None:
    pool, generator = BackgroundPool(5000, device="cuda"), torch.Generator("cuda")
    for step in range(6):
        with count_host_waits() as waits:
            index, importance = pool.sample(64, generator=generator, stratified=step == 3, replacement=step != 2)
            pool.ascend(index, importance, lr=3.0, mode=mode)
        causes = [(wait.cause, wait.op) for wait in waits]
        assert causes == ([(EXPLICIT, "Event.synchronize")] if is_behind and step > 0 else [])
        if not is_behind:
            torch.cuda.synchronize()


def test_nothing_is_read_while_a_graph_is_captured() -> None:
    pool, want = BackgroundPool(100, device="cuda"), BackgroundPool(100)
    pool.ascend(*batch(7), lr=1.0)  # its result is unread when the capture begins
    want.ascend(torch.tensor([7]), torch.ones(1), lr=1.0)
    index, loss = batch(3, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pool.ascend(index, loss, lr=1.0)
        pool.importance(loss.long())
    assert_same(contents(pool), contents(want))
    for drawn in ([3, 4], [3, 100], [5, 6]):  # the second is ignored, and not forgotten by the third
        index.copy_(torch.tensor(drawn))
        graph.replay()
        if 100 not in drawn:
            want.ascend(torch.tensor(drawn), torch.ones(2), lr=1.0)
    assert_same(contents(pool), contents(want))
    pool.ascend(index, loss, lr=1.0)  # does not wait for the replays
    with pytest.raises(ValueError, match="overwritten since at position 1; this was the batch of a captured call"):
        pool.synchronize()
    pool.synchronize()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_device_computes_what_the_host_does(name: str) -> None:
    """Draws, steps and queries, bit for bit; sums that leave the range of their quanta are made anew in time."""
    pools = {device: pool_of(LAYOUTS[name], device=device) for device in ("cpu", "cuda")}
    generators = {"cpu": torch.Generator().manual_seed(1), "cuda": torch.Generator("cuda").manual_seed(1)}
    results: dict[str, list[Tensor]] = {device: [] for device in pools}
    for device, pool in pools.items():
        generator, found = generators[device], results[device]
        for step in range(4):
            index, importance = pool.sample(50, generator=generator, stratified=step % 2 == 1)
            pool.ascend(index, importance, lr=10.0**step, mode=("exact", "sparse")[step // 2])
            pool.synchronize()
            found += [index, importance, *contents(pool).values()]
        found += [pool.select(0.3, generator=generator), pool.select(0.3, generator=generator, calibrated=True)]
        found += [pool.top(k) for k in (1, len(pool) // 2 + 1, len(pool))]
        found += [*pool.histogram(7), pool.weights, *pool.state_dict().values()]
    for got, want in zip(results["cuda"], results["cpu"], strict=True):
        assert torch.equal(host(got), want)
