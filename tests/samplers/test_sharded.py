"""A pool over 2, 3 and 4 processes (gloo) against the undivided pool, which every process keeps next to its slice."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from scipy import stats

from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from tests.support.background_pool_samples import LAYOUTS, pool_of
from tests.support.gloo import gather, run_in_groups

Group = dist.ProcessGroup


def same_as_whole(pool: ShardedBackgroundPool, whole: BackgroundPool) -> None:
    torch.testing.assert_close(pool.weights, whole.weights[pool.begin : pool.end], rtol=1e-6, atol=0)
    assert pool.effective_sample_size() == pytest.approx(whole.effective_sample_size(), rel=1e-7)


def same_bits(pool: ShardedBackgroundPool, whole: BackgroundPool, group: Group) -> None:
    """Draws, selections and statistics of a pool whose weights equal those of the undivided one bit for bit."""

    def sources(count: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(4) for _ in range(count)]

    for stratified in (False, True):
        source, own, alone = sources(3)
        uniform = torch.rand(65, dtype=torch.float64, generator=source)
        uniform = (torch.arange(65) + uniform) / 65 if stratified else uniform
        want = whole._state.find(uniform, whole.epsilon)
        draws = pool.draw(65, generator=own, stratified=stratified)
        assert torch.equal(draws.index, want[draws.position])
        assert torch.equal(draws.importance, whole.importance(draws.index))
        assert torch.equal(pool.importance(draws.index), draws.importance)
        assert torch.cat(gather(draws.position, group)).sort().values.tolist() == list(range(65))
        index, importance = pool.sample(65, generator=alone, stratified=stratified)
        assert torch.equal(index, draws.index)
        assert torch.equal(importance, draws.importance)
        assert torch.equal(alone.get_state(), source.get_state())
    for calibrated in (False, True):
        selected = [
            p.select(0.3, generator=g, calibrated=calibrated) for p, g in zip((pool, whole), sources(2), strict=True)
        ]
        assert torch.equal(torch.cat(gather(selected[0], group)), selected[1])
        mask = pool.select_mask(0.3, generator=sources(1)[0], calibrated=calibrated)
        assert torch.equal(mask.nonzero().flatten() + pool.begin, selected[0])
    for k in {1, len(whole) // 3 + 1, len(whole)}:
        assert torch.equal(pool.top(k), whole.top(k))
    assert all(torch.equal(a, b) for a, b in zip(pool.histogram(7), whole.histogram(7), strict=True))
    assert pool.effective_sample_size() == whole.effective_sample_size()
    assert (pool.drawable, len(pool)) == (whole.drawable, len(whole))


def last_heavy(size: int) -> torch.Tensor:
    """Weights of which only the last few are above zero: most slices have none."""
    weights = torch.zeros(size, dtype=torch.float64)
    weights[-3:] = torch.tensor([1.0, 2.0, 3.0])
    return weights


WEIGHTS = {
    **{name: LAYOUTS[name] for name in ("half without weight", "three levels", "one of many")},
    "last slice alone": last_heavy(300),
    "tiny": torch.linspace(1, 9, 200, dtype=torch.float64) * 1e-25,
    "huge": torch.linspace(1, 9, 200, dtype=torch.float64) * 1e5,
}


def draws_and_steps(rank: int, world_size: int, group: Group, folder: Path) -> None:
    for weights in WEIGHTS.values():
        whole = pool_of(weights)
        index, _ = whole.sample(50, generator=torch.Generator().manual_seed(3))
        whole.ascend(index, (index % 5).float(), lr=20.0)
        pool = whole.shard(rank, world_size, group=group)
        source = torch.Generator().manual_seed(4)
        same_bits(pool, whole, group)
        for step in range(4):
            index, _, position = pool.draw(64, generator=source, verify=False, stratified=step == 2)
            mode = ("exact", "sparse")[step % 2]
            pool.ascend(index, (position % 5).float(), lr=20.0, mode=mode)
            both = torch.cat(gather(torch.stack([index, position]), group), 1)
            whole.ascend(both[0], (both[1] % 5).float(), lr=20.0, mode=mode)
            same_as_whole(pool, whole)


def construction(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """A slice that is built directly equals the one that is cut from a whole pool."""
    for size, options in ((1000, {}), (4097 * 3, {"epsilon": 0.3, "initial_weight": 7.0}), (world_size, {})):
        whole = BackgroundPool(size, **options)
        pools = [ShardedBackgroundPool(size, **options, group=group), whole.shard(rank, world_size, group=group)]
        for name in ("omega", "velocity", "masses", "stats"):
            assert torch.equal(*(getattr(pool._state, name) for pool in pools)), name
        begins = [part[0].item() for part in torch.arange(size).chunk(world_size)]
        assert [pools[0].begin, pools[0].end] == [begins[rank], [*begins[1:], size][rank]]


def growth(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """Totals outgrow their quanta, in one slice alone."""
    whole = BackgroundPool(100, momentum=0.0)
    pool = ShardedBackgroundPool(100, momentum=0.0, group=group)
    before = pool.state_dict()["scale"]
    index = torch.arange(8) if rank == 0 else torch.zeros(0, dtype=torch.int64)
    for _ in range(10):
        pool.ascend(index, torch.full((len(index),), 1e3), lr=1e4)
        whole.ascend(torch.arange(8), torch.full((8,), 1e3), lr=1e4)
        same_as_whole(pool, whole)
    scale = pool.state_dict()["scale"]
    assert not torch.equal(scale[:3], before[:3])
    torch.testing.assert_close(scale[:3], whole.state_dict()["scale"][:3], rtol=0, atol=0)


def distribution(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """The union of the draws follows w^ε, and pairs of distinct draws successive sampling, by chi-square."""
    weights = torch.tensor([3.0, 0.0, 1.0, 0.5, 0.0, 4.0, 2.0, 1.0, 0.2, 6.0], dtype=torch.float64)
    if world_size == 4:
        weights = torch.cat([weights, torch.zeros(6)])  # a slice without weight
    pool = BackgroundPool.from_weights(weights, epsilon=0.5).shard(rank, world_size, group=group)
    p = weights.sqrt() / weights.sqrt().sum()
    source = torch.Generator().manual_seed(7)
    heavy = weights.nonzero().flatten().tolist()
    pairs = torch.zeros(len(weights), 2, dtype=torch.int64)
    drawn = []
    counts = pool.draw(20_000, generator=source, verify=False).index.bincount(minlength=len(weights))
    for _ in range(200):
        index, importance, position = pool.draw(2, generator=source, replacement=False)
        assert torch.equal(importance, pool.importance(index))
        drawn.append(torch.stack([index, position]))
    dist.all_reduce(counts, group=group)
    assert counts[weights == 0].sum() == 0
    assert counts.sum() == 20_000
    assert stats.chisquare(counts[heavy], (p * 20_000)[heavy]).pvalue > 1e-4
    every = gather(drawn, group)
    for at in range(200):
        index, position = torch.cat([of_rank[at] for of_rank in every], 1)
        assert position.sort().values.tolist() == [0, 1]
        assert index[0] != index[1]
        pairs[index, position] += 1
    second = torch.tensor([sum(p[i] * p[j] / (1 - p[i]) for i in heavy if i != j) for j in heavy])
    for place, expected in ((0, p[heavy]), (1, second)):
        assert stats.chisquare(pairs[heavy, place], expected * 200).pvalue > 1e-4


def test_slices_act_as_the_undivided_pool(tmp_path: Path) -> None:
    run_in_groups((draws_and_steps, construction, growth, distribution), tmp_path)
