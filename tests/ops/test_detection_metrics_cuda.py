"""Detection statistics on a GPU against those on the CPU: the same bits, and nothing waits."""

import math

import pytest
import torch

from fastood.ops import detection_metrics as ops
from fastood.ops.detection_metrics import RankingStatistics, Scheme
from tests.support.detection_metrics_samples import DTYPES, PAIR_SAMPLES, RATES, PairSample

pytestmark = pytest.mark.needs_cuda


def assert_same(got: RankingStatistics, want: RankingStatistics) -> None:
    for name, a, b in zip(got._fields, got, want, strict=True):
        assert a.is_cuda
        assert torch.equal(a.cpu().nan_to_num(nan=-1), b.nan_to_num(nan=-1)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair", PAIR_SAMPLES, ids=str)
def test_statistics_are_those_of_the_cpu(pair: PairSample, dtype: torch.dtype) -> None:
    on_cpu = [ops.sort_scores(scores)[None] for scores in pair.make(dtype)]
    on_gpu = [ops.sort_scores(scores)[None] for scores in pair.make(dtype, "cuda")]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(on_gpu, on_cpu, strict=True))
    assert_same(ops.ranking_statistics(*on_gpu, tpr=RATES), ops.ranking_statistics(*on_cpu, tpr=RATES))


@pytest.mark.parametrize("scheme", ["multinomial", "poisson", "subset"])
@pytest.mark.parametrize(("num_id", "num_ood"), [(1, 2), (700, 5001), (40_000, 3)])
def test_replicates_are_those_of_the_cpu(scheme: Scheme, num_id: int, num_ood: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = PairSample("tied", num_id, num_ood).make()
    sizes = {"id_size": num_id // 2, "ood_size": num_ood // 2} if scheme == "subset" else {}
    settings = {"seed": -3, "replicates": 20, "scheme": scheme, "tpr": RATES, **sizes}
    index = [torch.randperm(len(s), generator=generator) for s in scores]
    for indices in ([None, None], index):
        found = {
            device: ops.resampled_statistics(
                *(ops.sort_scores(s.to(device)) for s in scores),
                id_index=None if indices[0] is None else indices[0].to(device),
                ood_index=None if indices[1] is None else indices[1].to(device),
                **settings,
            )
            for device in ("cpu", "cuda")
        }
        assert_same(found["cuda"], found["cpu"])


def test_long_rows_and_many_rows() -> None:
    """The sort of one row at a time, and of a block per row; more rates than a launch takes."""
    generator = torch.Generator().manual_seed(0)
    rates = tuple((k + 1) / 100 for k in range(100))
    for num_rows, num_columns in ((2, 300_000), (500, 1000)):
        scores = torch.randn(2, num_rows, num_columns, generator=generator)
        keys = {device: ops.sort_scores(scores.to(device)) for device in ("cpu", "cuda")}
        assert torch.equal(keys["cuda"].cpu(), keys["cpu"])
        assert_same(*(ops.ranking_statistics(*keys[device], tpr=rates) for device in ("cuda", "cpu")))


def test_ragged_rows_and_shared_id_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    id_scores, ood_scores = torch.randn(3, 700, generator=generator), torch.randn(5, 900, generator=generator)
    numbers = {
        "id_row": torch.tensor([2, 0, 0, 1, 2]),
        "id_count": torch.tensor([700, 1, 333]),
        "ood_count": torch.tensor([900, 0, 1, 450, 899]),
    }
    found = []
    for device in ("cuda", "cpu"):
        here = {name: values.to(device) for name, values in numbers.items()}
        id_keys = ops.sort_scores(id_scores.to(device), here["id_count"])
        ood_keys = ops.sort_scores(ood_scores.to(device), here["ood_count"])
        found.append(ops.ranking_statistics(id_keys, ood_keys, **here, tpr=RATES))
    assert_same(*found)


def test_what_the_cpu_refuses_has_no_statistics() -> None:
    scores = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).cuda()
    keys = ops.sort_scores(scores)
    scores[1, 7] = math.nan
    with_nan = ops.sort_scores(scores)
    id_row = torch.tensor([0, 1, 4, -1], device="cuda")
    found = ops.ranking_statistics(keys, with_nan, id_row=id_row)
    assert all(field.reshape(4, -1).isnan().all(1).tolist() == [False, True, True, True] for field in found)
    count = torch.tensor([100, 101, -1, 0], device="cuda")
    found = ops.ranking_statistics(keys, keys, ood_count=count)
    assert all(field.reshape(4, -1).isnan().all(1).tolist() == [False, True, True, True] for field in found)
    weight = torch.ones(3, 100, dtype=torch.int32, device="cuda")
    weight[1, 3], weight[2] = -1, 2**30
    found = torch.ops.fastood.weighted_ranking_statistics(keys[:1], keys[1:2], None, weight, [0.95])
    assert found.isnan().all(1).tolist() == [False, True, True]


def test_nothing_waits_and_graphs_replay() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2, 2, 3, 5000, generator=generator)
    static = pairs[0].cuda()

    def run() -> tuple[RankingStatistics, RankingStatistics]:
        keys = ops.sort_scores(static)
        replicates = ops.resampled_statistics(keys[0, 0], keys[1, 0], seed=1, replicates=10)
        return ops.ranking_statistics(keys[0], keys[1]), replicates

    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    static.copy_(pairs[1])
    graph.replay()
    keys = ops.sort_scores(pairs[1])
    assert_same(found[0], ops.ranking_statistics(keys[0], keys[1]))
    assert_same(found[1], ops.resampled_statistics(keys[0, 0], keys[1, 0], seed=1, replicates=10))
