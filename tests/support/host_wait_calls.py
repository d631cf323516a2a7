"""Public calls whose host waits docs/host_waits.md lists, with arguments on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastood import heads, losses, metrics, ops, scores
from fastood.detectors import LinearHeadModel
from fastood.detectors.registry import build_detectors
from fastood.metrics import DetectionEvaluator, HistogramEvaluator, ScoreCalibration
from fastood.samplers import BackgroundPool, BackgroundPoolSampler, ShardedBackgroundPool
from tests.support.one_process import one_process

__all__ = ["calls"]

Call = Callable[[], object]

ROWS, CLASSES, WIDTH = 40, 5, 8


def _device_batch(rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, features, targets (two in five are background) and weights."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, CLASSES, generator=generator)
    features = torch.randn(rows, WIDTH, generator=generator).abs()
    targets = torch.arange(rows) % CLASSES
    mixed = torch.where(torch.arange(rows) % 5 < 2, -1, targets)
    return logits.cuda(), features.cuda(), mixed.cuda(), torch.rand(rows, generator=generator).cuda()


def of_two(call: Call) -> Call:
    """Return a function that makes the call as one of two processes does."""

    def of_process() -> object:
        with one_process(size=2):
            return call()

    return of_process


def _pool_calls(folder: Path) -> dict[str, Call]:
    pool = BackgroundPool(5000, device="cuda")
    generator = torch.Generator("cuda")
    index, importance = pool.sample(8, generator=generator)
    sampler = BackgroundPoolSampler(pool, 8, 10, generator=generator)
    batches = iter(sampler)
    weights, state, path = pool.weights, pool.state_dict(), folder / "pool.safetensors"
    pool.save(path)
    return {
        "BackgroundPool(N)": lambda: BackgroundPool(5000, device="cuda"),
        "BackgroundPool.from_weights": lambda: BackgroundPool.from_weights(weights),
        "BackgroundPool.from_file": lambda: BackgroundPool.from_file(path, device="cuda"),
        "BackgroundPool.sample": lambda: pool.sample(8, generator=generator),
        "BackgroundPool.sample(stratified=True)": lambda: pool.sample(8, generator=generator, stratified=True),
        "BackgroundPool.sample(replacement=False)": lambda: pool.sample(8, generator=generator, replacement=False),
        "BackgroundPool.importance": lambda: pool.importance(index),
        "BackgroundPool.ascend": lambda: pool.ascend(index, importance, lr=1.0),
        'BackgroundPool.ascend(mode="sparse")': lambda: pool.ascend(index, importance, lr=1.0, mode="sparse"),
        "BackgroundPool.synchronize": pool.synchronize,
        "BackgroundPool.weights": lambda: pool.weights,
        "BackgroundPool.drawable": lambda: pool.drawable,
        "BackgroundPool.select": lambda: pool.select(0.1, generator=generator),
        "BackgroundPool.select(calibrated=True)": lambda: pool.select(0.1, generator=generator, calibrated=True),
        "BackgroundPool.select_mask": lambda: pool.select_mask(0.1, generator=generator),
        "BackgroundPool.top": lambda: pool.top(10),
        "BackgroundPool.histogram": pool.histogram,
        "BackgroundPool.effective_sample_size": pool.effective_sample_size,
        "BackgroundPool.effective_sample_size_tensor": pool.effective_sample_size_tensor,
        "BackgroundPool.state_dict": pool.state_dict,
        "BackgroundPool.load_state_dict": lambda: pool.load_state_dict(state),
        "BackgroundPool.save": lambda: pool.save(path),
        "BackgroundPoolSampler, per batch": lambda: next(batches),
        "BackgroundPoolSampler.ascend": lambda: sampler.ascend(index, importance, lr=1.0),
        "BackgroundPoolSampler.ascend, several processes": of_two(lambda: sampler.ascend(index, importance, lr=1.0)),
        # Last: the passes of a calibrated selection depend on the weights.
        "BackgroundPool.ascend(wait=False)": lambda: pool.ascend(index, importance, lr=1.0, wait=False),
    }


def _sharded_calls(folder: Path) -> dict[str, Call]:
    """Calls in a group of one process; waits within the collectives are not counted."""
    pool, generator = ShardedBackgroundPool(5000, device="cuda"), torch.Generator("cuda")
    index, importance = pool.sample(8, generator=generator)
    path, state = folder / "sharded.safetensors", BackgroundPool(5000, device="cuda").state_dict()
    pool.save(path)
    return {
        "ShardedBackgroundPool(N)": lambda: ShardedBackgroundPool(5000, device="cuda"),
        "ShardedBackgroundPool.from_file": lambda: ShardedBackgroundPool.from_file(path, device="cuda"),
        "ShardedBackgroundPool.draw(verify=False)": lambda: pool.draw(8, generator=generator, verify=False),
        "ShardedBackgroundPool.sample": lambda: pool.sample(8, generator=generator),
        "ShardedBackgroundPool.sample(stratified=True)": lambda: pool.sample(8, generator=generator, stratified=True),
        "ShardedBackgroundPool.sample(replacement=False)": lambda: pool.sample(
            8, generator=generator, replacement=False
        ),
        "ShardedBackgroundPool.importance": lambda: pool.importance(index),
        "ShardedBackgroundPool.ascend": lambda: pool.ascend(index, importance, lr=1.0),
        'ShardedBackgroundPool.ascend(mode="sparse")': lambda: pool.ascend(index, importance, lr=1.0, mode="sparse"),
        "ShardedBackgroundPool.synchronize": pool.synchronize,
        "ShardedBackgroundPool.weights": lambda: pool.weights,
        "ShardedBackgroundPool.drawable": lambda: pool.drawable,
        "ShardedBackgroundPool.select": lambda: pool.select(0.1, generator=generator),
        "ShardedBackgroundPool.select(calibrated=True)": lambda: pool.select(0.1, generator=generator, calibrated=True),
        "ShardedBackgroundPool.select_mask": lambda: pool.select_mask(0.1, generator=generator),
        "ShardedBackgroundPool.top": lambda: pool.top(10),
        "ShardedBackgroundPool.histogram": pool.histogram,
        "ShardedBackgroundPool.effective_sample_size": pool.effective_sample_size,
        "ShardedBackgroundPool.effective_sample_size_tensor": pool.effective_sample_size_tensor,
        "ShardedBackgroundPool.state_dict": pool.state_dict,
        "ShardedBackgroundPool.load_state_dict": lambda: pool.load_state_dict(state),
        "ShardedBackgroundPool.save": lambda: pool.save(path),
    }


def _op_calls() -> dict[str, Call]:
    logits, features, targets, weight = _device_batch()
    labels = targets.clamp(min=0)
    means, factor = torch.randn(CLASSES, WIDTH).cuda(), torch.eye(WIDTH).cuda()
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8).cuda()
    where, flips = torch.arange(4).cuda(), torch.zeros(4, dtype=torch.bool).cuda()
    keys, other_keys = (ops.sort_scores(torch.rand(3, count).cuda()) for count in (50, 60))
    index = ops.ClassL1Index(features, labels)
    rows = ops.RowArguments(targets, weight)
    return {
        "ops.augment_images": lambda: ops.augment_images(
            images, where, where, where, flips, padding=4, mean=0.5, std=0.25
        ),
        "ops.class_l1_nearest": lambda: ops.class_l1_nearest(features, labels, features, labels),
        "ops.ClassL1Index": lambda: ops.ClassL1Index(features, labels),
        "ops.ClassL1Index.nearest": lambda: index.nearest(features, labels),
        "ops.logit_scores": lambda: ops.logit_scores(logits),
        "ops.mahalanobis_logits": lambda: ops.mahalanobis_logits(features, means, factor),
        "ops.outlier_loss": lambda: ops.outlier_loss(logits, rows, losses.OutlierExposureLoss(0.5).settings()),
        "ops.weighted_uniformity": lambda: ops.weighted_uniformity(logits, weight),
        "ops.weighted_uniformity(check_finite=True)": lambda: ops.weighted_uniformity(
            logits, weight, check_finite=True
        ),
        "ops.sort_scores": lambda: ops.sort_scores(logits),
        "ops.keys_to_scores": lambda: ops.keys_to_scores(keys),
        "ops.ranking_statistics": lambda: ops.ranking_statistics(keys, other_keys),
        "ops.resampled_statistics": lambda: ops.resampled_statistics(keys[0], other_keys[0], replicates=4, seed=0),
        "ops.roc_counts": lambda: ops.roc_counts(keys[0], other_keys[0]),
    }


def _loss_calls() -> dict[str, Call]:
    logits, features, targets, weight = _device_batch()
    logits.requires_grad_()
    on_host, whole = targets.cpu(), targets.float()
    prototypes = torch.randn(CLASSES, 1, WIDTH).cuda()
    objectosphere, svdd = losses.ObjectosphereLoss(5.0, 0.1), losses.DeepSVDDLoss(0.1)
    reject = losses.RejectClassLoss(2, generator=torch.Generator("cuda"))
    mixed: dict[str, Any] = {
        "OutlierExposureLoss": losses.OutlierExposureLoss(0.5),
        "EntropyMaximizationLoss": losses.EntropyMaximizationLoss(0.5),
        "EnergyRegularizedLoss": losses.EnergyRegularizedLoss(),
        "EnergyLoss": losses.EnergyLoss(),
        "ICELoss": losses.ICELoss(),
        "SigmoidLikelihoodLoss": losses.SigmoidLikelihoodLoss(),
        "EntropicOpenSetLoss": losses.EntropicOpenSetLoss(),
    }
    checked, plain = losses.OutlierExposureLoss(0.5, check_finite=True), losses.OutlierExposureLoss(0.5)
    return {
        **{f"losses.{name}": lambda loss=loss: loss(logits, targets, weight) for name, loss in mixed.items()},
        "losses.MixedBatchLoss, backward": lambda: plain(logits, targets, weight).backward(),
        "losses.MixedBatchLoss.value_and_grad": lambda: plain.value_and_grad(logits, targets, weight),
        "losses.MixedBatchLoss(check_finite=True)": lambda: checked(logits, targets, weight),
        "losses.MixedBatchLoss, targets in float32": lambda: plain(logits, whole),
        "losses.MixedBatchLoss, targets as a list": lambda: plain(logits, on_host.tolist()),
        "losses.RejectClassLoss": lambda: reject(logits, targets.clamp(max=2)),
        "losses.ObjectosphereLoss": lambda: objectosphere(logits, features, targets),
        "losses.PrototypeLoss": lambda: losses.PrototypeLoss()(features, prototypes, targets),
        "losses.DeepSVDDLoss": lambda: losses.DeepSVDDLoss()(weight),
        "losses.DeepSVDDLoss(nu)": lambda: svdd(weight, 0.5),
        "losses.DeepSVDDLoss.radius_of": lambda: svdd.radius_of(weight),
    }


def _head_calls() -> dict[str, Call]:
    _, features, _, _ = _device_batch()
    labels = torch.arange(ROWS).cuda() % CLASSES
    gaussian = heads.CholeskyMahalanobisHead(WIDTH, CLASSES).cuda()
    prototypes, sphere = heads.PrototypeHead(WIDTH, CLASSES).cuda(), heads.HypersphereHead(WIDTH).cuda()
    decomposed = heads.DecomposedConfidenceHead(WIDTH, CLASSES).cuda()
    statistics = heads.GaussianStatistics(WIDTH, device="cuda").partial_fit(features, labels)
    linear = nn.Linear(WIDTH, CLASSES).cuda()
    return {
        "heads.CholeskyMahalanobisHead": lambda: gaussian(features),
        "heads.CholeskyMahalanobisHead, backward": lambda: gaussian(features).sum().backward(),
        "heads.CholeskyMahalanobisHead.confidence": lambda: gaussian.confidence(features),
        "heads.CholeskyMahalanobisHead.condition_number": gaussian.condition_number,
        "heads.CholeskyMahalanobisHead.limit_condition_": gaussian.limit_condition_,
        "heads.CholeskyMahalanobisHead.from_statistics": lambda: heads.CholeskyMahalanobisHead.from_statistics(
            statistics, shrinkage="oas"
        ),
        "heads.CholeskyMahalanobisHead.from_linear": lambda: heads.CholeskyMahalanobisHead.from_linear(linear),
        "heads.PrototypeHead": lambda: prototypes(features),
        "heads.HypersphereHead": lambda: sphere(features),
        "heads.HypersphereHead.fit": lambda: sphere.fit(features),
        "heads.DecomposedConfidenceHead": lambda: decomposed(features),
        "heads.GaussianStatistics.partial_fit": lambda: statistics.partial_fit(features, labels),
        "heads.GaussianStatistics.covariance": statistics.covariance,
        'heads.GaussianStatistics.covariance("oas")': lambda: statistics.covariance("oas"),
        "heads.GaussianStatistics.cholesky": statistics.cholesky,
    }


def _score_calls() -> dict[str, Call]:
    logits, *_ = _device_batch()
    weights, four = torch.ones(2).cuda(), torch.ones(4).cuda()
    return {
        "scores.max_softmax_score": lambda: scores.max_softmax_score(logits),
        "scores.max_logit_score": lambda: scores.max_logit_score(logits),
        "scores.energy_score": lambda: scores.energy_score(logits),
        "scores.reject_sum_score": lambda: scores.reject_sum_score(logits, 2),
        "scores.reject_max_score": lambda: scores.reject_max_score(logits, 2),
        "scores.reject_entropy_score": lambda: scores.reject_entropy_score(logits, 2),
        "scores.reject_entropy_difference_score": lambda: scores.reject_entropy_difference_score(logits, 2),
        "scores.reject_combined_score": lambda: scores.reject_combined_score(logits, 2, four),
        "scores.reject_weighted_score": lambda: scores.reject_weighted_score(logits, 2, weights),
    }


def _detector_calls() -> dict[str, Call]:
    logits, features, targets, _ = _device_batch()
    labels = targets.clamp(min=0)
    model = LinearHeadModel(nn.Linear(WIDTH, CLASSES).cuda())
    detectors = build_detectors(model, settings={"knn": {"k": 3}, "vim": {"principal": 2}})
    found: dict[str, Call] = {}
    for name, detector in detectors.items():
        if detector.reads == "inputs":
            continue
        rows = logits if detector.reads == "logits" else features
        fitted = detector.fit_features(rows, labels)
        fitted.predict_features(rows)  # the first rows are checked for what the detector assumes
        found[f"detectors.{type(detector).__name__} ({name})"] = lambda one=fitted, rows=rows: one.predict_features(
            rows
        )
    return found


def _metric_calls() -> dict[str, Call]:
    id_scores, ood_scores = torch.rand(50).cuda(), torch.rand(60).cuda()
    many, labels = torch.rand(4, 60).cuda(), (torch.arange(110) % 2 - 1).cuda()
    both, correct = torch.cat([id_scores, ood_scores]), id_scores < 0.7
    evaluator, histogram = DetectionEvaluator().update(both, labels), HistogramEvaluator().update(both, labels)
    calibration = ScoreCalibration(id_scores)
    generator = torch.Generator().manual_seed(0)
    return {
        "metrics.detection_metrics": lambda: metrics.detection_metrics(id_scores, ood_scores),
        "metrics.detection_metrics, many sets": lambda: metrics.detection_metrics(id_scores, many),
        "metrics.auroc": lambda: metrics.auroc(id_scores, ood_scores),
        "metrics.fpr_at_tpr": lambda: metrics.fpr_at_tpr(id_scores, ood_scores),
        "metrics.average_precision": lambda: metrics.average_precision(id_scores, ood_scores),
        "metrics.threshold_at_tpr": lambda: metrics.threshold_at_tpr(id_scores),
        "metrics.roc_curve": lambda: metrics.roc_curve(id_scores, ood_scores),
        "metrics.pr_curve": lambda: metrics.pr_curve(id_scores, ood_scores),
        "metrics.risk_coverage_curve": lambda: metrics.risk_coverage_curve(id_scores, correct=correct),
        "metrics.oscr": lambda: metrics.oscr(id_scores, ood_scores, correct=correct),
        "metrics.autc": lambda: metrics.autc(id_scores, ood_scores),
        "metrics.delong_estimate": lambda: metrics.delong_estimate(id_scores, ood_scores),
        "metrics.bootstrap_metrics": lambda: metrics.bootstrap_metrics(
            id_scores, ood_scores, replicates=20, generator=generator
        ),
        "metrics.DetectionEvaluator.update": lambda: evaluator.update(both, labels),
        "metrics.DetectionEvaluator.compute": evaluator.compute,
        "metrics.HistogramEvaluator.update": lambda: histogram.update(both, labels),
        "metrics.HistogramEvaluator.metrics": histogram.metrics,
        "metrics.ScoreCalibration": lambda: ScoreCalibration(id_scores),
        "metrics.ScoreCalibration.p_values": lambda: calibration.p_values(ood_scores),
        "metrics.ScoreCalibration.threshold": lambda: calibration.threshold(0.1),
    }


def calls(folder: Path) -> dict[str, dict[str, Call]]:
    """Return the calls by package and by the names of the page."""
    return {
        "samplers": {**_pool_calls(folder), **_sharded_calls(folder)},
        "ops": _op_calls(),
        "losses": _loss_calls(),
        "heads": _head_calls(),
        "scores": _score_calls(),
        "detectors": _detector_calls(),
        "metrics": _metric_calls(),
    }
