"""Every rule pinned: known values, and numpy statements of what each library's code does."""

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, precision_recall_curve
from sklearn.metrics import roc_curve as sklearn_roc_curve

from fastood.metrics import PROTOCOLS, detection_metrics, evaluate_protocol


def coarse_scores(seed):
    """200 ID and 100 OOD scores on a grid of 0.1, where rules differ."""
    source = np.random.default_rng(seed)
    id_confidence, ood_confidence = source.normal(1, size=200), source.normal(0, size=100)
    return tuple(torch.from_numpy(-confidence.round(1)) for confidence in (id_confidence, ood_confidence))


def oriented(id_scores, ood_scores, positive):
    """Positive and negative scores as numpy, higher = more positive."""
    if positive == "ood":
        return ood_scores.numpy(), id_scores.numpy()
    return -id_scores.numpy(), -ood_scores.numpy()


def labels_of(positives, negatives):
    return np.repeat([1, 0], [len(positives), len(negatives)]), np.concatenate([positives, negatives])


def nearest_recall(positives, negatives, tpr):
    """outlier-exposure: from the threshold that first flags every positive to stricter ones, the nearest recall."""
    thresholds = np.unique(np.concatenate([positives, negatives]))  # loosest first
    recall = np.array([np.mean(positives >= threshold) for threshold in thresholds])
    start = np.flatnonzero(recall == 1).max()
    best = start + np.argmin(np.round(np.abs(recall[start:] - tpr), 12))
    return np.mean(negatives >= thresholds[best])


def thinned_curve(positives, negatives, tpr):
    """OpenOOD v1.5: sklearn's roc_curve as it comes."""
    fpr, recall, _ = sklearn_roc_curve(*labels_of(positives, negatives))
    return fpr[np.argmax(recall >= tpr - 1e-12)]


def below_quantile(positives, negatives, tpr):
    """Background resampling: np.quantile of the positive scores."""
    return np.mean(negatives >= np.quantile(positives, 1 - tpr))


def beyond_floor(positives, negatives, tpr):
    """OpenOOD before v1.5."""
    return np.mean(negatives > np.sort(positives)[-int(np.floor(tpr * len(positives)))])


def first_threshold(positives, negatives, tpr):
    fpr, recall, _ = sklearn_roc_curve(*labels_of(positives, negatives), drop_intermediate=False)
    return fpr[np.argmax(recall >= tpr - 1e-12)]


RULES = {
    "first": first_threshold,
    "corner": thinned_curve,
    "nearest": nearest_recall,
    "quantile": below_quantile,
    "floor": beyond_floor,
}

KNOWN = {
    ("id", "first"): (0.600, 0.690, 0.640),
    ("id", "nearest"): (0.530, 0.650, 0.640),
    ("id", "floor"): (0.530, 0.650, 0.610),
    ("ood", "first"): (0.790, 0.855, 0.705),
}


@pytest.mark.parametrize(("positive", "rule"), KNOWN)
def test_known_values_of_coarse_scores(positive, rule):
    found = [detection_metrics(*coarse_scores(seed), positive=positive, rule=rule).fpr95 for seed in range(3)]
    assert found == pytest.approx(KNOWN[positive, rule], abs=1e-12)


@pytest.mark.parametrize("positive", ["ood", "id"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tpr", [0.95, 0.5])
def test_rules_are_those_of_the_libraries(rule, positive, tpr):
    for seed in range(40):
        id_scores, ood_scores = coarse_scores(seed)
        if seed % 2:  # as if without ties
            id_scores = id_scores + torch.linspace(0, 0.01, 200, dtype=torch.float64)
            ood_scores = ood_scores + torch.linspace(0, 0.01, 100, dtype=torch.float64)
        metrics = detection_metrics(id_scores, ood_scores, tpr=tpr, positive=positive, rule=rule)
        expected = RULES[rule](*oriented(id_scores, ood_scores, positive), tpr)
        assert metrics.fpr_at_tpr == pytest.approx(expected, abs=1e-12), seed
        flagged = oriented(id_scores, ood_scores, positive)[1]
        threshold = metrics.threshold if positive == "ood" else -metrics.threshold
        at_threshold = flagged > threshold if rule == "floor" else flagged >= threshold
        assert np.mean(at_threshold) == pytest.approx(expected, abs=1e-12)


def test_thinned_curve_differs_where_a_tie_holds_both_classes():
    # ID and OOD rise together over three ties, a straight run: sklearn drops its middle.
    id_scores, ood_scores = torch.tensor([3, 2, 1, 0]), torch.tensor([3, 2, 1, 0])
    first = detection_metrics(id_scores, ood_scores, tpr=0.5)
    corner = detection_metrics(id_scores, ood_scores, tpr=0.5, rule="corner")
    assert (first.fpr_at_tpr, corner.fpr_at_tpr) == (0.5, 1.0)


def test_odin_takes_the_mean_over_thresholds_around_the_rate():
    source = torch.Generator().manual_seed(0)
    id_scores = torch.randn(20_000, generator=source, dtype=torch.float64)
    ood_scores = 1 + torch.randn(5_000, generator=source, dtype=torch.float64)
    metrics = detection_metrics(id_scores, ood_scores, positive="id", rule="odin")
    # 0.9495 · 20,000 to 0.9505 · 20,000 accepted ID scores: 21 distinct scores, of which OOD ones lie in between.
    both = torch.cat((id_scores, ood_scores))
    accepted = torch.searchsorted(id_scores.sort().values, both, right=True)
    within = both[(accepted >= 18_990) & (accepted <= 19_010)]
    expected = np.mean([float((ood_scores <= threshold).double().mean()) for threshold in within])
    assert metrics.fpr95 == pytest.approx(expected, abs=1e-12)
    assert np.isnan(metrics.threshold)
    # Their grid of equally spaced values of a score weighs the same window by score instead.
    grid = torch.linspace(float(both.min()), float(both.max()), 100_000, dtype=torch.float64)
    accepted = torch.searchsorted(id_scores.sort().values, grid, right=True)
    near = grid[(accepted >= 18_990) & (accepted <= 19_010)]
    theirs = torch.searchsorted(ood_scores.sort().values, near, right=True).double().mean() / len(ood_scores)
    assert metrics.fpr95 == pytest.approx(float(theirs), abs=1e-3)


def test_odin_without_a_threshold_near_the_rate_is_an_error():
    with pytest.raises(ValueError, match=r"TPR in \[0.9495, 0.9505\], got none among 11 thresholds"):
        detection_metrics(torch.arange(9), torch.arange(8, 11), positive="id", rule="odin")


def test_floor_of_too_few_positives_is_an_error():
    with pytest.raises(ValueError, match='rule "floor" needs at least 2 positive scores, got 1'):
        detection_metrics(torch.arange(9), torch.tensor([1]), rule="floor")


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_trapezoid_is_sklearns_area(positive):
    for seed in range(10):
        scores = coarse_scores(seed)
        precision, recall, _ = precision_recall_curve(*labels_of(*oriented(*scores, positive)))
        metrics = detection_metrics(*scores, positive=positive, aupr_kind="trapezoid")
        assert metrics.aupr == pytest.approx(auc(recall, precision), abs=1e-12)


@pytest.mark.parametrize("positive", ["ood", "id"])
def test_balanced_area_does_not_depend_on_the_counts(positive):
    id_scores, ood_scores = coarse_scores(0)
    metrics = detection_metrics(id_scores, ood_scores, positive=positive, aupr_kind="balanced")
    repeated = detection_metrics(id_scores, ood_scores.repeat(7), positive=positive, aupr_kind="balanced")
    assert metrics.aupr == pytest.approx(repeated.aupr, abs=1e-12)
    # ODIN's loop over a grid of thresholds, loosest first, each step at its stricter end.
    positives, negatives = oriented(id_scores, ood_scores, positive)
    total, last, precision = 0.0, 1.0, 0.0
    for threshold in np.arange(-6, 6, 0.01) + 0.005:
        recall, fpr = np.mean(positives >= threshold), np.mean(negatives >= threshold)
        if recall + fpr > 0:
            precision = recall / (recall + fpr)
            total += (last - recall) * precision
            last = recall
    assert metrics.aupr == pytest.approx(total + last * precision, abs=1e-12)


def test_rules_hold_in_a_batch_and_for_big_integers():
    id_scores, ood_scores = zip(*(coarse_scores(seed) for seed in range(3)), strict=True)
    batch = detection_metrics(torch.stack(id_scores), torch.stack(ood_scores), rule="quantile", aupr_kind="trapezoid")
    for position, scores in enumerate(zip(id_scores, ood_scores, strict=True)):
        single = detection_metrics(*scores, rule="quantile", aupr_kind="trapezoid")
        assert batch.fpr_at_tpr[position] == single.fpr_at_tpr
        assert batch.aupr_in[position] == single.aupr_in
        assert batch.threshold[position] == single.threshold
    # Ranks stand in for such integers, but a quantile is of the scores: 1.2 here, which flags the ID score 2.
    integers = detection_metrics(torch.tensor([0, 2]), torch.tensor([1, 5]), rule="quantile")
    assert (integers.threshold, integers.fpr95) == (pytest.approx(1.2), 0.5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_presets_read_the_numbers_as_their_papers_do(name):
    source = torch.Generator().manual_seed(1)
    id_scores = torch.randn(10_000, generator=source, dtype=torch.float64)
    ood_scores = 1.5 + torch.randn(2_000, generator=source, dtype=torch.float64)
    result = evaluate_protocol(id_scores, {"a": ood_scores}, protocol=name, generator=source)["a"]
    statement = {
        # 2,000 are a fifth of 10,000: every draw is the whole set.
        "li2020": ("ood", first_threshold, 5),
        "oe2019": ("ood", nearest_recall, 10),
        "energy2020": ("id", nearest_recall, 10),
        "openood_v15": ("ood", thinned_curve, 1),
        "wu2023": ("ood", first_threshold, 1),
        "odin": ("id", first_threshold, 1),
    }
    positive, rule, repeats = statement[name]
    expected = rule(*oriented(id_scores, ood_scores, positive), 0.95)
    assert result.fpr95.mean == pytest.approx(expected, abs=1e-3 if name == "odin" else 1e-12)
    assert (result.protocol, result.positive, result.repeats) == (name, positive, repeats)
    assert (result.id_count, result.ood_count) == (10_000, 2_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "last"}, 'rule must be "first", "corner", "nearest", "quantile", "floor" or "odin", got \'last\''),
        ({"aupr_kind": "AP"}, 'aupr_kind must be "average_precision", "trapezoid" or "balanced", got \'AP\''),
    ],
)
def test_unknown_rules_are_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        detection_metrics(torch.ones(2), torch.ones(2), **arguments)
