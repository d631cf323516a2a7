"""Warnings: what is wrong is said, and what is well is not."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from fastood.evaluate.cli import describe_difference
from fastood.train.results.run_warnings import run_warnings
from fastood.train.results.sanity_checks import (
    Behaviour,
    accuracy_at_chance,
    binomial_tail,
    chance_rate,
    constant_outputs,
    far_below_baseline,
    merged,
    ranks_backwards,
    spread,
    tied_scores,
    unmoved_loss,
)
from fastood.train.results.scoring import ArmScores


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 5, 0.5), (3, 5, 0.2), (60, 481, 0.125), (9_100, 10_000, 0.9), (5, 5, 0.1)]
)
def test_the_tail_is_the_binomial_one(k: int, n: int, p: float):
    assert binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-9)


@pytest.mark.parametrize(
    ("correct", "total", "chance", "warns"),
    [
        (61, 481, 1 / 8, True),
        (45, 481, 1 / 8, True),
        (80, 481, 1 / 8, False),
        (478, 481, 1 / 8, False),
        (950, 1000, 0.95, True),
        (975, 1000, 0.95, False),
        (6, 6, 0.5, False),
        (4, 6, 0.5, True),
        (0, 100, 0.1, True),
        (59, 59, None, False),
    ],
)
def test_accuracy_is_at_chance_within_its_noise(correct: int, total: int, chance: float | None, warns: bool):
    said = accuracy_at_chance(correct, total, chance)
    assert (said is not None) == warns
    if said is not None:
        assert f"accuracy {100 * correct / total:.2f} %" in said


def test_chance_is_a_guess_or_the_most_frequent_class():
    assert chance_rate(torch.tensor([0, 1, 2, 3]), 4) == 0.25
    assert chance_rate(torch.tensor([0, 0, 0, 1]), 4) == 0.75
    assert chance_rate(torch.tensor([0, 0]), 1) is None


@pytest.mark.parametrize(
    ("features", "logits", "answers", "words"),
    [
        (0.0, 0.3, 5, "features are the same for every image"),
        (1e-7, 1e-6, 1, "features and logits are the same for every image"),
        (0.4, 0.5, 1, "every test image gets the same class"),
        (0.4, None, 5, None),
        (0.01, 0.02, 2, None),
    ],
)
def test_constant_outputs(features: float, logits: float | None, answers: int, words: str | None):
    said = constant_outputs(Behaviour(chance=0.1, answers=answers, logit_spread=logits, feature_spread=features))
    assert said is None if words is None else said is not None and words in said


def test_a_network_of_one_class_may_give_one_answer():
    assert constant_outputs(Behaviour(chance=None, answers=1, logit_spread=None, feature_spread=0.3)) is None


def test_the_spread_is_that_across_images():
    rows = torch.tensor([[3.0, 10.0]]).expand(50, 2)
    assert spread(rows) == 0.0
    assert spread(torch.zeros(50, 2)) == 0.0
    assert spread(rows + torch.tensor([1e-6, 0.0]) * torch.arange(50.0)[:, None]) < 1e-5
    assert spread(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) + 100) == pytest.approx(0.01, rel=0.3)
    assert spread(torch.ones(1, 2)) is None


def test_ties():
    assert tied_scores(torch.ones(90), [torch.ones(10)]) is not None
    assert "95 of 100" in (tied_scores(torch.ones(90), [torch.tensor([1.0] * 5 + [2.0, 3.0, 4.0, 5.0, 6.0])]) or "")
    # Half of the scores saturated is a weakness, not a run gone wrong.
    assert tied_scores(torch.ones(50), [torch.arange(50.0)]) is None
    assert tied_scores(torch.arange(90.0), [torch.arange(10.0)]) is None


@pytest.mark.parametrize(
    ("losses", "warns"),
    [
        ([2.3035, 2.3030, 2.3027], True),
        ([math.log(8)] * 50, True),
        ([0.0, 0.0], True),
        ([2.30, 1.90, 1.5], False),
        # A network that learnt and then died.
        ([2.07, 1.73, 2.42, 2.08], True),
        ([0.5, 0.4, 3.0], True),
        ([-1.0, -1.0], True),
        ([-1.0, -2.0], False),
        ([0.2, 0.9, 0.1], False),
        ([2.3], False),
        ([], False),
    ],
)
def test_a_loss_that_never_moved(losses: list[float], warns: bool):
    assert (unmoved_loss("pretrain", losses) is not None) == warns


@pytest.mark.parametrize(
    ("auroc", "high", "ood_count", "warns"),
    [
        (0.26, 0.29, 200, True),
        (0.45, 0.48, 1000, True),
        (0.45, 0.51, 1000, False),
        (0.5, 0.5, 200, False),
        (0.99, 1.0, 200, False),
        # The bootstrap of two images knows nothing: a pair at random is as low every fifth time.
        (0.30, 0.35, 2, False),
        (0.0, 0.0, 200, True),
    ],
)
def test_ranking_backwards(auroc: float, high: float, ood_count: int, warns: bool):
    assert (ranks_backwards("svhn", auroc, high, id_count=481, ood_count=ood_count) is not None) == warns


def test_far_below_the_baseline_is_five_points_and_more_than_noise():
    baseline = torch.ones(1000, dtype=torch.bool)
    for wrong, warns in ((200, True), (50, True), (49, False), (0, False)):
        correct = baseline.clone()
        correct[:wrong] = False
        said = far_below_baseline(correct, baseline, "OE")
        assert (said is not None) == warns
        if said is not None:
            assert f"accuracy {100 - wrong / 10:.2f} % is far below the 100.00 % of OE" in said
    few = torch.ones(20, dtype=torch.bool)
    assert far_below_baseline(~few & (torch.arange(20) < 0) | (torch.arange(20) > 0), few, "OE") is None
    assert far_below_baseline(baseline, baseline[:10], "OE") is None


def test_shared_warnings_are_one_line():
    shared = [{"arm": arm, "kind": "loss-never-moved", "message": "it never moved"} for arm in ("a", "b", "c")]
    labels = {"a": "None, γ = 0", "b": "Full", "c": "OE"}
    assert merged(shared, labels) == ["None, γ = 0; Full; OE: it never moved"]
    assert merged([], labels) == []


def make_run(*, right: float, separation: float, losses: list[float], spread_of: float = 0.4):
    """A method of two arms on one network, its metrics, scores and curves."""
    generator = torch.Generator().manual_seed(0)
    correct = torch.arange(400) < 400 * right
    behaviour = Behaviour(chance=0.125, answers=8, logit_spread=spread_of, feature_spread=spread_of)
    scores, metrics = {}, {"arms": {}}
    for arm in ("plain", "oe"):
        id_scores, ood = torch.randn(400, generator=generator), torch.randn(300, generator=generator) + separation
        auroc = float((ood[:, None] > id_scores).double().mean())
        scores[arm] = ArmScores(
            label=arm, correct=correct, id_scores=id_scores, ood_scores={"svhn": ood}, behaviour=behaviour
        )
        interval = {"estimate": auroc, "low": auroc - 0.03, "high": auroc + 0.03}
        metrics["arms"][arm] = {
            "label": arm.upper(),
            "ood": {"svhn": {"interval": {"auroc": interval}}},
            "mean": {"auroc": auroc},
        }
    stages = (
        SimpleNamespace(name="pretrain", start_from=None),
        SimpleNamespace(name="tune", start_from="pretrain"),
    )
    arms = tuple(SimpleNamespace(name=arm, stage="tune") for arm in scores)
    method = SimpleNamespace(stages=stages, arms=arms, baseline="plain")
    curves = {
        "pretrain": [{"epoch": i, "loss": loss} for i, loss in enumerate(losses, 1)],
        "tune": [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.1}],
    }
    return method, metrics, scores, curves


def test_a_run_that_is_well_has_no_warning():
    assert run_warnings(*make_run(right=0.99, separation=2.0, losses=[2.1, 0.4, 0.1])) == []


def test_a_run_that_has_learnt_nothing_says_so_of_every_arm():
    found = run_warnings(*make_run(right=0.125, separation=-1.0, losses=[2.08, 2.079], spread_of=0.0))
    for arm in ("plain", "oe"):
        kinds = [warning["kind"] for warning in found if warning["arm"] == arm]
        assert kinds == ["loss-never-moved", "accuracy-at-chance", "constant-outputs", "ranks-backwards"]
    assert all(set(warning) == {"arm", "kind", "message"} for warning in found)
    assert "stage 'pretrain' never moved: 2.0800 in its first epoch" in found[0]["message"]


def test_an_arm_that_lost_its_accuracy_is_held_against_the_baseline():
    method, metrics, scores, curves = make_run(right=0.95, separation=2.0, losses=[2.1, 0.1])
    scores["oe"] = ArmScores(
        label="oe",
        correct=torch.arange(400) < 240,
        id_scores=scores["oe"].id_scores,
        ood_scores=scores["oe"].ood_scores,
        behaviour=scores["oe"].behaviour,
    )
    (found,) = run_warnings(method, metrics, scores, curves)
    assert found["arm"] == "oe"
    assert found["message"] == "accuracy 60.00 % is far below the 95.00 % of PLAIN"


def test_warnings_are_no_difference_from_metrics_json():
    stored = {"seed": 0, "warnings": [{"arm": "a", "kind": "tied-scores", "message": "5 of 5"}]}
    assert describe_difference(stored, {"seed": 0}, tolerance=0.0)[0]
    assert not describe_difference(stored, {"seed": 1}, tolerance=0.0)[0]
