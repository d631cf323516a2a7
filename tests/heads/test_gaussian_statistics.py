"""Streaming means and covariances against the whole data at once, scikit-learn, and two processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf
from torch import Tensor

from fastood.heads import GaussianStatistics
from fastood.heads.covariance import shrinkage_share

WORLD_SIZE = 2


def sample(
    rows: int = 300, d: int = 7, classes: int = 4, offset: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Correlated features of unequal classes; the generator is the function's own, so that processes agree."""
    generator = torch.Generator().manual_seed(rows + d)
    labels = (torch.rand(rows, generator=generator).square() * classes).long()
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    centers = 3 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return (noise @ mixing + centers[labels] + offset).to(dtype), labels


def centred(features: Tensor, labels: Tensor) -> Tensor:
    """Rows less the mean of their class, in float64."""
    features = features.double().clone()
    for index in labels.unique().tolist():
        features[labels == index] -= features[labels == index].mean(0)
    return features


def assert_same(got: GaussianStatistics, want: GaussianStatistics, tolerance: float = 1e-10) -> None:
    assert torch.equal(got.counts, want.counts)
    torch.testing.assert_close(got.means, want.means, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.covariance(), want.covariance(), rtol=tolerance, atol=tolerance)
    if got.per_class:
        for index in got.counts.nonzero().flatten().tolist():
            torch.testing.assert_close(got.class_covariance(index), want.class_covariance(index))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [1, 7, 257, 515])
def test_is_the_covariance_of_the_whole(d: int, dtype: torch.dtype) -> None:
    """Widths on either side of the blocks that the products are computed in."""
    features, labels = sample(d=d, dtype=dtype)
    statistics = GaussianStatistics(d, per_class=True).partial_fit(features, labels)
    rows = centred(features, labels)
    torch.testing.assert_close(statistics.covariance(), rows.mT @ rows / len(rows))
    whole = features.double()
    torch.testing.assert_close(statistics.marginal_mean, whole.mean(0))
    torch.testing.assert_close(statistics.marginal_covariance(), torch.cov(whole.mT, correction=0).reshape(d, d))
    for index in labels.unique().tolist():
        part = whole[labels == index]
        torch.testing.assert_close(statistics.means[index], part.mean(0))
        own = torch.cov(part.mT, correction=0).reshape(d, d)
        torch.testing.assert_close(statistics.class_covariance(index), own)


@pytest.mark.parametrize("per_class", [False, True])
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=6), seed=st.integers(0, 99))
def test_neither_order_nor_batches_matter(per_class: bool, cuts: list[int], seed: int) -> None:
    features, labels = sample(rows=120, d=3)
    whole = GaussianStatistics(3, per_class=per_class).partial_fit(features, labels)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
    parts, merged = GaussianStatistics(3, per_class=per_class), GaussianStatistics(3, per_class=per_class)
    for index in torch.tensor_split(order, sorted(cuts)):
        parts.partial_fit(features[index], labels[index])
        merged.merge(GaussianStatistics(3, per_class=per_class).partial_fit(features[index], labels[index]))
    assert_same(parts, whole)
    assert_same(merged, whole)


def test_many_chunks() -> None:
    features, labels = sample(rows=10_000, d=5)
    rows = centred(features, labels)
    statistics = GaussianStatistics(5).partial_fit(features, labels)
    torch.testing.assert_close(statistics.covariance(), rows.mT @ rows / len(rows))


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_a_common_offset_costs_the_digits_that_the_input_loses_and_no_more(offset: float) -> None:
    features, labels = sample(rows=9000, offset=offset)
    statistics = GaussianStatistics(7).partial_fit(features[:10], labels[:10]).partial_fit(features[10:], labels[10:])
    rows = centred(features - offset, labels)  # exact: the offset's own digits are gone already
    torch.testing.assert_close(
        statistics.covariance(), rows.mT @ rows / len(rows), rtol=1e-15 * offset, atol=1e-14 * offset
    )


@pytest.mark.parametrize("rows", [5, 30, 300])
@pytest.mark.parametrize("d", [1, 2, 40])
def test_shrinkage_is_that_of_sklearn(rows: int, d: int) -> None:
    features, labels = sample(rows=rows, d=d)
    statistics = GaussianStatistics(d, per_class=True).partial_fit(features, labels)
    inside = centred(features, labels).numpy()
    fourth = statistics.fourth_moment(features[:3], labels[:3]) + statistics.fourth_moment(features[3:], labels[3:])
    for name, estimator in (("oas", OAS), ("ledoit_wolf", LedoitWolf)):
        theirs = estimator(assume_centered=True).fit(inside)
        share = shrinkage_share(statistics.covariance(), rows, name, float(fourth.sum()))
        assert share == pytest.approx(theirs.shrinkage_, abs=1e-12)
        ours = statistics.covariance(name, fourth_moment=fourth)
        np.testing.assert_allclose(ours.numpy(), theirs.covariance_, rtol=1e-10, atol=1e-12)
    whole = LedoitWolf().fit(features.numpy())
    marginal = statistics.fourth_moment(features, labels, marginal=True)
    ours = statistics.marginal_covariance("ledoit_wolf", fourth_moment=marginal)
    np.testing.assert_allclose(ours.numpy(), whole.covariance_, rtol=1e-9, atol=1e-11)
    index = int(statistics.counts.argmax())
    own = LedoitWolf().fit(features[labels == index].numpy())
    ours = statistics.class_covariance(index, "ledoit_wolf", fourth_moment=fourth[index])
    np.testing.assert_allclose(ours.numpy(), own.covariance_, rtol=1e-9, atol=1e-11)


def test_shrinkage_by_a_share() -> None:
    features, labels = sample()
    statistics = GaussianStatistics(7).partial_fit(features, labels)
    plain, shrunk = statistics.covariance(), statistics.covariance(0.25)
    target = plain.trace() / 7 * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(shrunk, 0.75 * plain + 0.25 * target)
    torch.testing.assert_close(statistics.covariance(1.0), target)
    torch.testing.assert_close(statistics.cholesky(0.25), torch.linalg.cholesky(shrunk))


def test_background_rows_and_empty_classes() -> None:
    features, labels = sample()
    labels = torch.where(labels == 1, -1, labels)
    features[labels < 0] = torch.nan  # skipped rows are not looked at
    statistics = GaussianStatistics(7, num_classes=6).partial_fit(features, labels)
    assert statistics.counts[[1, 4, 5]].eq(0).all()
    assert statistics.means[[1, 4, 5]].eq(0).all()
    kept = labels >= 0
    want = GaussianStatistics(7, num_classes=6).partial_fit(features[kept], labels[kept])
    assert_same(statistics, want, tolerance=0)
    assert statistics.cholesky().isfinite().all()
    assert statistics.count == int(kept.sum())
    none = GaussianStatistics(7).partial_fit(features, torch.full_like(labels, -100))
    assert (none.count, none.num_classes) == (0, 0)
    assert none.partial_fit(features[:0], labels[:0]).count == 0


def test_one_class_and_one_row() -> None:
    features, _ = sample()
    one = GaussianStatistics(7).partial_fit(features, torch.zeros(300, dtype=torch.int64))
    torch.testing.assert_close(one.covariance(), torch.cov(features.mT, correction=0))
    torch.testing.assert_close(one.covariance(), one.marginal_covariance())
    single = GaussianStatistics(7).partial_fit(features[:1], torch.zeros(1, dtype=torch.int64))
    assert torch.equal(single.means, features[:1])
    assert single.covariance().eq(0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_covariances_are_named(scale: float) -> None:
    features, labels = sample()
    features = features * scale
    features[:, [2, 4]] = 3 * scale
    statistics = GaussianStatistics(7).partial_fit(features, labels)
    with pytest.raises(ValueError, match=r"features 2, 4 are constant within the classes. Pass shrinkage=\"oas\""):
        statistics.cholesky()
    features[:, 2] = features[:, 0] * 1e3 + features[:, 1]
    features[:, 4] = features[:, 5] ** 2
    statistics = GaussianStatistics(7).partial_fit(features, labels)
    with pytest.raises(ValueError, match="feature 2 is a linear combination of those before it"):
        statistics.cholesky()
    wide, labels = sample(rows=20, d=40)
    statistics = GaussianStatistics(40).partial_fit(wide * scale, labels)
    with pytest.raises(ValueError, match="more features than rows minus classes"):
        statistics.cholesky()
    for remedy in ("oas", 1e-6):
        factor = statistics.cholesky(remedy)
        torch.testing.assert_close(factor @ factor.mT, statistics.covariance(remedy))


@pytest.mark.parametrize("per_class", [False, True])
def test_saved_statistics_go_on(per_class: bool, tmp_path: Path) -> None:
    features, labels = sample()
    statistics = GaussianStatistics(7, per_class=per_class).partial_fit(features[:200], labels[:200])
    statistics.save(tmp_path / "statistics.safetensors")
    restored = GaussianStatistics.load(tmp_path / "statistics.safetensors")
    assert repr(restored) == repr(statistics)
    assert_same(
        restored.partial_fit(features[200:], labels[200:]), statistics.partial_fit(features[200:], labels[200:]), 0
    )
    state = statistics.state_dict()
    with pytest.raises(ValueError, match="state must hold counts, means, scatter and per_class, lacks scatter"):
        GaussianStatistics.from_state_dict({name: state[name] for name in state if name != "scatter"})
    with pytest.raises(ValueError, match=r"counts, means and scatter must be \[K\], \[K, d\]"):
        GaussianStatistics.from_state_dict({**state, "counts": state["counts"][:-1]})


def reduced_over_processes(rank: int, folder: str) -> None:
    """One process: its share of the rows, then the sum over both; each keeps what it has."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    features, labels = sample(offset=1e4)
    order = labels.argsort()  # so that the processes see different classes, one of them fewer
    for per_class in (False, True):
        statistics = GaussianStatistics(7, per_class=per_class)
        share = order[:100] if rank == 0 else order[100:]
        statistics.partial_fit(features[share], labels[share]).all_reduce()
        statistics.save(f"{folder}/{per_class}-{rank}.safetensors")
    dist.destroy_process_group()


def test_all_reduce(tmp_path: Path) -> None:
    mp.spawn(reduced_over_processes, args=(str(tmp_path),), nprocs=WORLD_SIZE)
    features, labels = sample(offset=1e4)
    for per_class in (False, True):
        want = GaussianStatistics(7, per_class=per_class).partial_fit(features, labels)
        first, second = (GaussianStatistics.load(tmp_path / f"{per_class}-{rank}.safetensors") for rank in range(2))
        assert_same(first, want, tolerance=1e-9)
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name])


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        ([[1.0]], torch.zeros(1).long(), TypeError, "features must be a torch.Tensor, got list"),
        (
            torch.zeros(2, 3).long(),
            torch.zeros(2).long(),
            TypeError,
            "features must be floating-point, got torch.int64",
        ),
        (torch.zeros(2, 4), torch.zeros(2).long(), ValueError, r"features must be \[N, 3\], got shape \(2, 4\)"),
        (torch.zeros(6), torch.zeros(6).long(), ValueError, r"features must be \[N, 3\], got shape \(6,\)"),
        (torch.zeros(2, 3), [0, 0], TypeError, "labels must be a torch.Tensor, got list"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "labels must be int64, got torch.float32"),
        (torch.zeros(2, 3), torch.zeros(3).long(), ValueError, r"labels must have shape \(2,\) .* got \(3,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 5]), ValueError, "labels must be below num_classes = 5, got 5"),
        (torch.zeros(2, 3), torch.zeros(2, device="meta").long(), ValueError, "labels must be on cpu .* got meta"),
        (torch.tensor([[0.0, 0, 0], [0, torch.nan, 0]]), torch.zeros(2).long(), ValueError, "in 1 rows, .* is row 1"),
        (torch.tensor([[torch.inf, 0, 0]] * 2), torch.zeros(2).long(), ValueError, "in 2 rows, .* is row 0"),
    ],
)
def test_bad_rows_change_nothing(features: Tensor, labels: Tensor, error: type[Exception], message: str) -> None:
    statistics = GaussianStatistics(3, 5).partial_fit(torch.eye(3), torch.tensor([0, 1, 1]))
    before = {name: value.clone() for name, value in statistics.state_dict().items()}
    with pytest.raises(error, match=message):
        statistics.partial_fit(features, labels)
    assert all(torch.equal(value, before[name]) for name, value in statistics.state_dict().items())


def test_other_errors() -> None:
    statistics = GaussianStatistics(3, 2)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        GaussianStatistics(0)
    with pytest.raises(ValueError, match="num_classes must be at least 1, or None"):
        GaussianStatistics(3, 0)
    with pytest.raises(ValueError, match="the statistics must contain at least one row, got none"):
        statistics.covariance()
    with pytest.raises(ValueError, match="per_class is False"):
        statistics.class_covariance(0)
    with pytest.raises(ValueError, match=r"other must have the width and the per_class of .* got .*rows, d=4"):
        statistics.merge(GaussianStatistics(4))
    with pytest.raises(ValueError, match="other must have at most 2 classes, got 3"):
        statistics.merge(GaussianStatistics(3, 3))
    statistics.partial_fit(torch.eye(3), torch.tensor([0, 1, 1]))
    for bad in ("lw", -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match='shrinkage must be None, "oas", "ledoit_wolf" or a share in'):
            statistics.covariance(bad)
    with pytest.raises(ValueError, match='"ledoit_wolf" needs fourth_moment'):
        statistics.covariance("ledoit_wolf")
    empty = GaussianStatistics(3, 2, per_class=True).partial_fit(torch.eye(3), torch.zeros(3).long())
    with pytest.raises(ValueError, match="class 1 must contain at least one row"):
        empty.class_covariance(1)
