"""Risk and coverage against their definition, ties, mixes, and the AURC of Geifman et al. 2019."""

from math import inf

import pytest
import torch
from torch import Tensor

from fastood.metrics import risk_coverage_curve, roc_curve


def tied_scores() -> tuple[Tensor, Tensor, list[Tensor]]:
    source = torch.Generator().manual_seed(0)
    id_scores = torch.randn(80, generator=source).round(decimals=1)
    ood = [(1 + torch.randn(count, generator=source)).round(decimals=1) for count in (50, 20)]
    return id_scores, torch.rand(80, generator=source) < 0.7, ood


@pytest.mark.parametrize("ratio", [None, 1.0, 0.2])
def test_is_its_definition_at_every_threshold(ratio: float | None):
    id_scores, correct, ood = tied_scores()
    curve = risk_coverage_curve(id_scores, correct=correct, ood_scores=ood, ood_per_id=ratio)
    assert torch.equal(curve.thresholds, torch.cat([id_scores, *ood]).double().unique())
    each = [1.0, 1.0] if ratio is None else [ratio * 80 / (2 * 50), ratio * 80 / (2 * 20)]
    for i, threshold in enumerate(curve.thresholds.float()):
        accepted = id_scores <= threshold
        outliers = sum(weight * int((scores <= threshold).sum()) for weight, scores in zip(each, ood, strict=True))
        total = int(accepted.sum()) + outliers
        assert curve.coverage[i].item() == pytest.approx(int(accepted.sum()) / 80)
        assert curve.risk[i].item() == pytest.approx((int((accepted & ~correct).sum()) + outliers) / total)
        assert curve.ood_accepted[i].item() == pytest.approx(outliers / (each[0] * 50 + each[1] * 20))


def test_without_outliers_the_area_is_the_mean_selective_risk():
    """Geifman et al. 2019: the mean over n of the error among the n most confident images."""
    source = torch.Generator().manual_seed(1)
    scores, correct = torch.randperm(50, generator=source), torch.rand(50, generator=source) < 0.6
    curve = risk_coverage_curve(scores, correct=correct)
    wrong = (~correct)[scores.argsort()].double()
    want = (wrong.cumsum(0) / torch.arange(1, 51)).mean()
    assert curve.aurc == pytest.approx(float(want))
    assert curve.risk[-1].item() == pytest.approx(float((~correct).double().mean()))
    assert not curve.ood_accepted.any()


def test_a_perfect_detector_accepts_no_outlier_before_the_last_image():
    correct = torch.ones(4, dtype=torch.bool)
    curve = risk_coverage_curve(torch.arange(4.0), correct=correct, ood_scores=[torch.tensor([9.0, inf])])
    assert curve.aurc == 0
    assert curve.risk.tolist() == [0, 0, 0, 0, pytest.approx(0.2), pytest.approx(1 / 3)]
    useless = risk_coverage_curve(torch.zeros(4), correct=correct, ood_scores=[torch.zeros(4)])
    assert (useless.aurc, useless.coverage.tolist()) == (0.5, [1.0])


def test_rejected_outliers_are_the_true_positives_of_the_roc():
    id_scores, correct, ood = tied_scores()
    curve = risk_coverage_curve(id_scores, correct=correct, ood_scores=ood[:1])
    roc = roc_curve(id_scores, ood[0])
    # Flagged at a threshold is what is not accepted just below it.
    assert torch.allclose(1 - curve.ood_accepted[:-1].flip(0), roc.tpr[1:-1])
    assert torch.allclose(1 - curve.coverage[:-1].flip(0), roc.fpr[1:-1])


def test_errors_name_the_argument():
    scores, correct = torch.ones(2), torch.ones(2, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"correct must be bool, got torch\.int64"):
        risk_coverage_curve(scores, correct=correct.long())
    with pytest.raises(ValueError, match=r"correct must have shape \(2,\) as id_scores, got \(3,\)"):
        risk_coverage_curve(scores, correct=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"ood_scores\[1\] is empty"):
        risk_coverage_curve(scores, correct=correct, ood_scores=[scores, torch.ones(0)])
    with pytest.raises(TypeError, match=r"id_scores and ood_scores\[0\] must share one dtype"):
        risk_coverage_curve(scores, correct=correct, ood_scores=[scores.double()])
    with pytest.raises(ValueError, match="ood_per_id must be a finite number above 0, got 0"):
        risk_coverage_curve(scores, correct=correct, ood_scores=[scores], ood_per_id=0)
    with pytest.raises(ValueError, match="ood_per_id must be None without ood_scores, got 1"):
        risk_coverage_curve(scores, correct=correct, ood_per_id=1)
