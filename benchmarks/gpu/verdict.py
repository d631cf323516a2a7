"""Verdict of a run: one page of Markdown, the most telling first, with no number that was not measured."""

from __future__ import annotations

from typing import Any

from .goals import FLOOR, GOALS, TIME, Goal
from .record import LOGS, ROWS, STATE, Record

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
REFERENCES = ("fastood", "empty kernel", "streaming pass", "copy", "network alone")
"""Beginnings of the names of providers that are no peers."""
MARKS = {"passed": "passed", "failed": "FAILED", "cut off": "cut off", "not possible": "not possible"}


def page(record: Record) -> str:
    """Return the verdict."""
    machine = record.machine.get("gpu") or "no GPU"
    parts = [f"# {'REHEARSAL of the GPU run' if record.rehearsal else f'GPU run on {machine}'}", _origin(record)]
    if record.rehearsal:
        parts.append(
            "No GPU took part: every stage ran on an emulated device, and no time in the files is a measurement of a"
            f" GPU. Tools replaced by scripts: {', '.join(record.fakes) or 'none'}."
        )
    elif record.fakes:
        parts.append(f"Tools replaced by scripts that only imitate their output: {', '.join(record.fakes)}.")
    parts += ["## In short", "\n".join(_summary(record))]
    parts += ["## Goals", _goals_table(record)]
    parts += ["## Stages", _stages_table(record)]
    floors = _floors(record)
    if floors and not record.rehearsal:
        parts += ["## Floors of this run", floors]
    profile = record.stages.get("profile")
    if profile is not None and profile.facts.get("tables"):
        parts += ["## Five slowest, profiled", profile.detail, *profile.facts["tables"]]
    if record.missing:
        parts += ["## Missing on this machine", "\n".join(f"- {name}: {why}" for name, why in record.missing.items())]
    parts.append(f"All rows: `{ROWS}`; logs: `{LOGS}`; record from which `--resume` continues: `{STATE}`.")
    return "\n\n".join(parts) + "\n"


def _origin(record: Record) -> str:
    facts = [f"commit {record.commit}", f"source {record.source}"]
    facts += [
        f"{name} {record.machine[name]}" for name in ("driver", "torch", "nvcc", "python") if record.machine.get(name)
    ]
    return ", ".join(facts) + f"; {record.calls} call(s), {record.seconds:.0f} s."


def _summary(record: Record) -> list[str]:
    """Return the answers in the order of their weight."""

    def answer(question: str, *names: str) -> str:
        found = [(name, record.stages[name]) for name in names if name in record.stages]
        if not found:
            return f"- {question}: not run"
        worst = max(found, key=lambda item: ("passed", "not possible", "cut off", "failed").index(item[1].outcome))
        ran = f" ({len(found)} of {len(names)})" if len(names) > 1 else ""
        name = f" {worst[0]}" if len(names) > 1 and worst[1].outcome != "passed" else ""
        return f"- {question}: **{MARKS[worst[1].outcome]}**{name}{ran}. {worst[1].detail}".rstrip()

    states = [state(goal, record)[0] for goal in GOALS]
    reached = f"{states.count('met')} met, {states.count('MISSED')} missed, {states.count('not measured')} not measured"
    if record.rehearsal:
        reached = f"{states.count('rehearsed')} rehearsed, {states.count('not measured')} not"
    return [
        answer("It builds", "build"),
        answer("It runs next to torch's own CUDA runtime", "smoke"),
        f"- Goals: **{reached}** of {sum(goal.limit is not None for goal in GOALS)} with a limit",
        answer("CUDA tests pass, skips as failures", "tests"),
        answer("Sanitizers are quiet", *SANITIZERS),
        answer("Every method trains on it", "train"),
    ]


def row_of(goal: Goal, record: Record) -> dict[str, Any] | None:
    """Return the row that measures a goal."""
    return next((row for row in record.rows() if row["op"].startswith(f"goal {goal.key}:")), None)


def state(goal: Goal, record: Record) -> tuple[str, float | None]:
    """Return whether a goal is met, and the ratio to its reference (or the microseconds)."""
    row = row_of(goal, record)
    if row is None:
        return "not measured", None
    if record.rehearsal:
        return "rehearsed", None
    ours = row["timings"][row["subject"]]["median_ms"]
    if goal.reference == TIME:
        ratio = 1e3 * ours
    elif goal.reference == FLOOR:
        if row["floor_ms"] is None:
            return "no floor", None
        ratio = ours / row["floor_ms"]
    elif goal.reference in row["timings"]:
        ratio = 1 / row["timings"][goal.reference]["ratio"]
    else:
        return "no reference", None
    if goal.limit is None:
        return "no target", ratio
    return ("met" if ratio <= goal.limit else "MISSED"), ratio


def _goals_table(record: Record) -> str:
    lines = [
        "| work | shape | goal | measured | ratio to goal's reference | ratio to floor | best peer, ratio | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for goal in GOALS:
        outcome, ratio = state(goal, record)
        row = row_of(goal, record)
        measured = over_floor = peer = "–"
        if row is not None and not record.rehearsal:
            ours = row["timings"][row["subject"]]
            measured = f"{_time(ours['median_ms'])} ({_time(ours['p20_ms'])}–{_time(ours['p80_ms'])})"
            if row["floor_ms"]:
                over_floor = f"{ours['median_ms'] / row['floor_ms']:.2f}"
            peer = _best_peer(row)
        to_reference = "–" if ratio is None or goal.reference == TIME else f"{ratio:.2f}"
        shape = "×".join(map(str, goal.shape))
        cells = (goal.work, f"{shape} {goal.dtype}", _limit(goal), measured, to_reference, over_floor, peer, outcome)
        lines.append(f"| {' | '.join(cells)} |")
    sources = dict.fromkeys(goal.source for goal in GOALS if goal.limit is not None)
    return "\n".join(lines) + "\n\nDesign targets: " + "; ".join(sources) + "."


def _limit(goal: Goal) -> str:
    if goal.limit is None:
        return "none"
    if goal.reference == TIME:
        return f"≤ {goal.limit:g} µs"
    return f"≤ {goal.limit:.2f} × {goal.reference}"


def _time(milliseconds: float) -> str:
    return f"{1e3 * milliseconds:.3g} µs" if milliseconds < 1 else f"{milliseconds:.3g} ms"


def _best_peer(row: dict[str, Any]) -> str:
    peers = {name: t["ratio"] for name, t in row["timings"].items() if not name.startswith(REFERENCES)}
    if not peers:
        return "–"
    best = min(peers, key=lambda name: peers[name])
    return f"{best}: {peers[best]:.2f}"


def _stages_table(record: Record) -> str:
    lines = ["| stage | result | seconds | |", "|---|---|---|---|"]
    for name, stage in record.stages.items():
        detail = stage.detail.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {MARKS[stage.outcome]} | {stage.seconds:.0f} | {detail[:200]} |")
    if record.running is not None:
        lines.append(f"| {record.running} | running | | |")
    return "\n".join(lines)


def _floors(record: Record) -> str:
    lines = []
    for row in record.rows():
        if row["op"].startswith("floor: "):
            ours = row["timings"][row["subject"]]
            speed = f", {row['input_bytes'] / ours['median_ms'] / 1e9:.2f} TB/s" if row.get("input_bytes") else ""
            spread = f"{_time(ours['p20_ms'])}–{_time(ours['p80_ms'])}"
            lines.append(
                f"- {row['op'].removeprefix('floor: ')}, {row['shape']}: {_time(ours['median_ms'])} ({spread}){speed}"
            )
    return "\n".join(lines)
