"""Stage `profile`: the five slowest goals by their ratio, profiled by ncu, or by nsys or torch.profiler without it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from . import verdict
from .context import Context, StageNotPossible
from .goals import GOALS, TIME, Goal
from .measure import benchmark
from .record import Record
from .runner import Command, Finding, Stage

METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "launch__registers_per_thread": "registers",
}
MOST = 5
MOST_KERNELS = 8
"""Kernels shown of each goal; the log has all."""


def slowest(record: Record) -> list[Goal]:
    """Return the goals that are farthest from limit or floor, the worst first; a rehearsal takes the first ones."""
    if record.rehearsal:
        return [goal for goal in GOALS if verdict.row_of(goal, record) is not None][:1]
    found = []
    for goal in GOALS:
        _, ratio = verdict.state(goal, record)
        if ratio is not None:
            limit = goal.limit or 1.0
            found.append((ratio / limit if goal.reference == TIME or goal.limit else ratio, goal))
    return [goal for _, goal in sorted(found, key=lambda item: -item[0])[:MOST]]


def _commands(context: Context, record: Record) -> list[Command]:
    commands = []
    chosen = slowest(record)
    if not chosen:
        raise StageNotPossible("no goal was measured: nothing to profile")
    for goal in chosen:
        profiler = "torch" if not {"ncu", "nsys"} & context.tools.keys() else "cuda"
        run = benchmark(context, ["test_gpu_goals.py"], "0.05", "-s", "--profile", profiler, "-k", goal.key)
        marker = [context.python, "-c", f"print('PROFILED {goal.key}')"]
        commands += [Command(argv=marker), Command(argv=[*_profiler(context), *run.argv])]
    return commands


def _profiler(context: Context) -> list[str]:
    if "ncu" in context.tools:
        options = ["--profile-from-start", "off", "--target-processes", "all", "--csv", "--page", "raw"]
        # The clocks of a shared machine are left alone.
        options += ["--clock-control", "none", "--metrics", ",".join(METRICS)]
        return [context.tools["ncu"], *options]
    if "nsys" in context.tools:
        return [context.tools["nsys"], "profile", "--capture-range", "cudaProfilerApi", "--stats", "true"]
    return []


def kernels(text: str) -> list[dict[str, str]]:
    """Return the kernels in ncu's raw CSV between other output; its second line has the units."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines:
        return []
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    units = rows[0]
    found = []
    for row in rows[1:]:
        named = {short: f"{row.get(name) or ''} {units.get(name) or ''}".strip() for name, short in METRICS.items()}
        found.append({"kernel": (row.get("Kernel Name") or "")[:60], **named})
    return found


def table(key: str, rows: Sequence[dict[str, str]]) -> str:
    """Return the kernels of one goal as Markdown."""
    columns = ["kernel", *METRICS.values()]
    lines = [f"{key}:", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += [
        "| " + " | ".join(row[name].replace("|", "\\|") for name in columns) + " |" for row in rows[:MOST_KERNELS]
    ]
    return "\n".join(lines)


def read_profiles(context: Context, record: Record, text: str) -> Finding:
    """Read the kernels of each goal from ncu's output; other profilers print their tables into the log alone."""
    parts = [part.partition("\n") for part in text.split("\nPROFILED ")[1:]]
    tool = next((name for name in ("ncu", "nsys") if name in context.tools), "torch.profiler")
    detail = f"by {tool}{' (imitated)' if tool in context.fakes else ''}: {', '.join(key for key, _, _ in parts)}"
    if tool != "ncu":
        return Finding(detail=f"{detail}; tables in the log", facts={"tool": tool})
    found = {key: kernels(rest) for key, _, rest in parts}
    empty = [key for key, rows in found.items() if not rows]
    if empty:
        detail += f"; no kernel of {', '.join(empty)}: see the log"
    tables = [] if record.rehearsal else [table(key, rows) for key, rows in found.items() if rows]
    return Finding(detail=detail, facts={"tool": tool, "tables": tables, "kernels": found}, failed=bool(empty))


PROFILE = Stage(
    name="profile",
    budget=100,
    shows="the hardware counters of the five goals that are farthest away",
    commands=_commands,
    read=read_profiles,
    needs="build",
)
