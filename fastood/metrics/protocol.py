"""Evaluation protocols: how many OOD images meet the ID test set, how often, and which class is positive."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import floor, isfinite
from statistics import fmean, pstdev
from typing import Any, get_args

import torch
from torch import Tensor

from fastood.metrics.detection import DetectionMetrics, detection_metrics
from fastood.metrics.thresholds import Positive, check_comparable, check_scores, decimal_fraction


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How detection is evaluated; the default is that of Li & Vasconcelos 2020, §5.1.

    Every OOD set is drawn down to 20 % of the ID test size, without replacement, 5 times, with OOD as the
    positive class: AUPR depends on that ratio. So does the authors' code (test_ood.py): int(0.2 · N) images
    by `np.random.choice(replace=False)`, one trained model, mean and `np.std` over the 5 draws, and an "all
    sets" row in which each set weighs the same. Its spread is that of the draw, not of training. It takes
    FPR95 at an interpolated quantile between two neighbouring OOD scores; here it is taken at the stricter
    of the two.
    """

    name: str = "li2020"
    """Name that results carry; another than li2020 as soon as one of the others is changed."""
    ood_fraction: float = 0.2
    """OOD images drawn per ID test image, rounded down; above 0."""
    repeats: int = 5
    """Independent draws of each OOD set; at least 1."""
    tpr: float = 0.95
    """True-positive rate at which the false-positive rate is read, in (0, 1]."""
    positive: Positive = "ood"
    """The positive class: "ood" or "id"."""

    def __post_init__(self) -> None:
        if not (isfinite(self.ood_fraction) and self.ood_fraction > 0):
            raise ValueError(f"ood_fraction must be a finite number above 0, got {self.ood_fraction}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        if not (isfinite(self.tpr) and 0 < self.tpr <= 1):
            raise ValueError(f"tpr must lie in (0, 1], got {self.tpr}")
        if self.positive not in get_args(Positive):
            raise ValueError(f'positive must be "ood" or "id", got {self.positive!r}')
        changed = [f.name for f in fields(self) if f.name != "name" and getattr(self, f.name) != f.default]
        if self.name == "li2020" and changed:
            raise ValueError(
                f"name must not be li2020 where {', '.join(changed)} is not li2020's: give protocol.name another"
            )

    def ood_count(self, id_count: int) -> int:
        """Number of OOD images that meet `id_count` ID test images in one draw.

        Raises:
            ValueError: The fraction of so few ID images is no OOD image at all.

        Example:
            >>> Protocol().ood_count(10_000)
            2000
        """
        count = floor(decimal_fraction(self.ood_fraction) * id_count)
        if count < 1:
            raise ValueError(f"ood_fraction {self.ood_fraction} of {id_count} ID images leaves no OOD image")
        return count


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Mean and population standard deviation (divided by the count, as `np.std`) over the repeats."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """One OOD set under a protocol: fractions in [0, 1], with what they depend on."""

    auroc: MeanStd
    aupr: MeanStd
    """Average precision of the positive class."""
    fpr95: MeanStd
    """FPR at the protocol's TPR."""
    positive: Positive
    id_count: int
    ood_count: int
    """OOD images in each draw."""
    repeats: int
    protocol: str
    """Name of the protocol."""

    def metrics(self) -> dict[str, MeanStd]:
        """The three metrics by name."""
        return {"auroc": self.auroc, "aupr": self.aupr, "fpr95": self.fpr95}

    def as_dict(self) -> dict[str, Any]:
        """Plain values as in metrics.json, where the protocol's name stands once, beside the arms."""
        spread = {name: {"mean": value.mean, "std": value.std} for name, value in self.metrics().items()}
        counts = {"id_count": self.id_count, "ood_count": self.ood_count, "repeats": self.repeats}
        return {**spread, "positive": self.positive, **counts}


def evaluate_protocol(
    id_scores: Tensor,
    ood_scores: Mapping[str, Tensor],
    *,
    protocol: Protocol | None = None,
    generator: torch.Generator,
) -> dict[str, ProtocolResult]:
    """Evaluates the scores of one model on every OOD set under a protocol.

    Draws follow the order of `ood_scores`. Generators with the same seed draw the same images, which pairs
    the results of several models.

    Args:
        id_scores: [N] scores of the ID test set, higher = more OOD; ±inf allowed.
        ood_scores: Set name → [M] scores, same dtype and device as `id_scores`, M ≥ the protocol's OOD count.
        protocol: Counts, repeats and positive class; that of Li & Vasconcelos 2020 if not given.
        generator: Source of the draws, on any device.

    Returns:
        Set name → result, in the order of `ood_scores`.

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices; no OOD set; an OOD
            set smaller than the protocol needs.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_scores = torch.randn(500, generator=g)
        >>> ood_scores = {"shifted": 2 + torch.randn(300, generator=g)}
        >>> result = evaluate_protocol(id_scores, ood_scores, generator=g)["shifted"]
        >>> result.ood_count, result.repeats, round(result.auroc.mean, 2)
        (100, 5, 0.92)
    """
    protocol = protocol or Protocol()
    # All sets are checked before the first draw: a failed call must not advance the generator.
    check_scores("id_scores", id_scores)
    if not ood_scores:
        raise ValueError("ood_scores names no OOD set")
    needed = protocol.ood_count(len(id_scores))
    for name, scores in ood_scores.items():
        argument = f"ood_scores[{name!r}]"
        check_scores(argument, scores)
        check_comparable("id_scores", id_scores, argument, scores)
        if len(scores) < needed:
            raise ValueError(
                f"{argument} has {len(scores)} images, but protocol {protocol.name!r} draws {needed} of them "
                f"without replacement ({protocol.ood_fraction:g} × {len(id_scores)} ID images)"
            )
    results = {}
    for name, scores in ood_scores.items():
        draws = []
        for _ in range(protocol.repeats):
            order = torch.randperm(len(scores), generator=generator, device=generator.device)
            drawn = scores[order[:needed].to(scores.device)]
            draws.append(detection_metrics(id_scores, drawn, tpr=protocol.tpr, positive=protocol.positive))
        results[name] = _summarise(draws, protocol)
    return results


def _summarise(draws: list[DetectionMetrics], protocol: Protocol) -> ProtocolResult:
    def spread(values: list[float]) -> MeanStd:
        return MeanStd(mean=fmean(values), std=pstdev(values))

    return ProtocolResult(
        auroc=spread([draw.auroc for draw in draws]),
        aupr=spread([draw.aupr for draw in draws]),
        fpr95=spread([draw.fpr95 for draw in draws]),
        positive=protocol.positive,
        id_count=draws[0].id_count,
        ood_count=draws[0].ood_count,
        repeats=protocol.repeats,
        protocol=protocol.name,
    )
