"""Detection metrics against sklearn, known values and their own invariances."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)
from sklearn.metrics import roc_curve as sklearn_roc_curve

from fastood.metrics import auroc, average_precision, detection_metrics, fpr_at_tpr, pr_curve, roc_curve


def sklearn_inputs(id_scores, ood_scores, positive):
    """Labels and scores as sklearn wants them; ranks stand for scores, so that ±inf and big integers pass."""
    scores = np.concatenate([id_scores.numpy(), ood_scores.numpy()])
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.float64)
    is_ood = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
    return (is_ood, ranks) if positive == "ood" else (1 - is_ood, -ranks)


def sklearn_fpr(labels, scores, tpr):
    fpr, recall, _ = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    positives = labels.sum()
    # sklearn's rates are counts over P; comparing counts avoids 0.95 · P in floating point.
    required = -(-round(tpr * 100) * positives // 100)
    return fpr[np.argmax(np.rint(recall * positives) >= required)]


def assert_agrees_with_sklearn(id_scores, ood_scores, positive, tpr=0.95):
    metrics = detection_metrics(id_scores, ood_scores, positive=positive, tpr=tpr)
    labels, scores = sklearn_inputs(id_scores, ood_scores, positive)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.aupr == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics.fpr_at_tpr == pytest.approx(sklearn_fpr(labels, scores, tpr), abs=1e-12)
    assert (metrics.positive, metrics.tpr) == (positive, tpr)
    assert (metrics.id_count, metrics.ood_count) == (len(id_scores), len(ood_scores))


def normal(count, *, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, generator=generator, dtype=torch.float64)


SCORE_SETS = {
    "random": (normal(500), normal(200, shift=1.0, seed=1)),
    "tied": (normal(500).round(decimals=1), normal(200, shift=1.0, seed=1).round(decimals=1)),
    "constant": (torch.full((7,), 0.5), torch.full((3,), 0.5)),
    "separated": (torch.linspace(0, 1, 40), torch.linspace(2, 3, 20)),
    "inverted": (torch.linspace(2, 3, 40), torch.linspace(0, 1, 20)),
    "one element": (torch.tensor([0.3]), torch.tensor([0.2])),
    "infinite": (torch.tensor([-inf, 0.0, inf, 1.0]), torch.tensor([inf, inf, 0.0, -inf])),
    "bool": (torch.tensor([False, False, True]), torch.tensor([True, True, False])),
    "uint8": (torch.tensor([0, 3, 255], dtype=torch.uint8), torch.tensor([3, 254], dtype=torch.uint8)),
    "int64 beyond float64": (
        torch.tensor([2**53, 2**53 + 1, -(2**63)]),
        torch.tensor([2**53 + 1, 2**53]),
    ),
    "float16": (normal(300).half(), normal(100, shift=1.0, seed=1).half()),
}


@pytest.mark.parametrize("positive", ["ood", "id"])
@pytest.mark.parametrize("name", SCORE_SETS)
def test_agrees_with_sklearn(name, positive):
    assert_agrees_with_sklearn(*SCORE_SETS[name], positive)


def test_bfloat16_is_ranked_as_float64():
    scores = normal(300).bfloat16(), normal(100, shift=1.0, seed=1).bfloat16()
    assert detection_metrics(*scores) == detection_metrics(*(part.double() for part in scores))


# Few distinct values make ties the rule; the floats bring ±inf, subnormals and ±0.
score_lists = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, inf, -inf])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(
    id_scores=score_lists,
    ood_scores=score_lists,
    positive=st.sampled_from(["ood", "id"]),
    percent=st.integers(1, 100),
)
def test_agrees_with_sklearn_on_anything(id_scores, ood_scores, positive, percent):
    id_scores = torch.tensor(id_scores, dtype=torch.float64)
    ood_scores = torch.tensor(ood_scores, dtype=torch.float64)
    assert_agrees_with_sklearn(id_scores, ood_scores, positive, percent / 100)


@settings(max_examples=50, deadline=None)
@given(
    id_ranks=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    ood_ranks=st.lists(st.integers(0, 9), min_size=1, max_size=30),
)
def test_invariant_under_increasing_maps(id_ranks, ood_ranks):
    id_ranks, ood_ranks = torch.tensor(id_ranks), torch.tensor(ood_ranks)
    maps = [
        torch.arange(10),
        torch.arange(10).double().exp(),
        # Big scores, which torchmetrics squashes into ties, and infinite ends.
        torch.tensor([-inf, -1e300, -500, -20, 0, 1e-310, 1, 17, 18, inf], dtype=torch.float64),
        # A float32 step apart: exactly what logits differ by.
        torch.arange(10).float().mul(2**-23).add(1.0),
    ]
    results = [replace(detection_metrics(values[id_ranks], values[ood_ranks]), threshold=0.0) for values in maps]
    assert all(result == results[0] for result in results)


def test_ties_are_never_split_by_input_order():
    scores = SCORE_SETS["tied"]
    assert detection_metrics(*scores) == detection_metrics(*(part.flip(0) for part in scores))


def test_known_values_by_hand():
    # Sorted strictest first: O(9) | O I (8, tied) | I(5) | O(3) | I(1): TP 1 2 2 3 3, FP 0 1 2 2 3.
    id_scores, ood_scores = torch.tensor([8, 5, 1]), torch.tensor([9, 8, 3])
    metrics = detection_metrics(id_scores, ood_scores)
    assert metrics.auroc == 6.5 / 9
    assert metrics.aupr == pytest.approx((1 + 2 / 3 + 3 / 5) / 3, abs=1e-15)
    assert metrics.fpr95 == 2 / 3


def test_positive_class_moves_fpr_and_aupr_but_not_auroc():
    id_scores, ood_scores = torch.tensor([0, 1, 2, 9]), torch.tensor([8, 10])
    ood, ind = (detection_metrics(id_scores, ood_scores, positive=positive) for positive in ("ood", "id"))
    assert ood.auroc == ind.auroc == 7 / 8
    assert (ood.fpr95, ind.fpr95) == (1 / 4, 1 / 2)
    assert ood.aupr == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert ind.aupr == pytest.approx((1 + 1 + 1 + 4 / 5) / 4, abs=1e-15)


def test_aupr_rises_with_the_ood_count_while_the_rest_stays():
    id_scores, ood_scores = normal(400), normal(100, shift=1.0, seed=1)
    few, many = (detection_metrics(id_scores, ood_scores.repeat(times)) for times in (1, 5))
    assert few.auroc == many.auroc
    assert few.fpr95 == many.fpr95
    assert many.aupr > few.aupr + 0.1


@pytest.mark.parametrize(
    ("tpr", "count", "required"),
    [(0.55, 100, 55), (0.07, 100, 7), (0.95, 20, 19), (1.0, 7, 7)],
)
def test_required_true_positives_are_counted_in_decimal(tpr, count, required):
    # OOD scores count…1 interleaved with ID half a step below: FP before the required-th OOD is required − 1.
    ood_scores = torch.arange(count, 0, -1)
    metrics = detection_metrics(ood_scores.double() - 0.5, ood_scores.double(), tpr=tpr)
    assert metrics.fpr_at_tpr == (required - 1) / count


def test_auroc_counts_do_not_round():
    # 3e5 × 3e5 pairs exceed float32's and int32's exact range.
    id_scores, ood_scores = torch.arange(300_000) * 2, torch.arange(300_000) * 2 + 1
    assert detection_metrics(id_scores, ood_scores).auroc == (300_000 * 300_001 // 2) / 300_000**2


def test_scores_with_a_gradient_are_read_without_it():
    id_scores = torch.tensor([0.1, 0.3], requires_grad=True)
    assert detection_metrics(id_scores, torch.tensor([0.2])).auroc == 0.5


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "error", "words"),
    [
        (torch.tensor([]), torch.tensor([1.0]), ValueError, "id_scores is empty"),
        (torch.tensor([1.0]), torch.tensor([]), ValueError, "ood_scores is empty"),
        (torch.tensor([1.0, nan]), torch.tensor([1.0]), ValueError, "id_scores holds 1 NaN among its 2"),
        (torch.tensor([1.0]), torch.tensor([nan]), ValueError, "ood_scores holds 1 NaN"),
        (torch.tensor(1.0), torch.ones(2), ValueError, r"id_scores must .*got shape \(\)"),
        (["a"], torch.ones(2), TypeError, "id_scores must be a torch.Tensor, an array or numbers, got list"),
        (torch.ones(2, dtype=torch.complex64), torch.ones(2), TypeError, "must be real"),
        (torch.ones(2), torch.ones(2).double(), TypeError, "one dtype, got torch.float32 and torch.float64"),
    ],
)
@pytest.mark.parametrize("function", [detection_metrics, roc_curve, pr_curve])
def test_bad_scores_are_errors(function, id_scores, ood_scores, error, words):
    with pytest.raises(error, match=words):
        function(id_scores, ood_scores)


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, nan])
def test_bad_tpr_is_an_error(tpr):
    with pytest.raises(ValueError, match="tpr must lie in"):
        detection_metrics(torch.ones(2), torch.ones(2), tpr=tpr)


@pytest.mark.parametrize("function", [detection_metrics, roc_curve, pr_curve])
def test_unknown_positive_class_is_an_error(function):
    with pytest.raises(ValueError, match='positive must be "ood" or "id"'):
        function(torch.ones(2), torch.ones(2), positive="OOD")


@pytest.mark.parametrize("positive", ["ood", "id"])
@pytest.mark.parametrize("name", ["random", "tied", "constant", "separated", "inverted", "one element"])
def test_curves_agree_with_sklearn(name, positive):
    id_scores, ood_scores = (scores.double() for scores in SCORE_SETS[name])
    scores = np.concatenate([id_scores.numpy(), ood_scores.numpy()])
    labels = np.repeat([0, 1] if positive == "ood" else [1, 0], [len(id_scores), len(ood_scores)])
    sign = 1 if positive == "ood" else -1

    fpr, tpr, thresholds = sklearn_roc_curve(labels, sign * scores, drop_intermediate=False)
    roc = roc_curve(id_scores, ood_scores, positive=positive)
    np.testing.assert_allclose(roc.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(roc.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(roc.thresholds, sign * thresholds)

    precision, recall, thresholds = precision_recall_curve(labels, sign * scores)
    pr = pr_curve(id_scores, ood_scores, positive=positive)
    np.testing.assert_allclose(pr.precision, precision[::-1], atol=1e-12)
    np.testing.assert_allclose(pr.recall, recall[::-1], atol=1e-12)
    np.testing.assert_array_equal(pr.thresholds[1:], sign * thresholds[::-1])


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_curves_hold_the_metrics(positive):
    id_scores, ood_scores = SCORE_SETS["tied"]
    metrics = detection_metrics(id_scores, ood_scores, positive=positive)
    roc = roc_curve(id_scores, ood_scores, positive=positive)
    pr = pr_curve(id_scores, ood_scores, positive=positive)
    assert float(torch.trapezoid(roc.tpr, roc.fpr)) == pytest.approx(metrics.auroc, abs=1e-12)
    assert float((pr.recall.diff() * pr.precision[1:]).sum()) == pytest.approx(metrics.aupr, abs=1e-12)
    assert float(roc.fpr[roc.tpr >= 0.95 - 1e-12][0]) == metrics.fpr95


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_pr_curve_at_another_ratio_is_the_curve_of_repeated_images(positive):
    id_scores, ood_scores = SCORE_SETS["tied"]
    repeated = pr_curve(id_scores, ood_scores.repeat(5), positive=positive)
    restated = pr_curve(id_scores, ood_scores, positive=positive, ood_per_id=2.0)
    torch.testing.assert_close(restated.precision, repeated.precision, atol=1e-12, rtol=0)
    torch.testing.assert_close(restated.recall, repeated.recall, atol=1e-12, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, -1.0, inf, nan])
def test_pr_curve_refuses_a_bad_ratio(ratio):
    with pytest.raises(ValueError, match="ood_per_id must be"):
        pr_curve(torch.ones(2), torch.ones(2), ood_per_id=ratio)


@pytest.mark.parametrize("positive", ["ood", "id"])
@pytest.mark.parametrize(
    ("id_shape", "ood_shape"), [((50,), (3, 20)), ((3, 50), (20,)), ((2, 1, 50), (3, 20)), ((1, 50), (1, 20))]
)
def test_a_batch_is_its_pairs_one_by_one(id_shape, ood_shape, positive):
    source = torch.Generator().manual_seed(0)
    id_scores = torch.randn(id_shape, generator=source).round(decimals=1)
    ood_scores = (1 + torch.randn(ood_shape, generator=source)).round(decimals=1)
    batch = detection_metrics(id_scores, ood_scores, positive=positive)
    leading = torch.broadcast_shapes(id_shape[:-1], ood_shape[:-1])
    assert (batch.id_count, batch.ood_count) == (50, 20)
    id_rows, ood_rows = id_scores.expand(*leading, 50), ood_scores.expand(*leading, 20)
    for position in np.ndindex(*leading):
        single = detection_metrics(id_rows[position], ood_rows[position], positive=positive)
        for name in ("auroc", "aupr_in", "aupr_out", "aupr", "fpr95", "threshold", "detection_error"):
            value = getattr(batch, name)
            assert value.shape == leading
            assert value.dtype == torch.float64
            assert value[position] == getattr(single, name), name


def test_shapes_that_do_not_broadcast_are_errors():
    with pytest.raises(ValueError, match=r"broadcast, got shapes \(2, 5\) and \(3, 5\)"):
        detection_metrics(torch.ones(2, 5), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"at least one set of scores, got shape \(0, 5\)"):
        detection_metrics(torch.ones(0, 5), torch.ones(3, 5))


def test_detection_error_is_the_smallest_over_thresholds():
    # Threshold 3 flags both OOD and one of four ID scores; 9 one OOD of two and none; nothing flagged is 1/2.
    metrics = detection_metrics(torch.tensor([0, 1, 2, 4]), torch.tensor([3, 9]))
    assert metrics.detection_error == (1 / 4 + 0) / 2
    inverted = detection_metrics(torch.tensor([8, 9]), torch.tensor([0, 1]))
    assert inverted.detection_error == 0.5


def test_fpr95_is_not_read_at_another_rate():
    metrics = detection_metrics(torch.arange(4), torch.arange(2, 6), tpr=0.9)
    with pytest.raises(AttributeError, match="read fpr_at_tpr"):
        _ = metrics.fpr95


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_thresholds_flag_what_they_say(positive):
    id_scores, ood_scores = SCORE_SETS["tied"]
    metrics = detection_metrics(id_scores, ood_scores, positive=positive)
    flagged = [(s >= metrics.threshold) if positive == "ood" else (s <= metrics.threshold) for s in SCORE_SETS["tied"]]
    false, true = flagged if positive == "ood" else reversed(flagged)
    assert float(true.double().mean()) >= 0.95
    assert float(false.double().mean()) == metrics.fpr95


def test_single_functions_are_fields_of_the_whole():
    scores = SCORE_SETS["tied"]
    metrics = detection_metrics(*scores, positive="id", rule="nearest", tpr=0.8)
    assert auroc(*scores) == metrics.auroc
    assert average_precision(*scores, positive="id") == metrics.aupr_in
    assert fpr_at_tpr(*scores, positive="id", rule="nearest", tpr=0.8) == metrics.fpr_at_tpr
