"""Repeat a run over seeds: `python benchmarks/seeds.py [METHOD] [--seeds 5] [--out FILE] [options of fastood.train]`.

One training says little about a method; this is where the README's numbers come from. Runs stay in the folder of runs
and resume, so that the command can be repeated until it is through.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from metadata import metadata
from rich.console import Console
from rich.table import Table
from spread import mean_and_std, per_cent

from fastood.common.files import write_atomically
from fastood.train.cli import main as train
from fastood.train.command import parse_command
from fastood.train.config import to_dict

METRICS = ("fpr95", "auroc", "aupr")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and sample standard deviation over runs of each arm's mean metrics and each source's weight."""

    def spread(values: list[float]) -> dict[str, float]:
        return {**mean_and_std(values), "min": min(values), "max": max(values)}

    arms = {
        name: {
            "label": arm["label"],
            **{metric: spread([run["arms"][name]["mean"][metric] for run in runs]) for metric in METRICS},
            "accuracy": spread([run["arms"][name]["accuracy"] for run in runs]),
        }
        for name, arm in runs[0]["arms"].items()
    }
    if "pool" not in runs[0]:
        return {"arms": arms}
    sources = {
        name: spread([run["pool"]["sources"][name]["mean_weight"] for run in runs])
        for name in runs[0]["pool"]["sources"]
    }
    gain = [run["arms"]["resampled"]["mean"]["auroc"] - run["arms"]["random"]["mean"]["auroc"] for run in runs]
    return {"arms": arms, "auroc_resampled_minus_random": gain, "mean_weight_by_source": sources}


def main() -> None:
    """Train once per seed, write the summary with every run's metrics, print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/METHOD-PRESET.json")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options, rest = parser.parse_known_args()
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2 to have a spread, got {options.seeds}")
    command = parse_command(rest)
    out = options.out or Path(f"benchmarks/results/{command.method}-{command.preset}.json")
    runs = []
    for seed in range(options.seeds):
        name = f"{out.stem}-seed{seed}"
        arguments = [*rest, "--out", str(options.runs), "--name", name, "--seed", str(seed), "--resume"]
        if train(arguments) != 0:
            raise SystemExit(f"seed {seed} did not come to its end; repeat the command to go on")
        runs.append(json.loads((options.runs / name / "metrics.json").read_text()))
    summary = summarise(runs)
    config = to_dict(command.config) | {"seed": f"0 … {options.seeds - 1}"}
    content = {
        "schema": 1,
        "metadata": metadata("cuda" if torch.cuda.is_available() else "cpu"),
        "config": config,
        "summary": summary,
        "runs": runs,
    }
    write_atomically(out, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    table = Table(title=f"mean over OOD sets, mean ± std over {len(runs)} seeds, per cent", title_justify="left")
    for heading in ("arm", "FPR95 ↓", "AUROC ↑", "AUPR ↑", "accuracy"):
        table.add_column(heading)
    for arm in summary["arms"].values():
        cells = [per_cent(arm[m]) for m in (*METRICS, "accuracy")]
        table.add_row(arm["label"], *cells)
    console = Console(width=110)
    console.print(table)
    if (gain := summary.get("auroc_resampled_minus_random")) is not None:
        console.print("AUROC, resampled - random, per seed:", ", ".join(f"{100 * g:+.2f}" for g in gain))
    console.print(f"results: {out}")


if __name__ == "__main__":
    main()
