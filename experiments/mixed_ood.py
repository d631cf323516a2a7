"""Table 4 of Pei et al. 2022 from runs over seeds: `python experiments/mixed_ood.py FILE [--runs runs]`.

After `python experiments/seeds.py bal --out FILE`, adds to FILE the metrics of each arm where all OOD sets are one,
with ID positive and every image once, and how much of the training features the generator of each run covers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from compact import as_bytes, read_results
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastood.common.files import write_atomically
from fastood.metrics import detection_metrics

METRICS = ("detection_error", "fpr95", "auroc", "aupr_in", "aupr_out")
GENERATOR_CURVES = ("generator_coverage", "generator_spread")


def mixed(run: Path, arm: str) -> dict[str, float]:
    """Compute the metrics of an arm on the mixture of the run's OOD sets."""
    scores = load_file(run / "scores.safetensors")
    sets = [values for name, values in scores.items() if name.startswith(f"{arm}/ood/")]
    metrics = detection_metrics(scores[f"{arm}/id"], torch.cat(sets), positive="id")
    return {metric: float(getattr(metrics, metric)) for metric in METRICS}


def generators(run: Path) -> dict[str, dict[str, float]]:
    """Return coverage and spread of every generator of a run, by its stage."""
    stages = {}
    for folder in sorted((run / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        if set(events.Tags()["scalars"]).issuperset(GENERATOR_CURVES):
            stages[folder.name] = {name: events.Scalars(name)[-1].value for name in GENERATOR_CURVES}
    return stages


def main() -> None:
    """Add both to a file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="file that seeds.py has written")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default %(default)s)")
    options = parser.parse_args()
    content = read_results(options.file)
    folders = [options.runs / f"{options.file.stem}-seed{run['seed']}" for run in content["runs"]]
    arms = content["runs"][0]["arms"]
    content["mixed"] = {arm: [mixed(folder, arm) for folder in folders] for arm in arms}
    content["generators"] = [generators(folder) for folder in folders]
    write_atomically(options.file, as_bytes(content))
    for arm, runs in content["mixed"].items():
        means = {metric: sum(run[metric] for run in runs) / len(runs) for metric in METRICS}
        print(f"{arm:14s}", *(f"{metric} {100 * value:.2f}" for metric, value in means.items()))
    print(content["generators"])


if __name__ == "__main__":
    main()
