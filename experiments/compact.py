"""The compact form in which results over seeds are committed: a line for each seed and arm, metrics with intervals.

    {"schema": 2,
     "metadata": commit, versions and machine,
     "config": the resolved config, without places on a disk,
     "in_distribution": name and number of images,
     "summary": {"arms": {arm: {"label", metric: {"mean", "std"} over seeds}}, …},
     "runs": [{"seed", "arms": {arm: {"accuracy", "background_size", "mean": {metric: value},
                                      "ood": {set: {metric: [mean over the draws, low, high]}}}}}]}

Metrics are fractions; low and high are the ends of the 95 % bootstrap interval over the test images.
The folders of the runs keep the rest: scores, draws, differences from the baseline, curves and weights.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 2
"""Version of the layout of the files."""
METRICS = ("fpr95", "auroc", "aupr")
INTERVAL_DECIMALS = 4
"""Decimals of the ends of an interval. Metrics are not rounded: a mean over seeds would print other last digits."""
DEPTHS = {"config": 1, "summary": 2, "runs": 3, "mixed": 1, "generators": 1}
"""Levels of each part of a file that are broken into lines; deeper levels are on the line of their parent."""


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and the sample standard deviation (divided by n - 1) of at least two values.

    Example:
        >>> mean_and_std([1.0, 3.0])
        {'mean': 2.0, 'std': 1.4142135623730951}
    """
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


def per_cent(spread: dict[str, float]) -> str:
    """Return "mean ± std" in per cent, with two decimals."""
    return f"{100 * spread['mean']:.2f} ± {100 * spread['std']:.2f}"


def compact_run(metrics: dict[str, Any]) -> dict[str, Any]:
    """Reduce the contents of a run's metrics.json to one line for each arm.

    Warnings and failed arms are kept, so that a run that went wrong does not look well.
    """
    arms = {
        name: {
            "accuracy": arm["accuracy"],
            "background_size": arm["background_size"],
            "mean": {metric: arm["mean"][metric] for metric in METRICS},
            "ood": {
                ood: {metric: [result[metric]["mean"], *_ends(result["interval"][metric])] for metric in METRICS}
                for ood, result in arm["ood"].items()
            },
        }
        for name, arm in metrics["arms"].items()
    }
    extra = {key: metrics[key] for key in ("warnings", "failed") if key in metrics}
    return {"seed": metrics["seed"], "arms": arms, **extra}


def _ends(interval: dict[str, float]) -> list[float]:
    return [round(interval[end], INTERVAL_DECIMALS) for end in ("low", "high")]


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and sample standard deviation over seeds.

    Args:
        runs: Contents of metrics.json of at least two runs of one config.

    Returns:
        The mean metrics and the accuracy of each arm; for a run with a pool, also the gain in AUROC of the resampled
        over the random background by seed, and the mean weight of each source.
    """
    arms = {
        name: {
            "label": arm["label"],
            **{metric: mean_and_std([run["arms"][name]["mean"][metric] for run in runs]) for metric in METRICS},
            "accuracy": mean_and_std([run["arms"][name]["accuracy"] for run in runs]),
        }
        for name, arm in runs[0]["arms"].items()
    }
    if "pool" not in runs[0]:
        return {"arms": arms}
    gain = [run["arms"]["resampled"]["mean"]["auroc"] - run["arms"]["random"]["mean"]["auroc"] for run in runs]
    weights = {
        name: round(statistics.fmean(run["pool"]["sources"][name]["mean_weight"] for run in runs), 3)
        for name in runs[0]["pool"]["sources"]
    }
    return {"arms": arms, "auroc_resampled_minus_random": gain, "mean_weight_by_source": weights}


def compact(metadata: dict[str, Any], config: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of a file of results.

    Args:
        metadata: Commit, versions and machine.
        config: The resolved config.
        runs: Contents of metrics.json of each seed.
    """
    return {
        "schema": SCHEMA,
        "metadata": metadata,
        "config": config,
        "in_distribution": runs[0]["in_distribution"],
        "summary": summarise(runs),
        "runs": [compact_run(run) for run in runs],
    }


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
        ValueError: If the file has another schema.
    """
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} must have schema {SCHEMA}, got {content.get('schema')!r}")
    return content


def as_bytes(content: dict[str, Any]) -> bytes:
    """Format the contents of a file of results."""
    parts = [f"{json.dumps(key)}: {as_lines(value, DEPTHS.get(key, 0), ' ')}" for key, value in content.items()]
    return ("{\n " + ",\n ".join(parts) + "\n}\n").encode()


def as_lines(value: Any, depth: int, indent: str = "") -> str:
    """Format a value as JSON, with line breaks in its first `depth` levels only.

    Example:
        >>> print(as_lines({"a": {"b": [1, 2]}, "c": 3}, 1))
        {
         "a": {"b": [1, 2]},
         "c": 3
        }
    """
    if depth == 0 or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, dict):
        begin, end = "{", "}"
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {as_lines(item, depth - 1, inner)}" for key, item in value.items()
        ]
    else:
        begin, end = "[", "]"
        items = [as_lines(item, depth - 1, inner) for item in value]
    return f"{begin}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{end}"
