"""Evaluation protocols: number of OOD images, number of draws, positive class, and rules for FPR and AUPR."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import floor
from statistics import fmean, pstdev
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from fastood.metrics.detection import DetectionMetrics, detection_metrics
from fastood.metrics.inputs import Values
from fastood.metrics.rules import AuprKind, FprRule
from fastood.metrics.validation import (
    Positive,
    check_choice,
    checked_pair,
    checked_positive,
    checked_scores,
    checked_tpr,
)
from fastood.ops._arguments import as_integer, check_generator, decimal_fraction, shown

__all__ = [
    "MAX_REPEATS",
    "PROTOCOLS",
    "MeanStd",
    "Protocol",
    "ProtocolName",
    "ProtocolResult",
    "checked_sets",
    "draw_index",
    "evaluate_protocol",
    "protocol_of",
    "summarise",
]

ProtocolName = Literal["li2020", "oe2019", "energy2020", "odin", "openood_v15", "wu2023"]

MAX_REPEATS = 1_000_000
"""Largest number of draws of a protocol; each draw permutes an OOD set."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Evaluation protocol, by default that of Li & Vasconcelos 2020, §5.1; see `PROTOCOLS` for others.

    The default draws 20 % as many OOD images as there are ID test images from every OOD set, without replacement, 5
    times, with OOD as the positive class; AUPR depends on that ratio. The code of the paper (test_ood.py,
    https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html)
    does the same: int(0.2 · N) images by `np.random.choice(replace=False)`, one trained model, mean and `np.std` over
    the 5 draws, and a row "all sets" with equal weights of the sets. The standard deviation is over the draws, not over
    trainings. One detail differs: the code reads FPR95 at an interpolated quantile between two neighbouring OOD scores
    (rule "quantile"), this protocol at the stricter of the two.
    """

    name: str = "li2020"
    """Name in the results. li2020, oe2019, energy2020, odin, openood_v15 and wu2023 are reserved for the rules of those
    papers and libraries."""
    ood_fraction: float | None = 0.2
    """OOD images drawn per ID test image, rounded down; above 0. None evaluates all images of a set."""
    repeats: int = 5
    """Independent draws of each OOD set; 1 to 1,000,000, and 1 if all images are evaluated."""
    tpr: float = 0.95
    """True-positive rate at which the false-positive rate is read, in (0, 1]."""
    positive: Positive = "ood"
    """The positive class: "ood" or "id"."""
    rule: FprRule = "first"
    """Rule by which the false-positive rate is read."""
    aupr_kind: AuprKind = "average_precision"
    """Definition of the area under the precision–recall curve."""

    def __post_init__(self) -> None:
        numbers = {
            "repeats": as_integer("repeats", self.repeats, 1, MAX_REPEATS),
            "tpr": checked_tpr(self.tpr),
        }
        if self.ood_fraction is not None:
            numbers["ood_fraction"] = checked_positive("ood_fraction", self.ood_fraction, otherwise=", or None")
        for field, value in numbers.items():
            object.__setattr__(self, field, value)
        if self.ood_fraction is None and self.repeats > 1:
            raise ValueError(f"repeats must be 1 if ood_fraction is None, which draws nothing, got {self.repeats}")
        check_choice("positive", self.positive, Positive)
        check_choice("rule", self.rule, FprRule)
        check_choice("aupr_kind", self.aupr_kind, AuprKind)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, got {shown(self.name)}")
        named = _SETTINGS.get(self.name, {})
        changed = [field for field, value in named.items() if getattr(self, field) != value]
        if changed:
            reserved = ", ".join(f"{field} {named[field]!r}" for field in changed)
            raise ValueError(f"name must not be {self.name}, which has {reserved}: choose another protocol.name")

    def ood_count(self, id_count: int) -> int | None:
        """Return the number of OOD images in a draw for `id_count` ID test images; None for all images.

        Raises:
            ValueError: If the fraction rounds down to zero OOD images.

        Example:
            >>> Protocol().ood_count(10_000)
            2000
        """
        if self.ood_fraction is None:
            return None
        id_count = as_integer("id_count", id_count, 0)
        # In decimal arithmetic: 0.29 of 100 is 29, but 0.29 * 100 is 28.999… in binary.
        count = floor(decimal_fraction(self.ood_fraction) * id_count)
        if count < 1:
            raise ValueError(f"ood_fraction {self.ood_fraction} of {id_count} ID images leaves no OOD image")
        return count


_LI2020 = {field.name: field.default for field in fields(Protocol) if field.name != "name"}
_WHOLE_SETS = {**_LI2020, "ood_fraction": None, "repeats": 1}
_SETTINGS: dict[str, dict[str, Any]] = {
    "li2020": _LI2020,
    "oe2019": {**_LI2020, "repeats": 10, "rule": "nearest"},
    "energy2020": {**_LI2020, "repeats": 10, "rule": "nearest", "positive": "id"},
    "odin": {**_WHOLE_SETS, "positive": "id", "rule": "odin", "aupr_kind": "balanced"},
    "openood_v15": {**_WHOLE_SETS, "rule": "corner", "aupr_kind": "trapezoid"},
    "wu2023": _WHOLE_SETS,
}

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {name: Protocol(name=name, **settings) for name, settings in _SETTINGS.items()}
)
"""The protocols of papers and libraries by name:

    li2020       Li & Vasconcelos 2020: 5 draws of OOD images, 20 % as many as ID images
    oe2019       Hendrycks 2019 (outlier-exposure, display_results.py): 10 draws of 20 %, FPR at the nearest TPR
    energy2020   Liu 2020 (energy_ood): oe2019 with ID as the positive class
    odin         Liang 2018 (odin, calMetric.py): ID positive, all images, AUPR as if both sets had the same size
    openood_v15  Zhang 2023 (OpenOOD v1.5, metrics.py): all images, sklearn's thinned curve, AUPR by trapezoids
    wu2023       Wu 2023, who name the metrics only. Their table 1 implies OOD as the positive class and whole sets: the
                 AUPR is far above the AUROC on Places365 (99.98 % and 96.57 %), which has many more images than the ID
                 set, and below the AUROC on Textures, which has fewer
"""


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Mean and population standard deviation (divided by the count, as `np.std`) over the repeats."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Metrics of one OOD set under a protocol as fractions in [0, 1], with the settings that they depend on."""

    auroc: MeanStd
    aupr: MeanStd
    """Average precision of the positive class."""
    fpr95: MeanStd
    """FPR at the protocol's TPR, by its rule."""
    positive: Positive
    rule: FprRule
    aupr_kind: AuprKind
    id_count: int
    ood_count: int
    """OOD images in each draw."""
    repeats: int
    protocol: str
    """Name of the protocol."""

    def metrics(self) -> dict[str, MeanStd]:
        """Return AUROC, AUPR and FPR95 by name."""
        return {"auroc": self.auroc, "aupr": self.aupr, "fpr95": self.fpr95}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for metrics.json, which stores the protocol's name once for all arms."""
        spread = {name: {"mean": value.mean, "std": value.std} for name, value in self.metrics().items()}
        counts = {"id_count": self.id_count, "ood_count": self.ood_count, "repeats": self.repeats}
        return {**spread, "positive": self.positive, **counts}


def evaluate_protocol(
    id_scores: Values,
    ood_scores: Mapping[str, Values],
    *,
    protocol: Protocol | ProtocolName = "li2020",
    generator: torch.Generator,
) -> dict[str, ProtocolResult]:
    """Evaluate the scores of one model on every OOD set under a protocol.

    Draws follow the order of `ood_scores`. Generators with the same seed draw the same images, so that the results of
    several models are paired.

    Args:
        id_scores: `[N]` scores of the ID test set, higher = more OOD; ±inf allowed.
        ood_scores: Set name → `[M]` scores, same dtype and device as `id_scores`, M ≥ the protocol's OOD count.
        protocol: A protocol, or the name of one of `PROTOCOLS`.
        generator: Source of the draws, on any device.

    Returns:
        Set name → result, in the order of `ood_scores`.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype, `ood_scores` is not a mapping, or
            `generator` is not a `torch.Generator`.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, there is no OOD set, an OOD set
            is smaller than the protocol needs, or the protocol is unknown.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_scores = torch.randn(500, generator=g)
        >>> ood_scores = {"shifted": 2 + torch.randn(300, generator=g)}
        >>> result = evaluate_protocol(id_scores, ood_scores, generator=g)["shifted"]
        >>> result.ood_count, result.repeats, round(result.auroc.mean, 2)
        (100, 5, 0.92)
    """
    protocol = protocol_of(protocol)
    check_generator(generator)
    sets, needed = checked_sets(id_scores, ood_scores, protocol)
    results = {}
    for name, (id_scores, scores) in sets.items():
        if needed is None:
            drawn = scores.unsqueeze(0)
        else:
            drawn = scores[draw_index(len(scores), needed, protocol.repeats, generator).to(scores.device)]
        metrics = detection_metrics(
            id_scores,
            drawn,
            tpr=protocol.tpr,
            positive=protocol.positive,
            rule=protocol.rule,
            aupr_kind=protocol.aupr_kind,
        )
        results[name] = summarise(metrics, protocol)
    return results


def protocol_of(protocol: Protocol | ProtocolName) -> Protocol:
    """Return a protocol, looked up in `PROTOCOLS` if it is a name."""
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be a Protocol or one of {', '.join(PROTOCOLS)}, got {shown(protocol)}")
    return PROTOCOLS[protocol]


def checked_sets(
    id_scores: Values, ood_scores: Mapping[str, Values], protocol: Protocol, *, batched: bool = False
) -> tuple[dict[str, tuple[Tensor, Tensor]], int | None]:
    """Return the checked scores of every OOD set and the number of OOD images in a draw.

    All sets are checked before the first draw, so that a failed call does not advance the generator.

    Args:
        id_scores: ID scores of one detector `[N]`, or of several `[D, N]`.
        ood_scores: Set name → scores of one detector `[M]`, or of several `[D, M]`.
        protocol: Protocol to follow.
        batched: Whether the scores are of several detectors.

    Returns:
        Set name → ID and OOD scores of one dtype, and the number of OOD images in each draw, None for all images.
    """
    count = checked_scores("id_scores", id_scores, batched=batched).shape[-1]
    if not isinstance(ood_scores, Mapping):
        raise TypeError(f'ood_scores must be a mapping such as {{"textures": scores}}, got {type(ood_scores).__name__}')
    if not ood_scores:
        raise ValueError("ood_scores must hold at least one OOD set, got none")
    needed = protocol.ood_count(count)
    sets = {}
    for name, values in ood_scores.items():
        argument = f"ood_scores[{name!r}]"
        of_id, scores = checked_pair(id_scores, values, names=("id_scores", argument), batched=batched)
        sets[name] = of_id, scores
        if needed is not None and scores.shape[-1] < needed:
            raise ValueError(
                f"{argument} has {scores.shape[-1]} images, but protocol {protocol.name!r} draws {needed} of them "
                f"without replacement ({protocol.ood_fraction:g} × {count} ID images)"
            )
    return sets, needed


def draw_index(size: int, count: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Draw the indices of images for every repeat, int64 `[repeats, count]`, without replacement within a repeat."""
    # On the generator's device, so that the drawn images do not depend on the device of the scores.
    orders = [torch.randperm(size, generator=generator, device=generator.device) for _ in range(repeats)]
    return torch.stack([order[:count] for order in orders])


def summarise(draws: DetectionMetrics, protocol: Protocol) -> ProtocolResult:
    """Return mean and standard deviation of the metrics `[repeats]` of one detector on one set."""

    def spread(values: float | Tensor) -> MeanStd:
        each = torch.as_tensor(values).tolist()
        # fmean and pstdev of Python sum exactly: the result does not depend on the order of the repeats.
        return MeanStd(mean=fmean(each), std=pstdev(each))

    return ProtocolResult(
        auroc=spread(draws.auroc),
        aupr=spread(draws.aupr),
        fpr95=spread(draws.fpr_at_tpr),
        positive=protocol.positive,
        rule=protocol.rule,
        aupr_kind=protocol.aupr_kind,
        id_count=draws.id_count,
        ood_count=draws.ood_count,
        repeats=protocol.repeats,
        protocol=protocol.name,
    )
