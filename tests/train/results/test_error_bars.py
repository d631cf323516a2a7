"""Error bars of a run: the metrics' intervals and paired differences, at the protocol's ratio, for every arm alike."""

import pytest
import torch

from fastood.metrics import Protocol, detection_metrics, pr_curve
from fastood.train.results.error_bars import REPLICATES, bootstrap_of_arm, bootstrap_settings
from fastood.train.results.scoring import ArmScores


def arm_scores(shift, *, noise=0.0):
    generator = torch.Generator().manual_seed(3)
    id_scores = torch.randn(120, generator=generator)
    ood_scores = {"near": shift + torch.randn(60, generator=generator), "far": 3 + torch.randn(40, generator=generator)}
    return ArmScores(
        label="arm",
        correct=torch.ones(120, dtype=torch.bool),
        id_scores=id_scores + noise * torch.randn(120, generator=generator),
        ood_scores={
            name: scores + noise * torch.randn(len(scores), generator=generator) for name, scores in ood_scores.items()
        },
    )


@pytest.mark.parametrize(
    "protocol", [Protocol(), Protocol(name="own", positive="id", ood_fraction=None, repeats=1, tpr=0.8)]
)
def test_estimates_are_the_metrics_of_all_images(protocol):
    scores = arm_scores(1.0)
    found = bootstrap_of_arm(scores, None, protocol=protocol, seed=0)
    for name, ood_scores in scores.ood_scores.items():
        assert set(found[name]) == {"interval"}, "no baseline, no difference"
        whole = detection_metrics(scores.id_scores, ood_scores, positive=protocol.positive, tpr=protocol.tpr)
        curve = pr_curve(scores.id_scores, ood_scores, positive=protocol.positive, ood_per_id=protocol.ood_fraction)
        aupr = float((curve.recall.diff() * curve.precision[1:]).sum())
        expected = {"auroc": whole.auroc, "aupr": aupr, "fpr95": whole.fpr_at_tpr}
        for metric, interval in found[name]["interval"].items():
            assert interval["estimate"] == pytest.approx(float(expected[metric]), abs=1e-12)
            assert interval["low"] <= interval["high"]
        assert found[name]["interval"]["auroc"]["low"] < expected["auroc"] < found[name]["interval"]["auroc"]["high"]


def test_differences_are_paired_by_image():
    baseline, arm = arm_scores(1.0, noise=0.3), arm_scores(1.0)
    found = bootstrap_of_arm(arm, baseline, protocol=Protocol(), seed=0)["near"]
    alone = bootstrap_of_arm(baseline, None, protocol=Protocol(), seed=0)["near"]
    difference = found["difference"]["auroc"]
    intervals = found["interval"]["auroc"], alone["interval"]["auroc"]
    assert difference["estimate"] == pytest.approx(intervals[0]["estimate"] - intervals[1]["estimate"], abs=1e-12)
    apart = sum(interval["high"] - interval["low"] for interval in intervals)
    assert difference["high"] - difference["low"] < apart / 2
    assert 2 / (REPLICATES + 1) <= difference["p_value"] <= 1


def test_an_arm_does_not_differ_from_itself():
    scores = arm_scores(1.0)
    for found in bootstrap_of_arm(scores, scores, protocol=Protocol(), seed=0).values():
        assert all(part == {"estimate": 0, "low": 0, "high": 0, "p_value": 1} for part in found["difference"].values())


def test_replicates_depend_on_the_seed_alone():
    first, again, other = (
        bootstrap_of_arm(arm_scores(1.0), None, protocol=Protocol(), seed=seed)["near"]["interval"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first["auroc"]["low"] != other["auroc"]["low"]


def test_settings_name_the_baseline():
    assert bootstrap_settings("random")["baseline"] == "random"
