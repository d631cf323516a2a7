"""The report of a run: one self-contained HTML file with tables and figures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from fastood.common.files import write_atomically
from fastood.console.wording import counted
from fastood.train.environment import without_location
from fastood.train.report.illustrations import (
    Illustration,
    curve_illustration,
    error_bar_illustration,
    feature_illustration,
    history_illustration,
    pool_illustrations,
    score_illustrations,
)
from fastood.train.report.learnt_weights import LearntWeights, SourceWeights, weights_by_source
from fastood.train.report.page_tables import (
    arm_rows,
    column_groups,
    difference_table,
    metric_blocks,
    pool_table,
    shown_sources,
)
from fastood.train.report.provenance import provenance_rows
from fastood.train.report.result_rows import (
    check_metrics,
    explains_rate,
    failed_baseline,
    is_one_class,
    mean_over_classes,
    ood_names,
    per_cent,
    protocol_sentence,
    reported_metrics,
)
from fastood.train.report.score_figures import OperatingPoint
from fastood.train.report.style import png
from fastood.train.results.sanity_checks import merged
from fastood.train.results.scoring import ArmScores

PAGE_PIXELS_PER_INCH = 100
"""Scale at which the page shows a figure where there is room: its text is then as large as the page's captions."""


def write_report(
    run_dir: Path,
    metrics: Mapping[str, Any],
    scores: Mapping[str, ArmScores],
    *,
    config: Mapping[str, Any],
    pool: LearntWeights | None = None,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sessions: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Draw the figures of a run and write them, with its tables, into one self-contained HTML file.

    Writes `report.html` and `figures/*.png`, each file completely or not at all; the same run gives the same bytes.
    `python -m fastood.train` calls this function at the end of a run.

    Args:
        run_dir: Folder of the run; the name of the folder is the name of the run.
        metrics: Contents of the run's metrics.json; metrics are fractions.
        scores: Scores of each arm by its name, for the arms and the OOD sets of `metrics`.
        config: The resolved config: plain mappings, sequences, strings and numbers.
        pool: Learnt weights of the background pool; None for a run that has learnt none.
        curves: Entries of each stage, as in curves.json; without entries the page has no training figure.
        sessions: Sessions of environment.json, the oldest first; without them the page has no provenance section.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: If `run_dir` is not a folder.
        ValueError: If the arms, OOD sets, sources or counts of the arguments differ from those of `metrics`.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"run_dir {run_dir} is not a folder")
    check_metrics(metrics)
    _check_scores(metrics, scores)
    protocol = metrics["protocol"]
    point = OperatingPoint(positive=protocol["positive"], tpr=protocol["tpr"], ood_per_id=protocol["ood_fraction"])
    sources = None if pool is None else weights_by_source(pool.weights, pool.images)
    # Everything is checked before the first file is written.
    pool_section = None if sources is None else pool_table(metrics, sources)
    illustrations = _illustrations(metrics, scores, point, curves, pool, sources)

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
        one_class=is_one_class(metrics),
        mean_over_classes=[per_cent(mean_over_classes(metrics, metric)) for metric in reported_metrics(metrics)],
        warnings=merged(
            metrics.get("warnings", ()), {name: result["label"] for name, result in metrics["arms"].items()}
        ),
        protocol_sentence=" ".join(filter(None, (protocol_sentence(metrics), explains_rate(metrics)))),
        has_draws=protocol["repeats"] > 1,
        arms=arm_rows(metrics),
        groups=column_groups(len(metrics["arms"])),
        blocks=metric_blocks(metrics, point),
        differences=difference_table(metrics),
        failed_baseline=failed_baseline(metrics),
        pictures=pictures,
        pool=pool_section,
        provenance=provenance_rows(sessions, metrics["seed"]),
        config=yaml.safe_dump(without_location(dict(config)), sort_keys=False, allow_unicode=True),
    )
    report = run_dir / "report.html"
    write_atomically(report, page.encode())
    return report


def _check_scores(metrics: Mapping[str, Any], scores: Mapping[str, ArmScores]) -> None:
    """Check that scores are of the arms and OOD sets of a metrics document.

    Raises:
        ValueError: If they are not.
    """
    if scores.keys() != metrics["arms"].keys():
        raise ValueError(f"scores hold the arms {sorted(scores)}, metrics {sorted(metrics['arms'])}")
    names = ood_names(metrics)
    for arm, arm_scores in scores.items():
        if arm_scores.ood_scores.keys() != set(names):
            held = sorted(arm_scores.ood_scores)
            raise ValueError(f"scores of arm {arm!r} hold the OOD sets {held}, metrics {names}")


def _illustrations(
    metrics: Mapping[str, Any],
    scores: Mapping[str, ArmScores],
    point: OperatingPoint,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    pool: LearntWeights | None,
    sources: Sequence[SourceWeights] | None,
) -> dict[str, list[Illustration]]:
    """Return the illustrations of each section of the page."""
    of_scores = score_illustrations(scores, point)
    if is_one_class(metrics):
        # No image of a single class can be misclassified.
        of_scores = [illustration for illustration in of_scores if illustration.name != "risk_coverage"]
    of_pool: list[Illustration] = []
    if pool is not None and sources is not None:
        sizes = pool.effective_sample_sizes
        if sizes is not None and len(sizes) > 1:
            of_pool.append(history_illustration(sizes.cpu(), len(pool.weights)))
        of_pool += pool_illustrations(shown_sources(sources), pool.images, pool.weights.cpu())
    return {
        "error_bars": [error_bar_illustration(metrics)],
        "training": [curve_illustration(curves)] if curves is not None and any(curves.values()) else [],
        "scores": of_scores,
        "features": [
            feature_illustration(name, arm.label, arm.feature_map)
            for name, arm in scores.items()
            if arm.feature_map is not None
        ],
        "pool": of_pool,
    }


def _save_pictures(folder: Path, illustrations: Mapping[str, list[Illustration]]) -> dict[str, list[dict[str, Any]]]:
    """Draw every illustration into `folder` and return the pictures of each section as the page embeds them."""
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
