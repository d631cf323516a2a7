"""Runner of the stages: time limits, logs, resumption, and a record that is complete after each stage."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from . import verdict
from .context import Context, StageNotPossible
from .record import (
    RUNNING_LOG,
    RUNNING_ROWS,
    VERDICT,
    Outcome,
    Record,
    StageRecord,
    keep_log,
    read_rows,
    write_atomically,
)

LEAST = 10.0
"""Seconds that must be left to start a stage."""
PATIENCE = 4
"""Factor of the budgets in a rehearsal: an emulated device is slow."""
GRACE = 5.0
"""Seconds between the request to end and the kill of a command."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a stage."""

    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Evaluation of a stage's log by its `read`."""

    detail: str
    facts: dict[str, Any] = field(default_factory=dict)
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: commands one after the other, within a budget."""

    name: str
    budget: float
    """Seconds at most."""
    shows: str
    """One line: the question that the stage answers."""
    commands: Callable[[Context, Record], list[Command]]
    read: Callable[[Context, Record, str], Finding] | None = None
    """Reads the log of the stage; without it the last line of a failed stage is its detail."""
    needs: str | None = None
    """Stage that must have passed."""


class Stopped(Exception):  # noqa: N818
    """The run received SIGTERM or SIGINT."""


def run_stages(
    stages: Sequence[Stage], context: Context, record: Record, *, seconds: float, redo: bool = False
) -> None:
    """Run the stages in order until the time is over.

    Args:
        stages: Stages to run. Those that passed or failed in an earlier call are left out.
        context: Folders and tools.
        record: Record that is extended and saved after each stage.
        seconds: Time of this call.
        redo: Whether to run stages that have a result.
    """
    end = time.monotonic() + seconds
    begun, before = time.monotonic(), record.seconds
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        for stage in stages:
            done = record.stages.get(stage.name)
            if done is not None and done.outcome in ("passed", "failed") and not redo:
                print(f"=== {stage.name}: {done.outcome} in an earlier call", flush=True)
                continue
            left = end - time.monotonic()
            budget = stage.budget * (PATIENCE if record.rehearsal else 1)
            if left < min(LEAST, budget):
                print(f"=== {stage.name}: no time left", flush=True)
                continue
            if stage.needs is not None and not _passed(record, stage.needs):
                finished = StageRecord(
                    outcome="not possible", seconds=0, detail=f"needs {stage.needs}, which has not passed"
                )
            else:
                print(f"=== {stage.name} (at most {min(budget, left):.0f} s): {stage.shows}", flush=True)
                record.running = stage.name
                record.save(context.out)
                write_atomically(context.out / VERDICT, verdict.page(record).encode())
                finished = run_stage(stage, context, record, min(budget, left))
            _keep(stage.name, finished, context, record, before + time.monotonic() - begun)
            print(f"=== {stage.name}: {finished.outcome} after {finished.seconds:.0f} s. {finished.detail}", flush=True)
    finally:
        signal.signal(signal.SIGTERM, previous)


def recover(context: Context, record: Record) -> None:
    """Record the stage in which an earlier call was killed as cut off, with its rows and log so far."""
    if record.running is None:
        return
    metadata, rows = read_rows(context.out / RUNNING_ROWS)
    record.metadata = record.metadata or metadata
    found = StageRecord(outcome="cut off", seconds=0, detail="the call was killed during this stage", rows=rows)
    _keep(record.running, found, context, record, record.seconds)


def run_stage(stage: Stage, context: Context, record: Record, seconds: float) -> StageRecord:
    """Run one stage and return its result."""
    begun = time.monotonic()
    log = context.out / RUNNING_LOG
    log.write_bytes(b"")
    context.rows.unlink(missing_ok=True)
    outcome: Outcome = "passed"
    detail = ""
    try:
        for command in stage.commands(context, record):
            left = seconds - (time.monotonic() - begun)
            status = run_command(command, context, log, left)
            if status is None:
                outcome, detail = "cut off", f"stopped after {seconds:.0f} s"
                break
            if status != 0:
                outcome, detail = "failed", f"exit status {status}"
                break
    except StageNotPossible as reason:
        outcome, detail = "not possible", str(reason)
    except Stopped:
        _keep(
            stage.name, _result(stage, context, record, "cut off", "the call was stopped", begun), context, record, None
        )
        raise
    return _result(stage, context, record, outcome, detail, begun)


def run_command(command: Command, context: Context, log: Path, seconds: float) -> int | None:
    """Run a command with its output in the log; return its exit status, or None if it took too long."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command.argv)}\n".encode())
        output.flush()
        try:
            process = subprocess.Popen(
                list(command.argv),
                cwd=context.work,
                env={**context.environment(), **command.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def tail(text: str, lines: int = 3) -> str:
    """Return the last lines of a log that are not empty, as one line."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])[-300:]


def _result(stage: Stage, context: Context, record: Record, outcome: Outcome, detail: str, begun: float) -> StageRecord:
    """Return the result of a stage, from its outcome, its log and its rows."""
    text = (context.out / RUNNING_LOG).read_text(errors="replace")
    metadata, rows = read_rows(context.rows)
    record.metadata = record.metadata or metadata
    facts: dict[str, Any] = {}
    if outcome != "not possible" and stage.read is not None:
        finding = stage.read(context, record, text)
        detail = "; ".join(filter(None, (finding.detail, detail)))
        facts = finding.facts
        if finding.failed and outcome == "passed":
            outcome = "failed"
    elif outcome == "failed":
        detail = f"{detail}: {tail(text)}"
    return StageRecord(
        outcome=outcome, seconds=round(time.monotonic() - begun, 1), detail=detail, facts=facts, rows=rows
    )


def _keep(name: str, finished: StageRecord, context: Context, record: Record, seconds: float | None) -> None:
    """Add the result of a stage to the record, and write record, logs and verdict."""
    earlier = record.stages.pop(name, None)
    if earlier is not None:
        own = {(row["op"], row["shape"], row["dtype"]) for row in finished.rows}
        finished.rows = [r for r in earlier.rows if (r["op"], r["shape"], r["dtype"]) not in own] + finished.rows
    record.stages[name] = finished
    record.running = None
    if seconds is not None:
        record.seconds = round(seconds, 1)
    keep_log(context.out, context.logs, name)
    record.save(context.out)
    write_atomically(context.out / VERDICT, verdict.page(record).encode())
    (context.out / RUNNING_ROWS).unlink(missing_ok=True)


def _passed(record: Record, name: str) -> bool:
    return name in record.stages and record.stages[name].outcome == "passed"


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all processes that it has started."""
    for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        if process.poll() is None:
            try:
                process.wait(timeout=grace)
            except subprocess.TimeoutExpired:
                continue
    process.wait()


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the runner is killed, so that no command outlives a cut-off call."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
