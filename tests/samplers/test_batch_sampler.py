"""The batch sampler of a pool: draws of one process or divided among ranks, epochs, resuming, steps of all ranks."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.stats import chisquare
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, WeightedRandomSampler

from fastood.samplers import BackgroundPool, BackgroundPoolSampler

F64 = torch.float64
WEIGHTS = [1.0, 5.0, 0.0, 2.0, 8.0]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_draws_by_the_law_of_a_weighted_random_sampler(num_workers: int) -> None:
    pool = BackgroundPool.from_weights(WEIGHTS)
    sampler = BackgroundPoolSampler(pool, 100, np.int64(40), generator=torch.Generator().manual_seed(0))
    assert isinstance(sampler, BatchSampler)
    loader = DataLoader(torch.arange(5), batch_sampler=sampler, num_workers=num_workers)
    assert len(loader) == len(sampler) == 40
    epochs = [torch.cat(list(loader)) for _ in range(2)]
    assert not torch.equal(*epochs)  # the generator goes on
    drawn = torch.cat(epochs)
    counts = torch.bincount(drawn, minlength=5).double()
    assert counts.sum() == 8000
    assert counts[2] == 0
    present = [0, 1, 3, 4]
    share = torch.tensor(WEIGHTS, dtype=F64)[present] / sum(WEIGHTS)
    assert chisquare(counts[present], 8000 * share).pvalue > 1e-3
    peer = WeightedRandomSampler(WEIGHTS, 8000, generator=torch.Generator().manual_seed(0))
    theirs = torch.bincount(torch.tensor(list(peer)), minlength=5).double()
    assert ((counts - theirs).abs() < 6 * (8000 * share.max()).sqrt()).all()


@pytest.mark.parametrize(("num_samples", "sizes"), [(3, [2, 1]), (4, [2, 2]), (1, [1])])
@pytest.mark.parametrize("replacement", [True, False])
def test_an_epoch_in_examples(num_samples: int, sizes: list[int], replacement: bool) -> None:
    sampler = BackgroundPoolSampler(
        BackgroundPool.from_weights(WEIGHTS),
        2,
        generator=torch.Generator().manual_seed(0),
        num_samples=num_samples,
        replacement=replacement,
    )
    for _ in range(20):
        batches = list(sampler)
        assert [len(batch) for batch in batches] == sizes
        assert len(sampler) == len(sizes)
        drawn = [index for batch in batches for index in batch]
        assert 2 not in drawn
        assert replacement or len(set(drawn)) == num_samples


def test_draws_without_replacement_follow_the_law_of_a_weighted_random_sampler() -> None:
    """Pairs of distinct examples: P(i, j) = w_i / W · w_j / (W - w_i)."""
    generator = torch.Generator().manual_seed(0)
    pool = BackgroundPool.from_weights([1, 2, 5])
    sampler = BackgroundPoolSampler(pool, 1, generator=generator, num_samples=2, replacement=False)
    pairs = [tuple(index for batch in sampler for index in batch) for _ in range(4000)]
    w, total = (1, 2, 5), 8
    want = {(i, j): w[i] / total * w[j] / (total - w[i]) for i in range(3) for j in range(3) if i != j}
    assert chisquare([pairs.count(pair) for pair in want], [4000 * p for p in want.values()]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "num_batches or num_samples must be given, and not both, got None and None"),
        ({"num_batches": 2, "num_samples": 2}, ValueError, "and not both, got 2 and 2"),
        ({"num_batches": 10**400}, ValueError, "num_batches must be at most"),
        ({"num_samples": 0}, ValueError, "num_samples must be an int >= 1, got 0"),
        ({"num_samples": 5, "replacement": False}, ValueError, "at most the 4 examples with weight .* got 5"),
        ({"num_batches": 3, "replacement": False}, ValueError, r"num_batches \* batch_size must be at most .* got 6"),
        ({"num_samples": 1, "drop_last": True}, ValueError, "at least world_size . batch_size = 2 when drop_last=True"),
        ({"num_samples": 2, "drop_last": 1}, TypeError, "drop_last must be a bool, got 1"),
        ({"num_samples": 2, "rank": 1}, ValueError, "rank and world_size must be given together, got 1 and None"),
        ({"num_samples": 2, "rank": 2, "world_size": 2}, ValueError, "rank must be an int in 0 … 1, got 2"),
        ({"num_samples": 2, "rank": 0, "world_size": 0}, ValueError, "world_size must be an int >= 1, got 0"),
        ({"num_samples": 2, "replacement": "no"}, TypeError, "replacement must be a bool, got 'no'"),
        ({"num_samples": 2, "batch_size": 1.5}, ValueError, "batch_size must be an int >= 1, got 1.5"),
        ({"num_samples": 2, "generator": 3}, TypeError, r"generator must be a torch\.Generator, got int"),
        ({"num_samples": 2, "generator": None}, TypeError, r"generator must be a torch\.Generator, got NoneType"),
        ({"pool": BatchSampler([0], 1, False)}, TypeError, r"If Lightning passed it: .*use_distributed_sampler=False"),
        ({"num_samples": 2, "pool": WEIGHTS}, TypeError, "pool must be a BackgroundPool, .* got list"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    call = {"pool": BackgroundPool.from_weights(WEIGHTS), "batch_size": 2, "generator": torch.Generator(), **arguments}
    with pytest.raises(error, match=message):
        BackgroundPoolSampler(**call)


@pytest.mark.parametrize("wrong", [-1, "x", math.nan, None, True, 1.5])
def test_staleness_is_of_whole_workers(wrong: object) -> None:
    with pytest.raises(ValueError, match="num_workers must be an int >= 0, got"):
        BackgroundPoolSampler.max_staleness(num_workers=wrong)
    with pytest.raises(ValueError, match="prefetch_factor must be an int >= 1, got"):
        BackgroundPoolSampler.max_staleness(num_workers=2, prefetch_factor=wrong)


class Indexed(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


def test_a_loader_without_workers_sees_every_step() -> None:
    """Each batch is what the pool itself draws after the step on the one before."""

    def run(through_loader: bool) -> Tensor:
        pool, source = BackgroundPool(200), torch.Generator().manual_seed(2)
        sampler = BackgroundPoolSampler(pool, 16, 30, generator=source)
        assert len(sampler) == 30
        loader = DataLoader(Indexed(200), batch_sampler=sampler)
        batches = iter(loader) if through_loader else (pool.sample(16, generator=source)[0] for _ in range(30))
        drawn = []
        for index in batches:
            pool.ascend(index, (index < 20).float(), lr=100.0)
            drawn.append(index)
        return torch.stack(drawn)

    drawn = run(True)
    assert torch.equal(drawn, run(False))
    assert (drawn[:5] < 20).float().mean() < 0.15 < (drawn[-5:] < 20).float().mean()


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 2), (2, 3)])
def test_prefetch_is_no_further_ahead_than_stated(workers: int, prefetch: int) -> None:
    used, lead = 0, []

    class Counting(BackgroundPoolSampler):
        def __iter__(self):
            for drawn, batch in enumerate(super().__iter__()):
                lead.append(drawn - used)
                yield batch

    sampler = Counting(BackgroundPool(50), 4, 20, generator=torch.Generator())
    loader = DataLoader(Indexed(50), batch_sampler=sampler, num_workers=workers, prefetch_factor=prefetch)
    for _ in loader:
        used += 1
    assert max(lead) == BackgroundPoolSampler.max_staleness(num_workers=workers, prefetch_factor=prefetch)


def test_bad_sampler() -> None:
    for arguments, message in (((0, 3), "batch_size must be"), ((3, 0), "num_batches must be"), ((3, 1.5), "num_ba")):
        with pytest.raises(ValueError, match=message):
            BackgroundPoolSampler(BackgroundPool(5), *arguments, generator=torch.Generator())


def ranks_of(world_size: int, *arguments: int, seed: int = 0, pool: BackgroundPool, **options: object):
    """Samplers of all ranks, in one process."""
    return [
        BackgroundPoolSampler(pool, *arguments, generator=seeded(seed), rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("options", [{"num_batches": 4}, {"num_samples": 31}, {"num_samples": 31, "drop_last": True}])
@pytest.mark.parametrize("replacement", [True, False])
def test_ranks_divide_the_draws_of_one_process(world_size: int, options: dict[str, int], replacement: bool) -> None:
    pool = BackgroundPool.from_weights(torch.arange(1.0, 61.0))
    ranks = ranks_of(world_size, 4, pool=pool, replacement=replacement, **options)
    batches = [list(sampler) for sampler in ranks]
    sizes = [[len(batch) for batch in of_rank] for of_rank in batches]
    assert all(of_rank == sizes[0] for of_rank in sizes)
    assert [len(sampler) for sampler in ranks] == [len(sizes[0])] * world_size
    union = [index for step in zip(*batches, strict=True) for batch in step for index in batch]
    assert len(union) == ranks[0].num_samples
    if "num_samples" in options:
        left_over = options["num_samples"] - len(union)
        assert 0 <= left_over < 4 * world_size if "drop_last" in options else -world_size < left_over <= 0
    # One process with batches of world_size times the size draws the very same examples.
    alone = BackgroundPoolSampler(
        pool, 4 * world_size, generator=seeded(), num_samples=len(union), replacement=replacement
    )
    assert union == [index for batch in alone for index in batch]
    assert replacement or len(set(union)) == len(union)
    assert all(sampler.generator.get_state().equal(alone.generator.get_state()) for sampler in ranks)


def test_the_union_of_ranks_follows_the_weights() -> None:
    pool = BackgroundPool.from_weights(WEIGHTS)
    ranks = ranks_of(4, 50, 20, pool=pool)
    counts = torch.stack([torch.bincount(torch.tensor(list(s)).flatten(), minlength=5) for s in ranks]).double()
    present = [0, 1, 3, 4]
    share = torch.tensor(WEIGHTS, dtype=F64)[present] / sum(WEIGHTS)
    for of_rank in counts:
        assert chisquare(of_rank[present], 1000 * share).pvalue > 1e-3
    assert chisquare(counts.sum(0)[present], 4000 * share).pvalue > 1e-3
    assert counts[:, 2].sum() == 0


def test_more_examples_than_ranks_can_share_are_named() -> None:
    pool = BackgroundPool.from_weights([1.0] * 5)
    with pytest.raises(ValueError, match=r"at most the 5 examples .* got 6 over 2 ranks; drop_last=True leaves out"):
        BackgroundPoolSampler(pool, 2, generator=seeded(), num_samples=5, replacement=False, rank=0, world_size=2)


def test_an_epoch_has_draws_of_its_number_alone() -> None:
    def epochs(*numbers: int) -> list[list[list[int]]]:
        sampler = BackgroundPoolSampler(BackgroundPool(1000), 8, 3, generator=seeded())
        drawn = []
        for number in numbers:
            sampler.sampler.set_epoch(number)  # as Lightning and accelerate find it
            drawn.append(list(sampler))
        return drawn

    first, second, third = epochs(0, 1, 2)
    assert first != second != third != first
    assert epochs(2, 0) == [third, first]
    # Without a call the first epoch is number 0, and the generator continues.
    sampler = BackgroundPoolSampler(BackgroundPool(1000), 8, 3, generator=seeded())
    assert list(sampler) == first
    assert list(sampler) not in (first, second, third)
    with pytest.raises(ValueError, match="epoch must be an int >= 0, got -1"):
        sampler.set_epoch(-1)


def learning(sampler: BackgroundPoolSampler, batches, *, stop: int | None = None) -> list[list[int]]:
    """Indices of the batches, each followed by a step of the pool."""
    drawn = []
    for batch in batches:
        index = batch if isinstance(batch, Tensor) else torch.tensor(batch)
        drawn.append(index.tolist())
        sampler.ascend(index, (index % 7 == 0).float(), lr=50.0)
        if stop is not None and len(drawn) == stop:
            break
    return drawn


@pytest.mark.parametrize(
    "options", [{"num_batches": 6}, {"num_samples": 45}, {"num_samples": 45, "replacement": False}]
)
@pytest.mark.parametrize("epoch", [None, 3])
def test_a_loop_resumes_with_the_batches_that_followed(options: dict[str, int], epoch: int | None) -> None:
    """Through a checkpoint file, into other objects, with a pool that learns."""

    def make(seed: int) -> BackgroundPoolSampler:
        return BackgroundPoolSampler(BackgroundPool(100), 8, generator=seeded(seed), **options)

    def begin(sampler: BackgroundPoolSampler) -> None:
        if epoch is not None:
            sampler.set_epoch(epoch)

    sampler = make(0)
    begin(sampler)
    learning(sampler, sampler, stop=2)
    saved = {"sampler": sampler.state_dict(), "pool": sampler.pool.state_dict()}
    saved = {name: {key: _copy(value) for key, value in state.items()} for name, state in saved.items()}
    # A loop that was stopped cannot be continued by the same iterator: loading the state continues the same sampler.
    sampler.load_state_dict(saved["sampler"])
    begin(sampler)
    want = [learning(sampler, DataLoader(torch.arange(100), batch_sampler=sampler)), learning(sampler, sampler)]
    assert [len(batches) for batches in want] == [4, 6]

    resumed = make(1)
    resumed.load_state_dict(saved["sampler"])
    resumed.pool.load_state_dict(saved["pool"])
    begin(resumed)  # as trainers do, which must not lose the position
    assert [learning(resumed, resumed), learning(resumed, resumed)] == want


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


@pytest.mark.parametrize(
    "options", [{"num_batches": 6}, {"num_samples": 48}, {"num_samples": 48, "replacement": False}]
)
def test_fewer_ranks_take_over_an_epoch(options: dict[str, int]) -> None:
    pool = BackgroundPool(100)
    ranks = ranks_of(2, 4, pool=pool, **options)
    drawn = [[next(iterator) for _ in range(2)] for iterator in map(iter, ranks)]
    state = ranks[0].state_dict()
    assert _equal(state, ranks[1].state_dict())
    alone = BackgroundPoolSampler(pool, 4, generator=seeded(9), **options)
    alone.load_state_dict(state)
    rest = list(alone)
    if "num_batches" in options:
        assert len(rest) == 4
    else:
        assert [len(batch) for batch in rest] == [4] * 8
    if options.get("replacement") is False:
        every = [index for of_rank in [*drawn, rest] for batch in of_rank for index in batch]
        assert len(set(every)) == len(every) == 48


def _equal(a: dict[str, object], b: dict[str, object]) -> bool:
    return all(
        torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name] for name in {*a, *b}
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: [1], TypeError, "state must be a mapping"),
        (lambda state: {"epoch": 1}, KeyError, "must hold 'batches', 'examples', 'first_state', 'generator', 'order'"),
        (lambda state: {**state, "batches": -1}, ValueError, r"state\['batches'\] must be an int >= 0, got -1"),
        (lambda state: {**state, "epoch": "x"}, ValueError, r"state\['epoch'\] must be an int >= 0"),
        (lambda state: {**state, "generator": 3}, ValueError, r"state\['generator'\] must be a state of a generator"),
        (lambda state: {**state, "first_state": torch.ones(2)}, ValueError, r"state\['first_state'\] must be a state"),
        (lambda state: {**state, "order": torch.tensor([100])}, ValueError, "index must be in 0 … 99, got 100"),
    ],
)
def test_states_that_are_none_change_nothing(
    change: Callable[[dict[str, object]], object], error: type[Exception], message: str
) -> None:
    sampler = BackgroundPoolSampler(BackgroundPool(100), 4, 3, generator=seeded())
    next(iter(sampler))
    before = sampler.state_dict()
    with pytest.raises(error, match=message):
        sampler.load_state_dict(change(before))
    assert _equal(before, sampler.state_dict())


def test_arrays_and_lists_step_as_tensors() -> None:
    pools = [BackgroundPool(20) for _ in range(3)]
    index, loss = [3, 4, 3], [1.0, 0.5, 2.0]
    kinds = (torch.tensor, np.array, list)
    for pool, kind in zip(pools, kinds, strict=True):
        BackgroundPoolSampler(pool, np.int32(2), np.uint8(3), generator=seeded()).ascend(
            kind(index), kind(loss), lr=np.float32(5)
        )
    assert torch.equal(pools[0].weights, pools[1].weights)
    assert torch.equal(pools[0].weights, pools[2].weights)
    sampler = BackgroundPoolSampler(pools[0], 2, 3, generator=seeded())
    with pytest.raises(TypeError, match=r"index must be int64, got torch\.float64"):
        sampler.ascend([0.5], [1.0], lr=1.0)
    with pytest.raises(ValueError, match="index must be"):
        sampler.ascend([], [], lr=1.0)


def agreement(rank: int, sampler_of: Callable[..., BackgroundPoolSampler]) -> None:
    """A difference between ranks is an error on every rank, before anything is drawn."""
    for options, message in (
        ({"seed": rank}, "the state of generator must be the same on every process"),
        ({"size": 100 + rank}, "num_examples must be the same on every process, got 100 on rank 0 and 101 on rank 1"),
        ({"initial_weight": 1.0 + rank}, "the sums over the pool's weights must be the same on every process"),
        ({"batch_size": 4 + rank}, "batch_size must be the same on every process, got 4 on rank 0 and 5 on rank 1"),
        ({"num_batches": 3 + rank}, "num_batches must be the same on every process"),
        ({"rank": 0, "world_size": 2}, r"rank must differ between processes, got \[0, 0\]"),
    ):
        sampler = sampler_of(**options)
        before = sampler.generator.get_state()
        with pytest.raises(ValueError, match=message):
            next(iter(sampler))
        assert torch.equal(sampler.generator.get_state(), before)


def bad_steps(rank: int, sampler_of: Callable[..., BackgroundPoolSampler]) -> None:
    """A bad batch of rank 1 is an error on every rank, and no weight changes."""
    sampler = sampler_of()
    before = sampler.pool.weights
    good = torch.tensor([1]), torch.ones(1)
    for batch, options, message, elsewhere in (
        ((torch.tensor([100]), torch.ones(1)), {}, "index must be in 0 … 99, got 100 at position 1", None),
        ((torch.tensor([2**62]), torch.ones(1)), {}, f"index must be in 0 … 99, got {2**62}", None),
        ((good[0], torch.tensor([math.nan])), {}, "per_sample_loss must be finite and >= 0, got nan at pos", None),
        ((good[0], torch.ones(2)), {}, "per_sample_loss must have shape", "of ascend are invalid on rank 1"),
        ((good[0].int(), torch.ones(1)), {}, "index must be int64", "of ascend are invalid on rank 1"),
        (("x", torch.ones(1)), {}, "index must be a torch.Tensor, an array", "of ascend are invalid on rank 1"),
        (good, {"lr": 2.0}, "lr must be the same on every process, got 1.0 on rank 0 and 2.0 on rank 1", None),
        (good, {"mode": "exact"}, "mode must be the same on every process, got sparse on rank 0 and exact on", None),
        (good, {"lr": -1.0}, "lr must be finite", "of ascend are invalid on rank 1"),
    ):
        mine = {"lr": 1.0, **(options if rank == 1 else {})}
        with pytest.raises((TypeError, ValueError), match=message if rank == 1 or elsewhere is None else elsewhere):
            sampler.ascend(*(batch if rank == 1 else good), **mine)
    with pytest.raises(ValueError, match="at least one example on some process"):
        sampler.ascend([], [], lr=1.0)
    with pytest.raises(ValueError, match="the state of generator must be the same"):
        sampler_of(seed=rank).ascend(*good, lr=1.0)
    with pytest.raises(ValueError, match="the sums over the pool's weights must be the same"):
        sampler_of(initial_weight=1.0 + rank).ascend(*good, lr=1.0)
    with pytest.raises(ValueError, match="ascend needs epsilon below 1"):
        sampler_of(epsilon=1.0).ascend(*good, lr=1.0)
    assert torch.equal(sampler.pool.weights, before)
    with pytest.raises(TypeError, match="got ShardedBackgroundPool, whose draws differ in number between ranks"):
        BackgroundPoolSampler(sampler.pool.shard(rank, 2), 4, 3, generator=seeded())


def steps(rank: int, sampler_of: Callable[..., BackgroundPoolSampler]) -> None:
    """Replicas stay equal bit for bit, and equal to one process that takes the batches of all ranks."""
    for mode in ("sparse", "exact"):
        sampler, alone = sampler_of(), sampler_of(batch_size=8, rank=0, world_size=1)
        loader = DataLoader(torch.arange(100), batch_sampler=sampler)
        assert len(loader) == len(alone) == 3
        for mine, whole in zip(loader, alone, strict=True):
            assert torch.equal(mine, torch.tensor(whole[4 * rank : 4 * rank + 4]))
            sampler.ascend(mine, (mine % 5).double(), lr=20.0, mode=mode)
            alone.pool.ascend(torch.tensor(whole), (torch.tensor(whole) % 5).double(), lr=20.0, mode=mode)
            assert torch.equal(sampler.pool.weights, alone.pool.weights)
        # Unequal batches, and one that is longer than the room of the first exchange.
        for counts in ((0, 9), (300, 2)):
            index = torch.arange(counts[rank]) % 100
            sampler.ascend(index, index.float(), lr=20.0, mode=mode)
            whole = torch.cat([torch.arange(count) % 100 for count in counts])
            alone.pool.ascend(whole, whole.float(), lr=20.0, mode=mode)
            assert torch.equal(sampler.pool.weights, alone.pool.weights)
    # Each process draws by itself, as behind accelerate's loader, and the step is that of all ranks.
    sampler = sampler_of(seed=rank, rank=0, world_size=1)
    for index in sampler:
        sampler.ascend(index, [1.0] * len(index), lr=20.0)
    every = [torch.empty_like(sampler.pool.weights) for _ in range(2)]
    dist.all_gather(every, sampler.pool.weights)
    assert torch.equal(*every)


def run(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)

    def sampler_of(
        *,
        seed: int = 0,
        size: int = 100,
        batch_size: int = 4,
        num_batches: int = 3,
        epsilon: float = 0.5,
        initial_weight: float = 1.0,
        **options: int,
    ) -> BackgroundPoolSampler:
        pool = BackgroundPool(size, epsilon=epsilon, initial_weight=initial_weight)
        return BackgroundPoolSampler(pool, batch_size, num_batches, generator=seeded(seed), **options)

    early = sampler_of()
    assert (early.rank, early.world_size) == (0, 1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        # The group may be initialised after the sampler.
        assert (early.rank, early.world_size) == (rank, 2)
        for body in (agreement, bad_steps, steps):
            body(rank, sampler_of)
    finally:
        dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(run, args=(str(tmp_path / "rendezvous"),), nprocs=2)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("replacement", [True, False])
def test_stateful_data_loader_resumes_within_an_epoch(num_workers: int, replacement: bool) -> None:
    """A worker draws ahead; the state is nevertheless that of the batch which the loop has received."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make(seed: int):
        pool = BackgroundPool.from_weights(torch.arange(1.0, 101.0))
        sampler = BackgroundPoolSampler(pool, 8, 6, generator=seeded(seed), replacement=replacement)
        return stateful.StatefulDataLoader(torch.arange(100), batch_sampler=sampler, num_workers=num_workers)

    loader, want, states = make(0), [], []
    for batch in loader:
        want.append(batch.tolist())
        states.append(loader.state_dict())
    following = [batch.tolist() for batch in loader]
    for taken in (1, 3, 6):
        resumed = make(1)
        resumed.load_state_dict(states[taken - 1])
        assert [batch.tolist() for batch in resumed] == want[taken:]
        assert [batch.tolist() for batch in resumed] == following
