"""From trained networks to scores and to the contents of metrics.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from fastood.data import Augment, DetectionTask
from fastood.data.seeding import named_generator
from fastood.metrics import Protocol, evaluate_protocol
from fastood.models import Classifier
from fastood.training.stage import Arm, LearntPool, Method

METRICS_SCHEMA = 1
"""Version of the layout of metrics.json."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """What one trained network says of the test images."""

    accuracy: float
    """Share of the in-distribution test images classified correctly, in [0, 1]."""
    id_scores: Tensor
    """Scores of the in-distribution test set, `[N]`; higher means more out-of-distribution."""
    ood_scores: dict[str, Tensor]
    """Scores of each OOD set, `[M]`."""


def predict_logits(
    model: Classifier, images: Tensor, *, augment: Augment, fabric: Fabric, batch_size: int = 512
) -> Tensor:
    """Logits of images as at test time: no augmentation, no dropout, BatchNorm with its statistics.

    Args:
        model: The network; left in eval mode.
        images: uint8 `[N, C, H, W]`.
        augment: Supplies the normalisation.
        fabric: Device and precision.
        batch_size: Images passed at once.

    Returns:
        float32 `[N, K]` on the CPU.
    """
    forward = _setup_for_test(model, fabric)
    with torch.inference_mode():
        return torch.cat(
            [
                forward(augment.normalize(batch).to(fabric.device)).float().cpu()
                for batch in torch.split(images, batch_size)
            ]
        )


def predict_features(
    model: Classifier, images: Tensor, *, augment: Augment, fabric: Fabric, batch_size: int = 512
) -> Tensor:
    """Penultimate features of images as at test time; arguments as in `predict_logits`.

    Returns:
        float32 `[N, d]` on the CPU.
    """
    forward = _setup_for_test(model, fabric)
    forward.mark_forward_method("features")
    with torch.inference_mode():
        return torch.cat(
            [
                forward.features(augment.normalize(batch).to(fabric.device)).float().cpu()
                for batch in torch.split(images, batch_size)
            ]
        )


def _setup_for_test(model: Classifier, fabric: Fabric) -> Any:
    forward = fabric.setup_module(model.to(memory_format=torch.channels_last))
    forward.eval()
    return forward


def score_arm(model: Classifier, arm: Arm, task: DetectionTask, *, augment: Augment, fabric: Fabric) -> ArmScores:
    """Pass every test image through a network once; repeats of the protocol draw from these scores.

    Args:
        model: The arm's trained network.
        arm: Supplies the score.
        task: The test sets.
        augment: Supplies the normalisation.
        fabric: Device and precision.
    """
    logits = predict_logits(model, task.id_test.images, augment=augment, fabric=fabric)
    return ArmScores(
        accuracy=(logits.argmax(dim=1) == task.id_test.labels).double().mean().item(),
        id_scores=arm.score(logits),
        ood_scores={
            name: arm.score(predict_logits(model, images.images, augment=augment, fabric=fabric))
            for name, images in task.ood.items()
        },
    )


def metrics_document(
    method: Method,
    task: DetectionTask,
    scores: Mapping[str, ArmScores],
    *,
    protocol: Protocol,
    seed: int,
) -> dict[str, Any]:
    """The contents of metrics.json: every number with what it depends on.

    Args:
        method: The method after its last stage.
        task: What it was trained and judged on.
        scores: Scores of each arm by name.
        protocol: How OOD sets are drawn and read.
        seed: Seed of the run; also decides the protocol's draws, which are the same for every arm.

    Returns:
        Plain values only; metrics as fractions.
    """
    learnt = method.learnt_pool
    return {
        "schema": METRICS_SCHEMA,
        "method": method.name,
        "seed": seed,
        "protocol": {
            "name": protocol.name,
            "positive": protocol.positive,
            "ood_fraction": protocol.ood_fraction,
            "repeats": protocol.repeats,
            "tpr": protocol.tpr,
            "aupr": "average precision",
        },
        "in_distribution": {
            "name": task.id_train.name,
            "train": len(task.id_train),
            "test": len(task.id_test),
            "classes": task.num_classes,
        },
        "arms": {
            arm.name: {
                "label": arm.label,
                "accuracy": scores[arm.name].accuracy,
                "background_size": len(method.background_index(arm.name)),
                **_detection(scores[arm.name], protocol=protocol, seed=seed),
            }
            for arm in method.arms
        },
        **({} if learnt is None else {"pool": _pool_summary(learnt, method.background_index(learnt.arm), task)}),
    }


def _detection(scores: ArmScores, *, protocol: Protocol, seed: int) -> dict[str, Any]:
    results = evaluate_protocol(
        scores.id_scores,
        scores.ood_scores,
        protocol=protocol,
        generator=named_generator(seed, "protocol"),
    )
    metrics = ("auroc", "aupr", "fpr95")
    return {
        "ood": {name: {**result.as_dict(), "seed": seed} for name, result in results.items()},
        "mean": {metric: fmean(result.metrics()[metric].mean for result in results.values()) for metric in metrics},
    }


def _pool_summary(learnt: LearntPool, chosen: Tensor, task: DetectionTask) -> dict[str, Any]:
    background = task.background
    weights = learnt.pool.weights.cpu()
    relative = weights / weights.mean()
    selected = torch.zeros(len(background), dtype=torch.bool)
    selected[chosen] = True
    sources: dict[str, Any] = {}
    for number, name in enumerate(background.source_names):
        members = background.source == number
        if members.any():
            sources[name] = {
                "count": int(members.sum()),
                "mean_weight": relative[members].mean().item(),
                "selected": int(selected[members].sum()),
            }
    return {
        "size": len(background),
        "effective_sample_size": learnt.pool.effective_sample_size(),
        "sources": sources,
    }
