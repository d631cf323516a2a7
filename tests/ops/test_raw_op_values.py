"""Values that torch.ops.fastood.* must not use as an index or position: an error on the CPU, a marked result on a GPU.

test_raw_pool_values.py has the ops of the background pool.
"""

import math
from collections.abc import Sequence

import pytest
import torch

from fastood.ops.outlier_loss import LossKind
from tests.support.class_l1_nearest_samples import NearestSample, op_args
from tests.support.mahalanobis_samples import MahalanobisSample
from tests.support.op_samples import LossSample
from tests.support.raw_values import LARGEST, NAN, OUT_OF_RANGE, Call, outcome, with_value

ops = torch.ops.fastood


@pytest.mark.parametrize("value", [*OUT_OF_RANGE, 20])
def test_query_order_of_class_l1_nearest(value: int, device: str) -> None:
    args = list(op_args(NearestSample(20, 40, 5, 1), device, torch.float32))
    want = ops.class_l1_nearest(*args)
    row = int(args[2][7])
    args[2] = with_value(args[2], 7, value)
    got = outcome(device, r"query_order must be in \[0, 20\), got", lambda: ops.class_l1_nearest(*args))
    if got is not None:
        others = torch.arange(20, device=device) != row
        assert got[0][row].isnan()
        assert got[1][row] == -1
        assert all(torch.equal(g[others], w[others]) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("value", [*OUT_OF_RANGE, 40])
def test_key_order_of_class_l1_nearest(value: int, device: str) -> None:
    args = list(op_args(NearestSample(20, 40, 5, 1), device, torch.float32))
    _, nearest = ops.class_l1_nearest(*args)
    first = int((args[4] >= 0).nonzero()[0])
    args[5] = torch.full_like(args[5], value)  # every query has such a key
    got = outcome(device, r"key_order must be in \[0, 40\), got", lambda: ops.class_l1_nearest(*args))
    if got is not None:
        assert first < 40
        assert torch.equal(got[0].isnan(), nearest >= 0)
        assert got[1].eq(-1).all()


def test_rows_that_no_order_names(device: str) -> None:
    args = list(op_args(NearestSample(20, 40, 5, 1), device, torch.float32))
    args[2] = with_value(args[2], 7, int(args[2][8]))
    row = next(iter(set(range(20)) - set(args[2].tolist())))
    distance, index = ops.class_l1_nearest(*args)
    assert distance[row].isnan()
    assert index[row] == -1


@pytest.mark.parametrize("queries", ["sorted", "reversed", "extreme"])
def test_classes_that_are_not_sorted(queries: str, device: str) -> None:
    """Whatever comes out, indices are of keys, and nothing else is read."""
    args = list(op_args(NearestSample(33, 300, 5, 4), device, torch.float32))
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0)).to(device)
    args[4] = args[4][shuffled].contiguous()
    if queries == "reversed":
        args[1] = args[1].flip(0).contiguous()
    elif queries == "extreme":
        args[1] = torch.full_like(args[1], LARGEST)
    _, index = ops.class_l1_nearest(*args)
    assert ((index >= -1) & (index < 300)).all()


@pytest.mark.parametrize("value", [*OUT_OF_RANGE, 7])
@pytest.mark.parametrize(("samples", "diagonal"), [(33, False), (33, True), (1100, False)])
def test_nearest_of_the_mahalanobis_gradient(samples: int, diagonal: bool, value: int, device: str) -> None:
    """N + K above 1,024 sums over classes in a launch of its own."""
    features, means, scale = MahalanobisSample(samples, 7, 5, diagonal=diagonal).make(device, torch.float32)
    _, residual, whitened, nearest = ops.mahalanobis_logits(features, means, scale)
    grad = torch.ones(samples, 7, device=device)
    bad = with_value(nearest, 3, value)
    call = lambda: ops._mahalanobis_logits_backward(grad, residual, whitened, bad, scale)  # noqa: E731
    got = outcome(device, r"nearest must be in 0 ... 6, got", call)
    if got is not None:
        want = ops._mahalanobis_logits_backward(grad, residual, whitened, nearest, scale)
        others = torch.arange(samples, device=device) != 3
        assert got[0][3].isnan().all()
        assert torch.equal(got[0][others], want[0][others])
        assert got[1].isnan().all()
        assert got[2].isnan().any()


KEYS = torch.arange(12, dtype=torch.int32).view(3, 4)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        *(("id_row", value, r"id_row must be in \[0, 2\], got") for value in (*OUT_OF_RANGE, 3)),
        *(("id_count", value, r"id_count must be in \[0, 4\], got") for value in (*OUT_OF_RANGE, 5)),
        *(("ood_count", value, r"ood_count must be in \[0, 4\], got") for value in (*OUT_OF_RANGE, 5)),
    ],
)
def test_rows_and_counts_of_ranking_statistics(argument: str, value: int, message: str, device: str) -> None:
    keys = KEYS.to(device)
    rows = {"id_row": [0, 1, 2], "id_count": [4, 4, 4], "ood_count": [4, 4, 4]}
    good = {name: torch.tensor(numbers, device=device) for name, numbers in rows.items()}
    bad = {**good, argument: with_value(good[argument], 1, value)}
    got = outcome(device, message, lambda: ops.ranking_statistics(keys, keys, *bad.values(), [0.95]))
    if got is not None:
        assert got[0][1].isnan().all()
        want = ops.ranking_statistics(keys, keys, *good.values(), [0.95])
        assert torch.equal(got[0][::2], want[::2])


@pytest.mark.parametrize(("value", "counts"), [(-1, 0), (-LARGEST - 1, 0), (5, 4), (LARGEST, 4)])
def test_counts_of_sort_scores(value: int, counts: int, device: str) -> None:
    """On a GPU a count is clamped to its row."""
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.5]] * 2, device=device)
    call = lambda: ops.sort_scores(scores, torch.tensor([2, value], device=device))  # noqa: E731
    got = outcome(device, r"counts must be in \[0, 4\], got", call)
    if got is not None:
        assert torch.equal(got[0], ops.sort_scores(scores, torch.tensor([2, counts], device=device)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("order", ["falling", "random", "rising, then low"])
def test_keys_that_do_not_ascend(order: str, dtype: torch.dtype, device: str) -> None:
    """Their statistics are of no use; nothing outside of the rows is read, and no memory is left as it was."""
    generator = torch.Generator().manual_seed(0)
    rows = {
        "falling": torch.arange(5000).flip(0),
        "random": torch.randint(-5000, 5000, (5000,), generator=generator),
        "rising, then low": torch.cat([torch.arange(4000), torch.zeros(1000, dtype=torch.int64)]),
    }
    wrong = rows[order].to(dtype)[None].to(device)
    right = torch.arange(3000, dtype=dtype, device=device)[None]
    weight = torch.ones(2, 5000, dtype=torch.int32, device=device)
    for name, pair in (("id_keys", (wrong, right)), ("ood_keys", (right, wrong)), ("id_keys", (wrong, wrong))):
        message = f"{name} must ascend in each row"
        weights = tuple(weight[:, : keys.shape[1]].contiguous() for keys in pair)
        calls: Sequence[Call] = (
            lambda pair=pair: ops.ranking_statistics(*pair, None, None, None, [0.5]),
            lambda pair=pair, weights=weights: ops.weighted_ranking_statistics(*pair, *weights, [0.5]),
        )
        for call in calls:
            results = [outcome(device, message, call) for _ in range(2)]
            if results[0] is not None:
                assert results[0][0].shape[1] == 8


@pytest.mark.parametrize("value", [4, LARGEST])
@pytest.mark.parametrize("kind", [LossKind.UNIFORMITY, LossKind.REJECT_CLASS, LossKind.ENTROPY])
def test_targets_of_a_loss(kind: LossKind, value: int, device: str) -> None:
    sample = LossSample(kind, 6, 4)
    logits, rows = sample.make(device, torch.float32)
    targets = with_value(rows[0], 2, value)
    message = r"targets must be below K = \d .*, got \d+"
    for op in (ops.outlier_loss, ops.outlier_loss_value_and_grad):
        call = lambda op=op: op(logits, targets, *rows[1:], *sample.settings)  # noqa: E731
        got = outcome(device, message, call)
        if got is not None:
            others = torch.arange(6, device=device) != 2
            assert got[0].isnan()
            assert got[1][2].isnan()
            assert not got[1][others].isnan().any()


@pytest.mark.parametrize("value", [4.0, -7.0, 1e30, -1e30, math.inf, -math.inf, NAN])
@pytest.mark.parametrize("classes", [4, 40])
def test_targets_in_row_stats(classes: int, value: float, device: str) -> None:
    """The gradient of a row's target is written by the class in the statistics."""
    logits, rows = LossSample(LossKind.UNIFORMITY, 6, classes).make(device, torch.float32)
    _, _, row_stats, factors = ops.outlier_loss(logits, *rows, *LossSample(LossKind.UNIFORMITY, 6, classes).settings)
    one = torch.ones((), device=device)
    value = value if value != 4.0 and value != -7.0 else math.copysign(classes + 3 * (value < 0), value)
    bad = with_value(row_stats, (2, 4), value)
    message = r"row_stats must be those of outlier_loss for these logits, got the target .* in row 2"
    got = outcome(device, message, lambda: ops._outlier_loss_backward(one, logits, bad, factors, 0))
    if got is not None:
        want = ops._outlier_loss_backward(one, logits, row_stats, factors, 0)
        others = torch.arange(6, device=device) != 2
        assert torch.equal(got[0][others], want[others])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("index", 4),
        ("rows", 5),
        ("columns", 5),
        *((name, v) for name in ("index", "rows", "columns") for v in OUT_OF_RANGE),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_places_of_augment_images(argument: str, value: int, channels_last: bool, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, generator=generator).to(device)
    names = {"index": [0, 3, 2], "rows": [0, 4, 2], "columns": [4, 0, 1]}
    good = {name: torch.tensor(numbers, device=device) for name, numbers in names.items()}
    flip = torch.tensor([True, False, True], device=device)
    rest = (flip, 2, [0.5], [0.25], torch.float32, channels_last)
    bad = {**good, argument: with_value(good[argument], 1, value)}
    got = outcome(
        device, rf"{argument} must be in \[0, [34]\], got", lambda: ops.augment_images(images, *bad.values(), *rest)
    )
    if got is not None:
        want = ops.augment_images(images, *good.values(), *rest)
        assert got[0][1].isnan().all()
        assert torch.equal(got[0][::2], want[::2])
