"""Thresholds: what they flag of the scores at hand, and what they promise of others."""

from math import inf, nan

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastood.metrics import ScoreCalibration, detection_metrics, threshold_at_tpr


@given(
    scores=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    percent=st.integers(1, 100),
    positive=st.sampled_from(["ood", "id"]),
)
def test_threshold_at_tpr_is_that_of_the_metrics(scores, percent, positive):
    scores, others = torch.tensor(scores), torch.arange(10)
    pair = (scores, others) if positive == "id" else (others, scores)
    expected = detection_metrics(*pair, tpr=percent / 100, positive=positive).threshold
    assert threshold_at_tpr(scores, tpr=percent / 100, positive=positive) == expected


@given(held_out=st.lists(st.integers(0, 9), min_size=1, max_size=30), score=st.integers(-1, 10))
def test_p_values_count_held_out_scores(held_out, score):
    calibration = ScoreCalibration(torch.tensor(held_out))
    expected = (1 + sum(other >= score for other in held_out)) / (len(held_out) + 1)
    assert calibration.p_values(torch.tensor([[score]])).tolist() == [[expected]]


@given(held_out=st.lists(st.integers(0, 9), min_size=1, max_size=60), percent=st.integers(1, 99))
def test_flagged_above_the_threshold_is_flagged_by_p_value(held_out, percent):
    calibration = ScoreCalibration(torch.tensor(held_out))
    scores = torch.arange(-1, 11)
    by_p_value = calibration.p_values(scores) <= percent / 100 + 1e-12
    assert torch.equal(scores > calibration.threshold(percent / 100), by_p_value)


def test_p_values_keep_their_promise_for_every_count():
    source = torch.Generator().manual_seed(0)
    # All N + 1 ranks of the new score are equally likely, so the promise is exact at multiples of 1 / (N + 1).
    for count in (9, 19):
        draws = torch.randn(4000, count + 1, generator=source)
        p_values = torch.stack([ScoreCalibration(row[1:]).p_values(row[:1]) for row in draws])
        for alpha in (0.1, 0.2, 0.5):
            share = float((p_values <= alpha + 1e-12).double().mean())
            assert share == pytest.approx(alpha, abs=4 * (alpha * (1 - alpha) / 4000) ** 0.5)


@pytest.mark.parametrize(("count", "fpr"), [(100, 0.05), (59, 0.05), (58, 0.05), (1000, 0.01), (5000, 0.2)])
def test_confident_threshold_is_the_tolerance_limit(count, fpr):
    threshold = ScoreCalibration(torch.arange(count)).threshold(fpr, confidence=0.95)
    # The true FPR beyond the k-th largest of N continuous scores is Beta(k, N + 1 - k).
    exceeds = [scipy.stats.beta.sf(fpr, k, count + 1 - k) for k in range(1, count)]
    rank = sum(chance <= 0.05 for chance in exceeds)
    assert threshold == (inf if rank == 0 else count - rank)


def test_too_few_held_out_scores_flag_nothing():
    assert ScoreCalibration(torch.arange(18)).threshold(0.05) == inf
    assert ScoreCalibration(torch.arange(19)).threshold(0.05) == 18


def test_a_calibration_survives_its_file(tmp_path):
    calibration = ScoreCalibration(torch.tensor([0.3, 0.1, -inf, 0.2]))
    calibration.save(tmp_path / "calibration.pt")
    loaded = ScoreCalibration.load(tmp_path / "calibration.pt")
    assert torch.equal(loaded.id_scores, calibration.id_scores)
    assert loaded.id_scores.tolist() == sorted(loaded.id_scores.tolist())
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt was not written by ScoreCalibration.save"):
        ScoreCalibration.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ScoreCalibration(torch.tensor([])), "id_scores is empty"),
        (lambda: ScoreCalibration(torch.tensor([nan])), "id_scores holds 1 NaN"),
        (lambda: ScoreCalibration(torch.ones(3)).p_values(torch.tensor([nan])), "scores must not hold NaN"),
        (lambda: ScoreCalibration(torch.ones(3)).threshold(1.0), r"fpr must lie in \(0, 1\), got 1.0"),
        (lambda: ScoreCalibration(torch.ones(3)).threshold(0.1, confidence=1), r"confidence must lie in \(0, 1\)"),
        (lambda: threshold_at_tpr(torch.ones(3), tpr=0), "tpr must lie in"),
        (lambda: threshold_at_tpr(torch.ones(0)), "scores is empty"),
        (lambda: threshold_at_tpr(torch.ones(3), positive="in"), "positive must be"),
    ],
)
def test_bad_arguments_are_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
