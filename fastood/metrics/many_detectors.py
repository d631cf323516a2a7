"""Evaluation of many detectors on the same images under one protocol."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastood.metrics.detection import DetectionMetrics, detection_metrics
from fastood.metrics.inputs import Values, as_scores
from fastood.metrics.protocol import (
    Protocol,
    ProtocolName,
    ProtocolResult,
    checked_sets,
    draw_index,
    protocol_of,
    summarise,
)
from fastood.metrics.validation import check_one_dtype
from fastood.ops._arguments import check_generator

__all__ = ["evaluate_detectors"]


def evaluate_detectors(
    id_scores: Values,
    ood_scores: Mapping[str, Values],
    *,
    protocol: Protocol | ProtocolName = "li2020",
    generator: torch.Generator,
) -> list[dict[str, ProtocolResult]]:
    """Evaluate D detectors on the same images and draws, each as `evaluate_protocol` does.

    OOD sets from which the protocol draws the same number of images share one call of `detection_metrics`; under most
    protocols all sets do.

    Args:
        id_scores: `[D, N]` scores of the ID test set, higher = more OOD; ±inf allowed.
        ood_scores: Set name → `[D, M]` scores, same dtype and device as `id_scores`.
        protocol: A protocol, or the name of one of `PROTOCOLS`.
        generator: Source of the draws, on any device. With the same seed `evaluate_protocol` draws the same images.

    Returns:
        For each detector: set name → result, in the order of `ood_scores`.

    Raises:
        TypeError: If `evaluate_protocol` raises it for a detector.
        ValueError: If `evaluate_protocol` raises it for a detector, or the scores are not one row per detector.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_scores, ood_scores = torch.randn(2, 500, generator=g), torch.randn(2, 300, generator=g)
        >>> good, useless = evaluate_detectors(
        ...     id_scores, {"shifted": ood_scores + torch.tensor([[2.0], [0.0]])}, generator=g
        ... )
        >>> round(good["shifted"].auroc.mean, 2), round(useless["shifted"].auroc.mean, 2)
        (0.92, 0.5)
    """
    shape = as_scores("id_scores", id_scores).shape
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"id_scores must be [D, N] with D of at least 1, got shape {tuple(shape)}")
    protocol = protocol_of(protocol)
    check_generator(generator)
    sets, needed = checked_sets(id_scores, ood_scores, protocol, batched=True)
    for name, (_, scores) in sets.items():
        if scores.dim() != 2 or len(scores) != shape[0]:
            raise ValueError(f"ood_scores[{name!r}] must have {shape[0]} rows as id_scores, got {len(scores)}")
    check_one_dtype("ood_scores", (scores for _, scores in sets.values()))
    of_id = next(iter(sets.values()))[0]
    drawn: dict[str, Tensor] = {}
    for name, (_, scores) in sets.items():
        if needed is None:
            drawn[name] = scores[:, None]
        else:
            # One draw for all detectors of a set, in the order of the sets: the images of `evaluate_protocol`.
            index = draw_index(scores.shape[1], needed, protocol.repeats, generator)
            drawn[name] = scores[:, index.to(scores.device)]
    by_set: dict[str, DetectionMetrics] = {}
    # Sets with equal numbers of images are stacked: their ID scores are sorted once.
    for count in dict.fromkeys(scores.shape[-1] for scores in drawn.values()):
        names = [name for name, scores in drawn.items() if scores.shape[-1] == count]
        metrics = detection_metrics(
            of_id[:, None, None],
            torch.stack([drawn[name] for name in names], 1),
            tpr=protocol.tpr,
            positive=protocol.positive,
            rule=protocol.rule,
            aupr_kind=protocol.aupr_kind,
        )
        by_set |= {name: _at(metrics, (slice(None), position)) for position, name in enumerate(names)}
    return [
        {name: summarise(_at(by_set[name], (detector,)), protocol) for name in ood_scores}
        for detector in range(shape[0])
    ]


def _at(metrics: DetectionMetrics, index: tuple[int | slice, ...]) -> DetectionMetrics:
    """Return the metrics at an index of their leading dimensions."""
    names = ("auroc", "aupr_in", "aupr_out", "fpr_at_tpr", "threshold", "detection_error")
    parts: dict[str, Any] = {name: torch.as_tensor(getattr(metrics, name))[index] for name in names}
    return replace(metrics, **parts)
