"""Repeat a run over seeds: `python experiments/seeds.py [METHOD] [--seeds 5] [--out FILE] [options of fastood.train]`.

One training says little about a method; the numbers of the README and of docs/results.md come from here. Runs stay in
the folder of runs and resume, so that a command that was interrupted can be repeated until it is complete. The file
that it writes is compact, to be committed: see compact.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from compact import METRICS, as_bytes, compact, per_cent
from rich.console import Console
from rich.table import Table

from fastood.common.files import write_atomically
from fastood.train.cli import main as train
from fastood.train.command import parse_command
from fastood.train.config import to_dict
from fastood.train.environment import read_sessions, without_location

MACHINE = ("fastood", "torch", "python", "system", "device", "device_name", "threads", "processes", "cpu_capability")
"""Fields of a session in environment.json on which the last digits of a result depend."""


def metadata(run: Path) -> dict[str, Any]:
    """Return the commit of this tree, and versions and machine of the last session of a run."""
    session = read_sessions(run / "environment.json")[-1]
    return {"commit": commit(), **{field: session[field] for field in MACHINE}}


def commit() -> str:
    """Return the hash of the checked-out commit, "-dirty" after it if tracked files differ; "unknown" without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def print_summary(summary: dict[str, Any], seeds: int) -> None:
    """Print the mean metrics of each arm, and the gain of the resampled background by seed where there is one."""
    table = Table(title=f"mean over OOD sets, mean ± std over {seeds} seeds, per cent", title_justify="left")
    for heading in ("arm", "FPR95 ↓", "AUROC ↑", "AUPR ↑", "accuracy"):
        table.add_column(heading)
    for arm in summary["arms"].values():
        table.add_row(arm["label"], *(per_cent(arm[metric]) for metric in (*METRICS, "accuracy")))
    console = Console(width=110)
    console.print(table)
    if (gain := summary.get("auroc_resampled_minus_random")) is not None:
        console.print("AUROC, resampled - random, per seed:", ", ".join(f"{100 * g:+.2f}" for g in gain))


def main() -> None:
    """Train once per seed, write the compact results and print their summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 (default %(default)s)")
    parser.add_argument("--out", type=Path, help="by default experiments/results/METHOD-PRESET.json")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default %(default)s)")
    options, rest = parser.parse_known_args()
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2 for a standard deviation, got {options.seeds}")
    command = parse_command(rest)
    out = options.out or Path(f"experiments/results/{command.method}-{command.preset}.json")
    runs = []
    for seed in range(options.seeds):
        name = f"{out.stem}-seed{seed}"
        arguments = [*rest, "--out", str(options.runs), "--name", name, "--seed", str(seed), "--resume"]
        if train(arguments) != 0:
            raise SystemExit(f"the run of seed {seed} is not complete; repeat the command to resume it")
        runs.append(json.loads((options.runs / name / "metrics.json").read_text(encoding="utf-8")))
    config = to_dict(command.config) | {"seed": f"0 … {options.seeds - 1}"}
    content = compact(metadata(options.runs / name), without_location(config), runs)
    write_atomically(out, as_bytes(content))
    print_summary(content["summary"], len(runs))
    print(f"results: {out}")


if __name__ == "__main__":
    main()
