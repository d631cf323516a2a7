"""Error bars against brute force, scipy and each other."""

from math import erfc, nan, sqrt

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastood.metrics import (
    bootstrap_differences,
    bootstrap_metrics,
    delong_estimate,
    delong_test,
    detection_metrics,
    jackknife,
    pr_curve,
)
from fastood.metrics.threshold_counts import count_at_thresholds
from fastood.ops.reference.detection_metrics import resampling_counts

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr_at_tpr", "detection_error")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_scores(id_count=60, ood_count=40, *, shift=1.0, seed=0):
    source = generator(seed)
    id_scores = torch.randn(id_count, generator=source, dtype=torch.float64)
    return id_scores.round(decimals=1), (shift + torch.randn(ood_count, generator=source).double()).round(decimals=1)


LEFT_OUT = {
    "auroc": (lambda counts, tpr: jackknife.auroc_without(counts), "ood"),
    "aupr_out": (lambda counts, tpr: jackknife.average_precision_without(counts), "ood"),
    "aupr_in": (lambda counts, tpr: jackknife.average_precision_without(counts), "id"),
    "fpr_at_tpr": (jackknife.fpr_without, "ood"),
    "fpr_at_tpr of id": (jackknife.fpr_without, "id"),
    "detection_error": (lambda counts, tpr: jackknife.detection_error_without(counts), "ood"),
}


def without(scores, position):
    return torch.cat((scores[:position], scores[position + 1 :]))


def assert_leaves_out(name, id_scores, ood_scores, tpr):
    function, positive = LEFT_OUT[name]
    field = name.removesuffix(" of id")
    counts = count_at_thresholds(id_scores, ood_scores, positive=positive)
    found = function(counts, tpr)
    sets = {"id": id_scores, "ood": ood_scores}
    for values, own in zip(found, ("ood", "id") if positive == "ood" else ("id", "ood"), strict=True):
        for position, score in enumerate(sets[own]):
            left = {**sets, own: without(sets[own], position)}
            expected = detection_metrics(left["id"], left["ood"], positive=positive, tpr=tpr)
            got = values[(counts.thresholds == score).nonzero().item()]
            assert float(got) == pytest.approx(getattr(expected, field), abs=1e-12), (own, position)


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("tpr", [0.95, 0.5])
def test_left_out_values_are_those_of_the_others(name, tpr):
    assert_leaves_out(name, *normal_scores(23, 21), tpr)


few_scores = st.lists(st.integers(0, 4), min_size=2, max_size=7)


@pytest.mark.parametrize("name", LEFT_OUT)
@settings(max_examples=40, deadline=None)
@given(id_scores=few_scores, ood_scores=few_scores, percent=st.integers(1, 100))
def test_left_out_values_of_anything(name, id_scores, ood_scores, percent):
    assert_leaves_out(name, torch.tensor(id_scores), torch.tensor(ood_scores), percent / 100)


def replicates_one_by_one(id_scores, ood_scores, seed, replicates, scheme, **settings):
    """Every replicate written out as scores."""
    counts = [
        resampling_counts(len(scores), seed=seed, stream=stream, replicates=replicates, scheme=scheme)
        for stream, scores in enumerate((id_scores, ood_scores))
    ]
    drawn = [
        detection_metrics(id_scores.repeat_interleave(ids), ood_scores.repeat_interleave(oods), **settings)
        for ids, oods in zip(*counts, strict=True)
    ]
    return {name: np.array([getattr(metrics, name) for metrics in drawn]) for name in METRICS}


def seed_of(source):
    return int(torch.randint(2**63 - 1, (), generator=source))


@pytest.mark.parametrize("resampling", ["multinomial", "poisson"])
@pytest.mark.parametrize("positive", ["ood", "id"])
def test_percentile_interval_is_that_of_resampled_images(resampling, positive):
    id_scores, ood_scores = normal_scores()
    settings = {"tpr": 0.9, "positive": positive}
    found = bootstrap_metrics(
        id_scores, ood_scores, generator=generator(), replicates=50, level=0.8, resampling=resampling, **settings
    )
    drawn = replicates_one_by_one(id_scores, ood_scores, seed_of(generator()), 50, resampling, **settings)
    estimates = detection_metrics(id_scores, ood_scores, **settings)
    for name in METRICS:
        interval = getattr(found, name)
        assert interval.estimate == pytest.approx(getattr(estimates, name), abs=1e-12)
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(drawn[name], [0.1, 0.9])), abs=1e-12)
        assert interval.std == pytest.approx(np.std(drawn[name], ddof=1), abs=1e-12)
    assert found.aupr == (found.aupr_out if positive == "ood" else found.aupr_in)
    assert (found.level, found.method, found.resampling, found.replicates) == (0.8, "percentile", resampling, 50)
    assert (found.tpr, found.positive, found.id_count, found.ood_count) == (0.9, positive, 60, 40)


@pytest.mark.parametrize("name", ["auroc", "aupr_in", "aupr_out", "detection_error", "fpr_at_tpr"])
def test_bca_interval_is_scipys(name):
    id_scores, ood_scores = normal_scores(40, 30, shift=1.5)

    def statistic(ids, oods, axis=-1):
        batch = detection_metrics(torch.from_numpy(np.array(ids)), torch.from_numpy(np.array(oods)))
        return np.asarray(getattr(batch, name))

    drawn = replicates_one_by_one(id_scores, ood_scores, seed_of(generator()), 200, "multinomial")[name]
    theirs = scipy.stats.bootstrap(
        (id_scores.numpy(), ood_scores.numpy()),
        statistic,
        n_resamples=0,
        bootstrap_result=type("Drawn", (), {"bootstrap_distribution": drawn})(),
        vectorized=True,
        method="BCa",
        confidence_level=0.9,
    ).confidence_interval
    ours = bootstrap_metrics(id_scores, ood_scores, generator=generator(), replicates=200, level=0.9, method="bca")
    interval = getattr(ours, name)
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_intervals_cover_what_they_say():
    # P(OOD > ID) of two normals one apart is Φ(1 / √2).
    truth = erfc(-0.5) / 2
    covered = {"percentile": 0, "bca": 0}
    for seed in range(100):
        source = generator(seed)
        id_scores, ood_scores = torch.randn(60, generator=source), 1 + torch.randn(50, generator=source)
        for method in covered:
            found = bootstrap_metrics(
                id_scores, ood_scores, generator=generator(seed), replicates=100, level=0.9, method=method
            ).auroc
            covered[method] += found.low <= truth <= found.high
    # 90 of 100 expected, standard deviation 3; replicates are few, so a little less is.
    assert all(80 <= count <= 97 for count in covered.values()), covered


@pytest.mark.parametrize("ood_per_id", [0.2, 3.0])
def test_aupr_at_another_ratio_is_that_of_the_curve(ood_per_id):
    id_scores, ood_scores = normal_scores()
    found = bootstrap_metrics(id_scores, ood_scores, generator=generator(), replicates=100, ood_per_id=ood_per_id)
    plain = bootstrap_metrics(id_scores, ood_scores, generator=generator(), replicates=100)
    for name in ("auroc", "fpr_at_tpr", "detection_error"):
        assert getattr(found, name) == getattr(plain, name)
    for positive, interval in (("ood", found.aupr_out), ("id", found.aupr_in)):
        curve = pr_curve(id_scores, ood_scores, positive=positive, ood_per_id=ood_per_id)
        assert interval.estimate == pytest.approx(float((curve.recall.diff() * curve.precision[1:]).sum()), abs=1e-12)
        assert interval.low < interval.estimate < interval.high
    assert (found.aupr_out.high < plain.aupr_out.high) == (ood_per_id < 40 / 60)


def test_separated_scores_have_no_spread():
    for method in ("percentile", "bca"):
        found = bootstrap_metrics(torch.arange(9), 20 + torch.arange(5), generator=generator(), method=method)
        assert (found.auroc.low, found.auroc.high, found.auroc.std) == (1, 1, 0)
        assert (found.fpr_at_tpr.low, found.fpr_at_tpr.high) == (0, 0)


def test_replicates_depend_on_the_generator_only():
    scores = normal_scores()
    first = bootstrap_metrics(*scores, generator=generator())
    torch.rand(3)
    assert bootstrap_metrics(*scores, generator=generator()) == first
    assert bootstrap_metrics(*scores, generator=generator(1)) != first
    source = generator()
    bootstrap_metrics(*scores, generator=source)
    assert bootstrap_metrics(*scores, generator=source) != first


def test_delong_agrees_with_its_definition_and_with_the_bootstrap():
    id_scores, ood_scores = normal_scores(300, 200)
    below = (id_scores[:, None] < ood_scores).double() + (id_scores[:, None] == ood_scores).double() / 2
    variance = below.mean(1).var() / 300 + below.mean(0).var() / 200
    estimate = delong_estimate(id_scores, ood_scores)
    assert estimate.auroc == pytest.approx(detection_metrics(id_scores, ood_scores).auroc, abs=1e-12)
    assert estimate.std == pytest.approx(sqrt(variance), abs=1e-12)
    found = bootstrap_metrics(id_scores, ood_scores, generator=generator(), replicates=1000)
    # The standard deviation of 1,000 replicates is known to 1 / √2000.
    assert found.auroc.std == pytest.approx(estimate.std, rel=0.08)


def paired_scores(noise, seed=0):
    id_scores, ood_scores = normal_scores(200, 150, seed=seed)
    source = generator(seed + 1)
    noisy = [s + noise * torch.randn(len(s), generator=source, dtype=torch.float64) for s in (id_scores, ood_scores)]
    return id_scores, ood_scores, *noisy


def test_differences_are_those_of_the_same_images():
    scores = paired_scores(1.0)
    found = bootstrap_differences(*scores, generator=generator(), replicates=60, level=0.8)
    seed = seed_of(generator())
    first = replicates_one_by_one(*scores[:2], seed, 60, "multinomial")
    second = replicates_one_by_one(*scores[2:], seed, 60, "multinomial")
    for name in METRICS:
        interval, drawn = getattr(found, name), first[name] - second[name]
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(drawn, [0.1, 0.9])), abs=1e-12)
        rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
        assert interval.p_value == min(1, 2 * (1 + rarer) / 61)
    assert found.auroc.estimate == pytest.approx(delong_test(*scores).difference, abs=1e-12)


def test_pairing_finds_what_separate_intervals_do_not():
    scores = paired_scores(0.3)
    separate = [bootstrap_metrics(*part, generator=generator()).auroc for part in (scores[:2], scores[2:])]
    paired = bootstrap_differences(*scores, generator=generator()).auroc
    assert paired.std < separate[0].std / 2
    assert paired.std == pytest.approx(delong_test(*scores).std, rel=0.08)


def test_p_values_agree_with_delong_and_are_fair():
    low = 0
    for seed in range(60):
        id_scores, ood_scores = normal_scores(80, 80, seed=seed)
        source = generator(1000 + seed)
        # Two detectors that are equally good: the same images under independent noise.
        detectors = [s + torch.randn(80, generator=source).double() for _ in range(2) for s in (id_scores, ood_scores)]
        p_value = bootstrap_differences(*detectors, generator=generator(seed), replicates=200).auroc.p_value
        assert p_value == pytest.approx(delong_test(*detectors).p_value, abs=0.25)
        low += p_value <= 0.1
    assert 1 <= low <= 14  # 6 expected, standard deviation 2.3


def test_a_detector_does_not_differ_from_itself_under_a_monotone_map():
    id_scores, ood_scores = normal_scores()
    others = [(scores**3).float() for scores in (id_scores, ood_scores)]
    found = bootstrap_differences(id_scores, ood_scores, *others, generator=generator())
    for name in METRICS:
        interval = getattr(found, name)
        assert (interval.estimate, interval.low, interval.high, interval.p_value) == (0, 0, 0, 1)
    assert delong_test(id_scores, ood_scores, *others).p_value == 1


def test_a_certain_difference_without_spread():
    id_scores, ood_scores = torch.arange(9), 20 + torch.arange(5)
    assert delong_test(id_scores, ood_scores, -id_scores, -ood_scores).p_value == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"replicates": 1}, "replicates must be at least 2, got 1"),
        ({"level": 1.0}, r"level must lie in \(0, 1\), got 1.0"),
        ({"level": nan}, r"level must lie in \(0, 1\), got nan"),
        ({"method": "normal"}, 'method must be "percentile" or "bca"'),
        ({"resampling": "subset"}, 'resampling must be "multinomial" or "poisson"'),
        ({"tpr": 0.0}, "tpr must lie in"),
        ({"positive": "OOD"}, 'positive must be "ood" or "id"'),
        ({"ood_per_id": 0.0}, "ood_per_id must be a finite number above 0, or None, got 0.0"),
        ({"ood_per_id": 0.2, "method": "bca"}, 'ood_per_id must be None for method "bca"'),
    ],
)
def test_bad_settings_are_errors_that_draw_nothing(arguments, words):
    source = generator()
    before = source.get_state()
    with pytest.raises(ValueError, match=words):
        bootstrap_metrics(*normal_scores(), generator=source, **arguments)
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("bad", ["empty", "nan", "other images"])
def test_bad_scores_are_errors_that_draw_nothing(bad):
    id_scores, ood_scores = normal_scores()
    wrong = {"empty": ood_scores[:0], "nan": torch.full((40,), nan).double(), "other images": ood_scores[1:]}[bad]
    words = {"empty": "is empty", "nan": "NaN", "other images": "other_ood_scores must be of the same images"}[bad]
    source = generator()
    before = source.get_state()
    if bad != "other images":
        with pytest.raises(ValueError, match=words):
            bootstrap_metrics(id_scores, wrong, generator=source)
    else:
        with pytest.raises(ValueError, match=words):
            delong_test(id_scores, ood_scores, id_scores, wrong)
    with pytest.raises(ValueError, match=words if bad == "other images" else "same images|NaN"):
        bootstrap_differences(id_scores, ood_scores, id_scores, wrong, generator=source)
    assert torch.equal(source.get_state(), before)


def test_too_few_scores_are_errors():
    with pytest.raises(
        ValueError, match='"bca" leaves each score out once and needs 2 of each class, got 1 ID and 2 OOD'
    ):
        bootstrap_metrics(torch.ones(1), torch.ones(2), generator=generator(), method="bca")
    with pytest.raises(ValueError, match="ood_scores must hold at least 2 scores for a variance, got 1"):
        delong_estimate(torch.ones(3), torch.ones(1))
    with pytest.raises(ValueError, match=r"drew no image of a class in \d+ of 100 replicates: 2 ID and 1 OOD"):
        bootstrap_metrics(torch.ones(2), torch.ones(1), generator=generator(), replicates=100, resampling="poisson")
