"""The pool on a device: no step waits, and errors of values are raised by a later call."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastood.samplers import BackgroundPool
from fastood.samplers import deferred as deferred_module
from tests.support.background_pool_samples import LAYOUTS, pool_of
from tests.support.counted_device import CountedDevice, counted_device


@pytest.fixture
def cuda() -> Iterator[CountedDevice]:
    with counted_device() as device:
        yield device


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
    "index": (batch, (3, 100), 1.0, r"index must be in 0 … 99, got 100 at position 1"),
    "loss": (batch, (3, 4), -2.0, r"per_sample_loss must be finite and >= 0, got -2.0 at position 0 .example 3."),
    "range": (batch, (3, 4), 1e38, r"must stay in float32's range, got up to 1e\+38 · 10"),
}


@pytest.mark.parametrize("mode", ["exact", "sparse"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_changes_nothing_and_the_next_call_raises(cuda: CountedDevice, kind: str, mode: str) -> None:
    of, index, loss, message = BAD[kind]
    pool = BackgroundPool(100, device="cuda")
    before = contents(pool)
    with cuda.counting() as waits:
        pool.ascend(*of(*index, loss=loss), lr=10.0, mode=mode)
    assert set(waits) <= {"copy from the host"}  # that of the batch, which this test makes
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
def test_calls_that_read_the_state_wait_for_the_error(cuda: CountedDevice, call: str, tmp_path: Path) -> None:
    cuda.lag = 5  # the event has not been reached: only a wait can find the error
    pool = BackgroundPool(100, device="cuda")
    pool.ascend(*batch(100), lr=1.0)
    path = tmp_path / "pool.safetensors"
    with pytest.raises(ValueError, match="got 100 at position 0"):
        CALLS[call](pool, path)
    assert not path.exists()
    pool.synchronize()  # raised once
    assert pool.state_dict()["omega"].shape == (100,)


def test_copies_and_pickles_are_pools(cuda: CountedDevice) -> None:
    pool = BackgroundPool(100, device="cuda")
    pool.ascend(*batch(3, 4), lr=1.0)
    for other in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert_same(contents(other), contents(pool))
        other.ascend(*batch(100), lr=1.0)
        with pytest.raises(ValueError, match="got 100"):
            other.synchronize()
        pool.synchronize()


def test_a_draw_does_not_wait_for_the_error_and_does_not_draw_when_it_raises(cuda: CountedDevice) -> None:
    pool = BackgroundPool(100, device="cuda")
    generator = cuda.generator()
    cuda.lag = 2
    pool.ascend(*batch(100), lr=1.0)
    with cuda.counting() as waits:
        pool.sample(4, generator=generator)
        pool.importance(torch.arange(3, device="cuda"))
        state = generator.get_state()
        with pytest.raises(ValueError, match="got 100"):
            pool.sample(4, generator=generator)
    assert torch.equal(generator.get_state(), state)
    assert not waits["event"]


def test_errors_come_in_the_order_of_the_calls(cuda: CountedDevice) -> None:
    cuda.lag = 50
    pool = BackgroundPool(100, device="cuda")
    missing = pool.importance(torch.tensor([5, 100]).cuda())
    assert host(missing).isnan().tolist() == [False, True]
    pool.importance(torch.tensor([-7]).cuda())
    for index in (100, -7):
        with pytest.raises(ValueError, match=f"index must be in 0 … 99, got {index}; this was an index of an earlier"):
            pool.ascend(*batch(1), lr=1.0)
    pool.ascend(*batch(200), lr=1.0)
    pool.importance(torch.tensor([300]).cuda())
    for index in (200, 300):
        with pytest.raises(ValueError, match=f"got {index}"):
            pool.synchronize()
    pool.synchronize()


def test_errors_do_not_pile_up(cuda: CountedDevice) -> None:
    """A loop that only asks for importance has its error after a fixed number of calls, whatever the device does."""
    cuda.lag = 10**9
    pool = BackgroundPool(100, device="cuda")
    index = torch.tensor([100]).cuda()
    for _ in range(deferred_module._MOST):
        pool.importance(index)
    with pytest.raises(ValueError, match="got 100"):
        pool.importance(index)
    assert len(pool._checks._unread) == deferred_module._MOST


def test_values_that_were_overwritten_are_not_reported(cuda: CountedDevice) -> None:
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


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("mode", ["exact", "sparse"])
def test_a_loop_on_the_device_waits_for_the_step_before_at_most(cuda: CountedDevice, mode: str, lag: int) -> None:
    cuda.lag = lag
    pool, generator = BackgroundPool(5000, device="cuda"), cuda.generator()
    with cuda.counting() as waits:
        for step in range(6):
            index, importance = pool.sample(64, generator=generator, stratified=step == 3, replacement=step != 2)
            pool.ascend(index, importance, lr=3.0, mode=mode)
    assert waits == ({"event": 5} if lag else {})


def test_nothing_is_read_while_a_graph_is_captured(cuda: CountedDevice) -> None:
    pool, want = BackgroundPool(100, device="cuda"), BackgroundPool(100)
    cuda.lag = 2
    pool.ascend(*batch(7), lr=1.0)  # its result is unread when the capture begins
    index, loss = batch(3, 4)
    wrong, _ = batch(3, 100)
    cuda.capturing = True
    pool.ascend(index, loss, lr=1.0)
    pool.ascend(wrong, loss, lr=1.0)
    pool.ascend(index, loss, lr=1.0)
    pool.importance(index)
    cuda.capturing = False
    for drawn in ([7], [3, 4], [3, 4]):
        want.ascend(torch.tensor(drawn), torch.ones(len(drawn)), lr=1.0)
    assert_same(contents(pool), contents(want))
    pool.ascend(index, loss, lr=1.0)  # does not wait for the replays
    with pytest.raises(ValueError, match="overwritten since at position 1; this was the batch of a captured call"):
        pool.synchronize()
    pool.synchronize()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_device_computes_what_the_host_does(cuda: CountedDevice, name: str) -> None:
    """Draws, steps and queries, bit for bit; sums that leave the range of their quanta are made anew in time."""
    pools = {device: pool_of(LAYOUTS[name], device=device) for device in ("cpu", "cuda")}
    generators = {"cpu": torch.Generator().manual_seed(1), "cuda": cuda.generator(1)}
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
