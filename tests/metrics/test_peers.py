"""DetectionEvaluator in place of pytorch-ood's OODMetrics: the same calls, and the differences that are stated."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastood.metrics import DetectionEvaluator

EQUAL = ("AUROC", "AUTC", "FPR95TPR", "ACC")


def peer(**options: object) -> object:
    metrics = pytest.importorskip("pytorch_ood.metrics")
    return metrics.OODMetrics(**options)


def batches(ties: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (40, 1, 23):
        labels = torch.randint(-2, 4, (size,), generator=generator)
        scores = torch.randn(size, generator=generator) + (labels < 0)
        found.append((scores.round() if ties else scores, labels, (labels + (scores > 1)) % 4))
    return found


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("labels_of", [Tensor.float, Tensor.double, Tensor.int, Tensor.long])
@pytest.mark.parametrize("void_label", [None, 2])
def test_every_metric_of_the_peer(ties: bool, labels_of: Callable[[Tensor], Tensor], void_label: int | None) -> None:
    theirs = peer(device="cpu", void_label=void_label)
    ours = DetectionEvaluator(device="cpu", void_label=void_label, aupr_kind="trapezoid")
    for scores, labels, predictions in batches(ties):
        theirs.update(scores, labels_of(labels), predictions)
        assert ours.update(scores, labels_of(labels), predictions) is ours
    want, found = theirs.compute(), ours.compute()
    assert set(want) <= set(found)
    for name, value in want.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    theirs.reset()
    ours.reset().update(*batches(ties)[0])
    assert ours.compute() == DetectionEvaluator(void_label=void_label, aupr_kind="trapezoid").merge(ours).compute()


def test_average_precision_is_the_difference_that_is_stated() -> None:
    theirs, ours = peer(), DetectionEvaluator()
    for scores, labels, predictions in batches(ties=False):
        theirs.update(scores, labels, predictions)
        ours.update(scores, labels, predictions)
    want, found = theirs.compute(), ours.compute()
    for name in EQUAL:
        assert found[name] == pytest.approx(want[name], abs=1e-12), name
    for name in ("AUPR-IN", "AUPR-OUT"):
        assert 0 < abs(found[name] - want[name]) < 0.05, name


def test_autc_of_infinite_scores_is_nan_with_a_warning_as_there() -> None:
    theirs, ours = peer(), DetectionEvaluator()
    scores, labels = torch.tensor([0.0, 1.0, math.inf]), torch.tensor([0, 1, -1])
    with pytest.warns(UserWarning, match="AUTC"):
        want = theirs.update(scores, labels).compute()
    with pytest.warns(UserWarning, match="autc is NaN"):
        found = ours.update(scores, labels).compute()
    assert math.isnan(found["AUTC"])
    assert math.isnan(want["AUTC"])
    assert found["AUROC"] == want["AUROC"] == 1


def test_arguments_of_the_peer_before_0_4() -> None:
    scores, labels = torch.tensor([0.0, 1.0, 9.0]), torch.tensor([0, -1, 5])
    evaluator = DetectionEvaluator("cpu", "classification", 5).update(scores, labels)
    assert evaluator.void_label == 5
    assert evaluator.metrics().id_count == 1
    for wrong in (3, "pixels", None):
        with pytest.raises(ValueError, match='mode must be "classification" or "segmentation", got'):
            DetectionEvaluator(mode=wrong)


def test_names_of_the_peer() -> None:
    theirs, ours = peer(fpr_at=0.8), DetectionEvaluator(fpr_at=0.8)
    for scores, labels, _ in batches(ties=False):
        theirs.update(scores=scores, labels=labels)
        ours.update(scores=scores, labels=labels)
    assert ours.compute()["FPR80TPR"] == theirs.compute()["FPR80TPR"]
    assert ours.tpr == 0.8
    with pytest.raises(ValueError, match=r"fpr_at must lie in \(0, 1\], got 0"):
        DetectionEvaluator(fpr_at=0)
    with pytest.raises(ValueError, match="fpr_at is another name of tpr: give one of them"):
        DetectionEvaluator(fpr_at=0.8, tpr=0.9)
    for arguments in ({}, {"y": [0], "labels": [0]}):
        with pytest.raises(TypeError, match="y or labels, its name in pytorch-ood, must be passed, and not both"):
            ours.update([0.5], **arguments)
    with pytest.raises(ValueError, match="labels must hold whole numbers"):
        ours.update([0.5], labels=[0.5])


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (3, 8, 9), generator=generator)
    return torch.randn(3, 8, 9, generator=generator) + (labels < 0), labels


def test_a_segmentation_is_the_mean_over_images() -> None:
    metrics = pytest.importorskip("pytorch_ood.metrics")
    scores, labels = images()
    theirs = metrics.OODPerImageSegmentationMetrics(void_label=2).update(scores, labels).compute()
    ours = DetectionEvaluator(mode="segmentation", void_label=2, aupr_kind="trapezoid")
    for part, of_part in zip(scores.split(2), labels.split(2), strict=True):
        ours.update(part, of_part.float())
    found = ours.compute()
    shared = set(theirs) & set(found)
    assert {"AUROC", "FPR95TPR"} <= shared
    for name in shared:
        assert found[name] == pytest.approx(theirs[name], abs=1e-12), name


def test_images_of_a_segmentation_merge() -> None:
    scores, labels = images()
    whole = DetectionEvaluator(mode="segmentation").update(scores, labels)
    parts = [DetectionEvaluator(mode="segmentation").update(scores[i : i + 1], labels[i : i + 1]) for i in range(3)]
    assert parts[0].merge(parts[1]).merge(parts[2]).compute() == whole.compute()
    assert whole.merge(whole).compute() == pytest.approx(parts[0].compute(), abs=1e-15)
    one_class = labels.clone()
    one_class[1] = 0
    with pytest.raises(ValueError, match="image 1 of 3: no OOD score"):
        whole.update(scores, one_class)
    with pytest.raises(ValueError, match=r"scores must be \[B, H, W\] with mode"):
        whole.update(scores[0], labels[0])
    with pytest.raises(ValueError, match="predictions must be None with mode"):
        whole.update(scores, labels, labels)
    assert whole.compute() == pytest.approx(parts[0].compute(), abs=1e-15)
    with pytest.raises(ValueError, match="metrics must not be called with mode"):
        whole.metrics()
    with pytest.raises(ValueError, match="other must have the mode 'segmentation', got 'classification'"):
        whole.merge(DetectionEvaluator().update(scores, labels))
    with pytest.raises(ValueError, match="at least one image so far"):
        whole.reset().compute()


def test_no_device_is_that_of_the_first_batch() -> None:
    evaluator = DetectionEvaluator(device=None)
    assert len(evaluator.id_scores) == 0
    scores, labels = torch.tensor([0.0, 1.0]), torch.tensor([0, -1])
    merged = DetectionEvaluator(device=None).merge(evaluator.update(scores, labels))
    assert merged.compute() == evaluator.compute()
    assert merged.id_scores.device == scores.device
