"""The page a run leaves: one file with everything in it, which can be mailed."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor
from tqdm import tqdm

from fastood.common.files import write_atomically
from fastood.console.wording import counted
from fastood.train.environment import without_location
from fastood.train.report.differences import compared_arms, difference_rows
from fastood.train.report.illustrations import (
    Illustration,
    curve_illustration,
    error_bar_illustration,
    feature_illustration,
    history_illustration,
    pool_illustrations,
    score_illustrations,
)
from fastood.train.report.pool_weights import SourceWeights, weights_by_source
from fastood.train.report.printed_metrics import (
    check_metrics,
    explains_rate,
    failed_baseline,
    is_one_class,
    mean_over_classes,
    ood_names,
    per_cent,
    protocol_sentence,
    reported_metrics,
    result_rows,
)
from fastood.train.report.provenance import provenance_rows
from fastood.train.report.score_figures import ArmScores, OperatingPoint
from fastood.train.report.style import arm_styles, png
from fastood.train.results.sanity_checks import merged

if TYPE_CHECKING:
    from fastood.data.images.image_set import ImageSet
    from fastood.train.feature_map import FeatureMap

PAGE_PIXELS_PER_INCH = 100
"""Size at which the page shows a figure where there is room: its text is then as large as the page's captions."""
ARMS_BESIDE = 5
"""Arms that a table has beside one another; more go into a table of their own."""
SHOWN_SOURCES = 24
"""A pool with more sources shows half as many from either end."""


def write_report(
    run_dir: Path,
    *,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    feature_maps: Mapping[str, FeatureMap] | None = None,
    pool_weights: Tensor | None = None,
    background: ImageSet | None = None,
    effective_sample_sizes: Tensor | None = None,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sessions: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Draws a run's figures and writes them, with its tables, into one self-contained HTML file.

    Writes `report.html` and `figures/*.png`, each at once or not at all; the same run gives the same bytes.
    `python -m fastood.train` calls it when a run is over.

    Args:
        run_dir: The run's folder; its name is the run's name.
        metrics: Contents of the run's metrics.json (fractions).
        config: The resolved configuration: plain mappings, sequences, strings and numbers.
        scores: Arm → {"id": Tensor[N], "ood": {set → Tensor[M]}, "correct": bool Tensor[N]}, for the arms and sets of
            `metrics`.
        feature_maps: Arm → what its features look like, for those that have something to show.
        pool_weights: [P] learnt weights of the background pool; None for a run that learnt none.
        background: The pool's P images; given if and only if `pool_weights` is.
        effective_sample_sizes: [T] of the pool after each step; None or fewer than two for no figure of them.
        curves: Stage → its entries in curves.json; None or no entry for no figure of them.
        sessions: Sessions of environment.json; none for no account of where the run came from.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: `run_dir` is no folder.
        ValueError: The parts do not belong together: other arms, sets, sources or counts than in `metrics`.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"run_dir {run_dir} is no folder")
    check_metrics(metrics)
    arms = _arm_scores(metrics, scores)
    protocol = metrics["protocol"]
    point = OperatingPoint(positive=protocol["positive"], tpr=protocol["tpr"], ood_per_id=protocol["ood_fraction"])
    illustrations: dict[str, list[Illustration]] = {
        "error_bars": [error_bar_illustration(metrics)],
        "training": [curve_illustration(curves)] if curves is not None and any(curves.values()) else [],
        "scores": score_illustrations(arms, point),
        "features": [
            feature_illustration(name, arms[name].label, shown) for name, shown in (feature_maps or {}).items()
        ],
        "pool": [],
    }
    one_class = is_one_class(metrics)
    if one_class:
        # No image of a single class can be misclassified.
        illustrations["scores"] = [shown for shown in illustrations["scores"] if shown.name != "risk_coverage"]
    pool = None
    if (pool_weights is None) != (background is None):
        raise ValueError("pool_weights and background must be given together")
    if pool_weights is not None and background is not None:
        sources = weights_by_source(pool_weights, background)
        pool = _pool_section(metrics, sources)
        illustrations["pool"] = pool_illustrations(_shown(sources), background, pool_weights.cpu())
        if effective_sample_sizes is not None and len(effective_sample_sizes) > 1:
            illustrations["pool"].insert(0, history_illustration(effective_sample_sizes.cpu(), len(pool_weights)))

    pictures = _save_pictures(run_dir / "figures", illustrations)
    environment = Environment(
        loader=PackageLoader("fastood.train", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["counted"] = counted
    page = environment.get_template("template.html").render(
        run_name=run_dir.resolve().name,
        method=metrics["method"],
        seed=metrics["seed"],
        in_distribution=metrics["in_distribution"],
        ood_names=ood_names(metrics),
        one_class=one_class,
        mean_over_classes=[per_cent(mean_over_classes(metrics, metric)) for metric in reported_metrics(metrics)],
        warnings=merged(
            metrics.get("warnings", ()), {name: result["label"] for name, result in metrics["arms"].items()}
        ),
        protocol_sentence=" ".join(filter(None, (protocol_sentence(metrics), explains_rate(metrics)))),
        has_draws=protocol["repeats"] > 1,
        arms=_arm_rows(metrics),
        groups=_groups(len(metrics["arms"])),
        blocks=_blocks(metrics, point),
        differences=_differences(metrics),
        failed_baseline=failed_baseline(metrics),
        pictures=pictures,
        pool=pool,
        provenance=provenance_rows(sessions, metrics["seed"]),
        config=yaml.safe_dump(without_location(dict(config)), sort_keys=False, allow_unicode=True),
    )
    report = run_dir / "report.html"
    write_atomically(report, page.encode())
    return report


def _arm_scores(metrics: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, ArmScores]:
    if scores.keys() != metrics["arms"].keys():
        raise ValueError(f"scores hold the arms {sorted(scores)}, metrics {sorted(metrics['arms'])}")
    names = ood_names(metrics)
    for arm, part in scores.items():
        if part["ood"].keys() != set(names):
            raise ValueError(f"scores of arm {arm!r} hold the OOD sets {sorted(part['ood'])}, metrics {names}")
    return {
        arm: ArmScores(
            label=result["label"],
            id_scores=scores[arm]["id"].cpu(),
            ood_scores={name: scores[arm]["ood"][name].cpu() for name in names},
            correct=scores[arm]["correct"].cpu(),
        )
        for arm, result in metrics["arms"].items()
    }


def _arm_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the page says of each arm as a whole."""
    means = [result_rows(metrics, metric)[-1].cells for metric in reported_metrics(metrics)]
    styles = arm_styles(metrics["arms"])
    return [
        {
            "label": _broken_at_comma(result["label"]),
            "colour": styles[arm][0],
            "background_size": result["background_size"],
            "accuracy": per_cent(result["accuracy"]),
            "means": [cells[position] for cells in means],
        }
        for position, (arm, result) in enumerate(metrics["arms"].items())
    ]


def _groups(count: int) -> list[range]:
    """Return the columns of each table where arms are columns: no more than a page is wide."""
    return [range(first, min(first + ARMS_BESIDE, count)) for first in range(0, count, ARMS_BESIDE)]


def _broken_at_comma(label: str) -> str:
    """The label with a line break allowed after its comma only: "γ = 1 %" stays whole."""
    name, comma, setting = label.partition(", ")
    return name + comma + setting.replace(" ", "\N{NO-BREAK SPACE}")


def _blocks(metrics: Mapping[str, Any], point: OperatingPoint) -> list[dict[str, Any]]:
    """The table of the OOD sets, metric by metric, with the meaning of each."""
    level = f"{100 * point.tpr:g} %"
    meanings = {
        "fpr95": {
            "ood": f"In-distribution images wrongly flagged at the threshold that flags {level} of the OOD images.",
            "id": f"OOD images wrongly accepted at the threshold that accepts {level} of the in-distribution images.",
        }[point.positive],
        "auroc": "How often an OOD image scores above an in-distribution image; 50 is chance.",
        "aupr": f"Average precision of finding the {point.positive.upper()} images; "
        "their share among all images is chance.",
    }
    return [
        {
            "heading": metric.heading,
            "meaning": meanings[metric.key],
            "rows": [row for row in result_rows(metrics, metric) if not row.is_mean],
        }
        for metric in reported_metrics(metrics)
    ]


def _differences(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of differences from the baseline; None for a run of one arm, or without a baseline."""
    compared = compared_arms(metrics)
    if not compared:
        return None
    bootstrap = metrics["bootstrap"]
    styles = arm_styles(metrics["arms"])
    return {
        "baseline": metrics["arms"][bootstrap["baseline"]]["label"],
        "level": f"{100 * bootstrap['level']:g} %",
        "replicates": bootstrap["replicates"],
        "alpha": f"{1 - bootstrap['level']:g}",
        "groups": _groups(len(compared)),
        "arms": [
            {"label": _broken_at_comma(metrics["arms"][arm]["label"]), "colour": styles[arm][0]} for arm in compared
        ],
        "blocks": [
            {"heading": metric.heading, "rows": difference_rows(metrics, metric)}
            for metric in reported_metrics(metrics)
        ],
    }


def _shown(sources: list[SourceWeights]) -> list[SourceWeights]:
    if len(sources) <= SHOWN_SOURCES:
        return sources
    half = SHOWN_SOURCES // 2
    return sources[:half] + sources[-half:]


def _pool_section(metrics: Mapping[str, Any], sources: list[SourceWeights]) -> dict[str, Any]:
    """The pool's counts, and a row for each shown source."""
    if "pool" not in metrics:
        raise ValueError("metrics lacks pool, but pool_weights are given")
    recorded = metrics["pool"]["sources"]
    unknown = {source.name for source in sources} - recorded.keys()
    if unknown:
        raise ValueError(f"metrics records no pool source {', '.join(sorted(unknown))}")
    size = sum(len(source.weights) for source in sources)
    selected = sum(record["selected"] for record in recorded.values())
    rows = [
        {
            "name": source.name,
            "count": len(source.weights),
            "pool_share": f"{100 * len(source.weights) / size:.1f}",
            "mean_weight": f"{source.mean:.3f}",
            "selected": recorded[source.name]["selected"],
            "selected_share": f"{100 * recorded[source.name]['selected'] / max(selected, 1):.1f}",
        }
        for source in _shown(sources)
    ]
    return {
        "size": size,
        "effective_sample_size": metrics["pool"]["effective_sample_size"],
        "sources": rows,
        "source_count": len(sources),
    }


def _save_pictures(folder: Path, illustrations: Mapping[str, list[Illustration]]) -> dict[str, list[dict[str, Any]]]:
    """Draws every illustration into `folder` and returns section → pictures as the page embeds them."""
    pictures: dict[str, list[dict[str, Any]]] = {section: [] for section in illustrations}
    total = sum(map(len, illustrations.values()))
    with tqdm(total=total, desc="report", unit="figure", leave=False, disable=None) as progress:
        for section, part in illustrations.items():
            for illustration in part:
                figure = illustration.draw()
                data = png(figure)
                write_atomically(folder / f"{illustration.name}.png", data)
                pictures[section].append(
                    {
                        "title": illustration.title,
                        "caption": illustration.caption,
                        "width": round(PAGE_PIXELS_PER_INCH * figure.get_figwidth()),
                        "base64": b64encode(data).decode(),
                    }
                )
                progress.update()
    return pictures
