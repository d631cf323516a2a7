"""Record of a run: state, logs and rows in a flat folder, written atomically so that a kill leaves a complete state."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "failed", "cut off", "not possible"]

SCHEMA = 1
STATE, LOGS, ROWS, VERDICT = "state.json", "logs.tar.gz", "benchmarks.json", "verdict.md"
RUNNING_LOG, RUNNING_ROWS, EXTENSION = "current.log", "current.json", "extension.tar.xz"
PROVEN = "proven.json"
MAX_LOG = 2 << 20
"""Bytes kept of each log: its end."""


@dataclass(kw_only=True)
class StageRecord:
    """Result of one stage."""

    outcome: Outcome
    seconds: float
    detail: str = ""
    """One line for the verdict."""
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class Record:
    """Everything that a run has found so far."""

    source: str
    """Hash of the source files that were built and run."""
    commit: str = "unknown"
    rehearsal: bool = False
    fakes: list[str] = field(default_factory=list)
    """Tools that were replaced by scripts that only imitate their output."""
    machine: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Tools and packages that the machine lacks, and the consequence of each."""
    metadata: dict[str, Any] = field(default_factory=dict)
    running: str | None = None
    calls: int = 0
    """Number of calls that worked on this record."""
    seconds: float = 0.0
    """Seconds of all calls together."""
    stages: dict[str, StageRecord] = field(default_factory=dict)

    @classmethod
    def load(cls, out: Path) -> Record:
        """Read the record of a folder.

        Raises:
            ValueError: If the file is damaged or of another schema.
        """
        path = out / STATE
        try:
            content = json.loads(path.read_text())
            if content.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            stages = {name: StageRecord(**stage) for name, stage in content.pop("stages").items()}
            return cls(**content, stages=stages)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of a run ({error}): give an empty folder as OUT") from None

    def save(self, out: Path) -> None:
        """Write the state, and the rows as a file of results that compare.py and chart.py read."""
        write_atomically(out / STATE, json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1).encode())
        rows = self.rows()
        if rows:
            lines = ",\n  ".join(json.dumps(row, sort_keys=True) for row in rows)
            head = f'"schema": 1,\n "metadata": {json.dumps(self.metadata, sort_keys=True)}'
            write_atomically(out / ROWS, f'{{\n {head},\n "rows": [\n  {lines}\n ]\n}}\n'.encode())

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of all stages; of rows with equal op, shape and dtype the one of the last stage."""
        found = {}
        for stage in self.stages.values():
            for row in stage.rows:
                found[row["op"], row["shape"], row["dtype"]] = row
        return list(found.values())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any time leaves the complete old or the complete new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return metadata and rows of a file of results; none if there is no file or a kill has damaged it."""
    try:
        content = json.loads(path.read_text())
        return content["metadata"], content["rows"]
    except (OSError, ValueError, KeyError):
        return {}, []


def keep_log(out: Path, logs: Path, name: str) -> None:
    """Move the running log to the logs, and pack all of them into one file."""
    running = out / RUNNING_LOG
    if running.exists():
        with running.open("rb") as file:
            file.seek(max(0, running.stat().st_size - MAX_LOG))
            (logs / f"{name}.log").write_bytes(file.read())
        running.unlink()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as archive:
        for path in sorted(logs.iterdir()):
            archive.add(path, arcname=path.name)
    write_atomically(out / LOGS, packed.getvalue())


def restore_logs(out: Path, logs: Path) -> None:
    """Unpack the logs of earlier calls."""
    logs.mkdir(parents=True, exist_ok=True)
    if (out / LOGS).exists():
        unpack(out / LOGS, logs)


def unpack(packed: Path, folder: Path) -> None:
    """Write the files of an archive into an existing folder, without the folders that their names may have."""
    # Python before 3.11.4 has no `filter` of extractall, which would keep a member from leaving the folder.
    with tarfile.open(packed) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                write_atomically(folder / Path(member.name).name, content.read())
