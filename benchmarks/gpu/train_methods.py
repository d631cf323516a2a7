"""Training of every method on one device: `python -m benchmarks.gpu.train_methods --device cuda`.

Prints `METHODS name …` first and then one line `METHOD {json}` for each, so that a cut-off run shows how far it came.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

LEAST_ACCURACY = 0.8
"""Least accuracy on the embedded digits with a third of the epochs; chance is 0.125. Not checked with fewer."""


def shortened(method: Any, factor: int) -> Any:
    """Return the method with schedules that are shorter by a factor."""
    from fastood.train.engine.schedule import Schedule

    parts = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    schedules = {name: part for name, part in parts.items() if is_dataclass(part) and isinstance(part, Schedule)}
    return replace(method, **{n: replace(s, epochs=max(1, s.epochs // factor)) for n, s in schedules.items()})


def numbers(value: Any) -> list[float]:
    """Return all floats in a plain value."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, float) else []


def trained(name: str, device: str, factor: int, folder: Path) -> dict[str, Any]:
    """Train one method and return its metrics, or the error."""
    from fastood.data import DataConfig, EmbeddedConfig
    from fastood.train.config import PRESETS
    from fastood.train.run import Run

    begun = time.perf_counter()
    result: dict[str, Any] = {"method": name, "error": None, "checked": factor <= 3}
    try:
        preset = PRESETS[name, "embedded"]
        data = DataConfig(embedded=EmbeddedConfig(pool_size=2000, ood_size=200))
        config = replace(preset, method=shortened(preset.method, factor), data=data, device=device)
        with mock.patch("fastood.train.run.write_report"), Run.open(config, folder / name) as run:
            run.train()
            metrics = run.evaluate().metrics
        arms = metrics["arms"]
        result["accuracy"] = {arm: arms[arm]["accuracy"] for arm in arms}
        result["auroc"] = {arm: arms[arm]["mean"]["auroc"] for arm in arms}
        if not all(math.isfinite(number) for number in numbers([result["accuracy"], result["auroc"]])):
            result["error"] = "a metric is not finite"
        elif result["checked"] and min(result["accuracy"].values()) <= LEAST_ACCURACY:
            result["error"] = f"accuracy {min(result['accuracy'].values()):.2f} is not above {LEAST_ACCURACY}"
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    result["seconds"] = round(time.perf_counter() - begun, 1)
    return result


def main() -> int:
    """Train the methods; return 1 if one failed."""
    from fastood.train.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--factor", type=int, default=3, help="divisor of all epochs (default 3)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    print("METHODS", *options.methods, flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.methods:
            result = trained(name, options.device, options.factor, Path(folder))
            failed |= result["error"] is not None
            print("METHOD", json.dumps(result), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
