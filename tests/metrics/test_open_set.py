"""OSCR and AUTC against their definitions."""

from math import inf, isnan

import pytest
import torch

from fastood.metrics import auroc, autc, oscr


def scores_with_ties():
    source = torch.Generator().manual_seed(0)
    id_scores = torch.randn(80, generator=source, dtype=torch.float64).round(decimals=1)
    ood_scores = (1 + torch.randn(50, generator=source, dtype=torch.float64)).round(decimals=1)
    return id_scores, ood_scores, torch.rand(80, generator=source) < 0.7


def test_oscr_is_the_area_under_its_curve():
    id_scores, ood_scores, correct = scores_with_ties()
    thresholds = torch.cat((id_scores, ood_scores)).unique()
    accepted_correct = torch.stack([(correct & (id_scores <= t)).double().mean() for t in thresholds])
    accepted_ood = torch.stack([(ood_scores <= t).double().mean() for t in thresholds])
    zero = accepted_ood.new_zeros(1)
    area = torch.trapezoid(torch.cat((zero, accepted_correct)), torch.cat((zero, accepted_ood)))
    assert oscr(id_scores, ood_scores, correct=correct) == pytest.approx(float(area), abs=1e-12)


def test_oscr_of_a_perfect_and_of_a_useless_classifier():
    id_scores, ood_scores, correct = scores_with_ties()
    assert oscr(id_scores, ood_scores, correct=torch.ones_like(correct)) == auroc(id_scores, ood_scores)
    assert oscr(id_scores, ood_scores, correct=torch.zeros_like(correct)) == 0


def test_autc_is_the_area_under_the_mean_of_both_error_rates():
    id_scores, ood_scores, _ = scores_with_ties()
    both = torch.cat((id_scores, ood_scores))
    low, width = both.min(), both.max() - both.min()
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * width + low
    fpr = 1 - torch.searchsorted(id_scores.sort().values, tau) / len(id_scores)
    fnr = torch.searchsorted(ood_scores.sort().values, tau) / len(ood_scores)
    assert autc(id_scores, ood_scores) == pytest.approx(float((fpr + fnr).mean()) / 2, abs=1e-5)
    assert autc(torch.tensor([0, 0]), torch.tensor([1, 1])) == 0
    assert autc(torch.tensor([1, 1]), torch.tensor([0, 0])) == 1


def test_autc_of_scores_without_a_scale_is_nan():
    with pytest.warns(UserWarning, match="autc is NaN: all scores are equal"):
        assert isnan(autc(torch.ones(3), torch.ones(2)))
    with pytest.warns(UserWarning, match="autc is NaN: an infinite score"):
        assert isnan(autc(torch.tensor([0.0, -inf]), torch.ones(2)))


def test_autc_of_scores_far_apart() -> None:
    far = torch.tensor([1.7e308, 1.7e308, 1.7e308], dtype=torch.float64)
    assert autc(-far, far) == 0
    assert autc(far, -far) == 1
    assert autc(torch.zeros(1, dtype=torch.float64), torch.tensor([5e-324], dtype=torch.float64)) == 0


def test_bad_arguments_are_errors():
    with pytest.raises(TypeError, match=r"correct must be bool, got torch.int64"):
        oscr(torch.ones(2), torch.ones(2), correct=torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"correct must have shape \(2,\) as id_scores, got \(3,\)"):
        oscr(torch.ones(2), torch.ones(2), correct=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="ood_scores is empty"):
        autc(torch.ones(2), torch.ones(0))
    with pytest.raises(TypeError, match="one dtype"):
        autc(torch.ones(2), torch.ones(2).double())
