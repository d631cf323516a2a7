"""Contents of metrics.json as the terminal table and the page print them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fastood.console.wording import counted
from fastood.train.results.metrics_document import SCHEMA

AUPR_KINDS = {
    "average_precision": "average precision",
    "trapezoid": "by trapezoids",
    "balanced": "as if both classes were equally frequent",
}
DECIMALS = 2
"""Decimals of a per cent value in print, as in Li & Vasconcelos 2020."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One of the three reported metrics."""

    key: str
    """Key in metrics.json."""
    label: str
    """Name in print."""
    higher_is_better: bool

    @property
    def heading(self) -> str:
        """Label with the direction of better values, e.g. "AUROC ↑"."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Value of an arm in a row, in per cent as printed."""

    mean: str
    std: str | None
    """Standard deviation over the draws of the protocol; None for a mean over sets."""
    is_best: bool
    """Whether no other arm has a better mean in this row as printed; equal values are equally best."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Values of every arm in one metric, on one OOD set or as the mean over the sets."""

    name: str
    is_mean: bool
    cells: tuple[Cell, ...]


def reported_metrics(metrics: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Return the three metrics in the order of the papers' tables; FPR is named after the protocol's TPR.

    Example:
        >>> [metric.heading for metric in reported_metrics({"protocol": {"tpr": 0.95}})]
        ['FPR95 ↓', 'AUROC ↑', 'AUPR ↑']
    """
    return (
        Metric(key="fpr95", label=f"FPR{100 * metrics['protocol']['tpr']:g}", higher_is_better=False),
        Metric(key="auroc", label="AUROC", higher_is_better=True),
        Metric(key="aupr", label="AUPR", higher_is_better=True),
    )


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Check that a document is a metrics.json of this schema, with arms that have the same OOD sets.

    Raises:
        ValueError: If the schema differs, a part is missing, there is no arm or no OOD set, or the arms have different
            OOD sets.
    """
    if metrics.get("schema") != SCHEMA:
        raise ValueError(f"metrics must have schema {SCHEMA}, got {metrics.get('schema')!r}")
    missing = {"method", "seed", "protocol", "bootstrap", "in_distribution", "arms"} - metrics.keys()
    if missing:
        raise ValueError(f"metrics lacks {', '.join(sorted(missing))}")
    if not metrics["arms"]:
        raise ValueError("metrics names no arm")
    expected = ood_names(metrics)
    if not expected:
        raise ValueError("metrics names no OOD set")
    for arm, result in metrics["arms"].items():
        if list(result["ood"]) != expected:
            raise ValueError(f"arm {arm!r} was evaluated on OOD sets {list(result['ood'])}, the first on {expected}")


def ood_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the OOD sets in table order."""
    first_arm = next(iter(metrics["arms"].values()))
    return list(first_arm["ood"])


def result_rows(metrics: Mapping[str, Any], metric: Metric) -> list[Row]:
    """Return the rows of a metric: one per OOD set, then their mean; cells are in the order of the arms."""
    arms = list(metrics["arms"].values())
    rows = []
    for name in ood_names(metrics):
        spreads = [_of_draws(arm["ood"][name], metric) for arm in arms]
        rows.append(Row(name=name, is_mean=False, cells=_cells(metric, spreads)))
    means = [{"mean": arm["mean"][metric.key]} for arm in arms]
    return [*rows, Row(name="Mean", is_mean=True, cells=_cells(metric, means))]


def per_cent(fraction: float) -> str:
    """Format a fraction in per cent, as every table prints it.

    Example:
        >>> per_cent(0.31449)
        '31.45'
    """
    return f"{100 * fraction:.{DECIMALS}f}"


def failed_sentence(metrics: Mapping[str, Any]) -> str:
    """Return a sentence on the arms that failed, with a space before it; empty if there are none.

    Example:
        >>> failure = {"label": "Energy", "stage": "energy", "step": 48, "steps": 490, "reason": "the loss is inf"}
        >>> failed_sentence({"failed": {"energy": failure}})
        " Failed: Energy (stage 'energy', step 48 of 490: the loss is inf)."
    """
    failures = []
    for arm in metrics.get("failed", {}).values():
        step = "" if arm["step"] is None else f", step {arm['step']}"
        of = "" if arm["steps"] is None or not step else f" of {arm['steps']}"
        failures.append(f"{arm['label']} (stage {arm['stage']!r}{step}{of}: {arm['reason']})")
    return f" Failed: {'; '.join(failures)}." if failures else ""


def protocol_sentence(metrics: Mapping[str, Any]) -> str:
    """Return a sentence on positive class, counts, draws and kind of AUPR, and one on arms that failed.

    Counts that differ between arms or OOD sets are printed as a range.
    """
    protocol = metrics["protocol"]
    sets = [of_set for arm in metrics["arms"].values() for of_set in arm["ood"].values()]
    positive = {"ood": "OOD", "id": "ID"}[protocol["positive"]]
    id_count, ood_count = (_range([of_set[key] for of_set in sets]) for key in ("id_count", "ood_count"))
    draws = counted(protocol["repeats"], "draw")
    drawn = (
        "all images of each OOD set"
        if protocol["ood_fraction"] is None
        else f"mean ± std over {draws} of {ood_count} OOD images per set"
        if protocol["repeats"] > 1
        else f"{draws} of {ood_count} OOD images per set"
    )
    return (
        f"Protocol {protocol['name']}: {positive} images are the positive class; {drawn}, against "
        f"{id_count} ID test images; AUPR is {AUPR_KINDS[protocol['aupr_kind']]}."
        f"{failed_sentence(metrics)}"
    )


def is_one_class(metrics: Mapping[str, Any]) -> bool:
    """Tell whether each arm is the network of one class, evaluated on images that differ from those of other arms."""
    return metrics["bootstrap"]["baseline"] is None and failed_baseline(metrics) is None


def failed_baseline(metrics: Mapping[str, Any]) -> str | None:
    """Return the label of the baseline if it has failed, else None."""
    name = metrics["bootstrap"].get("failed")
    return None if name is None else str(metrics["failed"][name]["label"])


def explains_rate(metrics: Mapping[str, Any]) -> str:
    """Return a sentence that explains γ if a label has it, else an empty string."""
    has_rate = any("γ" in arm["label"] for arm in metrics["arms"].values())
    return "γ is the share of the background images that an arm trains on." if has_rate else ""


def mean_over_classes(metrics: Mapping[str, Any], metric: Metric) -> float:
    """Return the mean over the arms of a one-class run, which papers report."""
    return fmean(arm["mean"][metric.key] for arm in metrics["arms"].values())


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _of_draws(result: Mapping[str, Any], metric: Metric) -> Mapping[str, float]:
    """Return the mean, and the std if there is more than one draw."""
    spread: Mapping[str, float] = result[metric.key]
    return spread if result["repeats"] > 1 else {"mean": spread["mean"]}


def _cells(metric: Metric, spreads: Sequence[Mapping[str, float]]) -> tuple[Cell, ...]:
    printed = [per_cent(spread["mean"]) for spread in spreads]
    best = (max if metric.higher_is_better else min)(printed, key=float)
    return tuple(
        Cell(mean=mean, std=per_cent(spread["std"]) if "std" in spread else None, is_best=mean == best)
        for mean, spread in zip(printed, spreads, strict=True)
    )
