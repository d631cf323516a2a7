"""Table 4 of Pei et al. 2022 from runs over seeds: `python benchmarks/mixed_ood.py FILE [--runs runs]`.

After `python benchmarks/seeds.py bal --out FILE`, adds to it each arm's metrics where all OOD sets are one, with ID
positive and every image once, and how much of the training features the generator of each run reaches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastood.common.files import write_atomically
from fastood.metrics import detection_metrics

METRICS = ("detection_error", "fpr95", "auroc", "aupr_in", "aupr_out")
REACHED = ("generator_coverage", "generator_spread")


def mixed(run: Path, arm: str) -> dict[str, float]:
    """Metrics of an arm on the mixture of the run's OOD sets."""
    scores = load_file(run / "scores.safetensors")
    sets = [values for name, values in scores.items() if name.startswith(f"{arm}/ood/")]
    found = detection_metrics(scores[f"{arm}/id"], torch.cat(sets), positive="id")
    return {metric: float(getattr(found, metric)) for metric in METRICS}


def reached(run: Path) -> dict[str, dict[str, float]]:
    """Coverage and spread of every generator of a run, by its stage."""
    found = {}
    for folder in sorted((run / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        curves = set(events.Tags()["scalars"])
        if curves.issuperset(REACHED):
            found[folder.name] = {name: events.Scalars(name)[-1].value for name in REACHED}
    return found


def main() -> None:
    """Add both to a file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    content: dict[str, Any] = json.loads(options.file.read_text(encoding="utf-8"))
    folders = [options.runs / f"{options.file.stem}-seed{run['seed']}" for run in content["runs"]]
    arms = content["runs"][0]["arms"]
    content["mixed"] = {arm: [mixed(folder, arm) for folder in folders] for arm in arms}
    content["generators"] = [reached(folder) for folder in folders]
    write_atomically(options.file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    for arm, runs in content["mixed"].items():
        means = {metric: sum(run[metric] for run in runs) / len(runs) for metric in METRICS}
        print(f"{arm:14s}", *(f"{metric} {100 * value:.2f}" for metric, value in means.items()))
    print(content["generators"])


if __name__ == "__main__":
    main()
