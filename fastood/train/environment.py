"""Provenance of a run: versions, device, threads, command and time, in environment.json.

metrics.json of a run is the same on every machine; environment.json is not, and records the causes of differences.
"""

import json
import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

import torch

from fastood import __version__, build_info
from fastood.common.files import write_atomically

SCHEMA = 1
"""Version of the layout of environment.json."""


def begin_session(path: Path, *, command: str, device: str, processes: int = 1) -> None:
    """Add a session to environment.json: a run has one for every time that it was begun or resumed.

    Args:
        path: The file; a file that cannot be read is replaced.
        command: The command line.
        device: "cpu" or "cuda".
        processes: Number of processes that share the work.
    """
    session: dict[str, Any] = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
        "command": command,
        "fastood": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "cpu_capability": build_info()["cpu_capability"],
    }
    if (launch := _torchrun()) is not None:
        session["torchrun"] = launch
    _write(path, [*read_sessions(path), session])


def is_restarted(path: Path) -> bool:
    """Return whether the torchrun of this process has started an earlier process of the run.

    `torchrun --max-restarts` starts the processes again, with the same command, after one has ended. Its count of
    restarts does not show this: a node on which no process has ended starts its processes again without counting.

    Args:
        path: File of the sessions.
    """
    launch, sessions = _torchrun(), read_sessions(path)
    before = sessions[-1].get("torchrun") if sessions else None
    return (
        launch is not None
        and isinstance(before, dict)
        and before.get("run") == launch["run"]
        and before.get("process") != launch["process"]
    )


def _torchrun() -> dict[str, str] | None:
    """Return identifiers of the torchrun of this process ("run") and of this process ("process"); None without it."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run_id is None else {"run": f"{run_id}, pid {os.getppid()}", "process": f"pid {os.getpid()}"}


def end_session(path: Path) -> None:
    """Record the duration of the last session, if there is one."""
    sessions = read_sessions(path)
    if sessions:
        took = datetime.now(UTC) - datetime.fromisoformat(sessions[-1]["began"])
        sessions[-1]["seconds"] = max(0.0, round(took.total_seconds(), 1))
        _write(path, sessions)


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """Return the sessions in environment.json, the oldest first; none where there is no readable file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        sessions: list[dict[str, Any]] = list(document["sessions"]) if document["schema"] == SCHEMA else []
        whole = all(_is_session(session) for session in sessions)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return sessions if whole else []


def _is_session(session: Any) -> bool:
    """Tell whether a value is a session as `begin_session` writes it.

    Raises:
        KeyError: If a field is missing.
        TypeError: If it is not a mapping.
        ValueError: If its date is none.
    """
    datetime.fromisoformat(session["began"]).astimezone(UTC)
    kinds: dict[str, type | UnionType] = {"seconds": int | float | None, "threads": int, "processes": int}
    words = ("command", "fastood", "torch", "python", "system", "device", "device_name", "cpu_capability")
    kinds |= dict.fromkeys(words, str)
    return all(isinstance(session[name], kind) for name, kind in kinds.items())


def device_name(device: str) -> str:
    """Return the name of the GPU or the processor, as their makers print it; no name of the machine."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def without_location(value: Any) -> Any:
    """Return plain values with every absolute path in them made relative to this folder or the home folder.

    Of a path elsewhere its name alone is left: a report may be mailed. Strings may be a path, a source of images such
    as "digits=npy:/a/images.npy,/a/labels.npy", or an option "--name=value" of either.

    Example:
        >>> without_location({"root": "/elsewhere/data", "ood": ["x=npy:/a/i.npy,/a/l.npy", "noise=gaussian", "1/3"]})
        {'root': '…/data', 'ood': ['x=npy:…/i.npy,…/l.npy', 'noise=gaussian', '1/3']}
        >>> without_location(str(Path.cwd() / "data" / "cats"))
        'data/cats'
    """
    if isinstance(value, Mapping):
        return {name: without_location(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_location(item) for item in value]
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"((?:--[\w.-]+=)?(?:[^=:/]*=)?(?:\w+:)?)(.*)", value, re.DOTALL)
    assert parts is not None
    return parts[1] + ",".join(_shown(part) for part in parts[2].split(","))


def _shown(path: str) -> str:
    if not path.startswith("/") or path.startswith("//"):
        return path
    absolute, here = Path(path), Path.cwd()
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        home = Path("/")
    # Not relative to a root or a folder of home folders: the rest of the path would name the user.
    if absolute.is_relative_to(here) and (here == home or not home.is_relative_to(here)):
        return str(absolute.relative_to(here))
    if home != Path("/") and absolute.is_relative_to(home):
        return str(Path("~") / absolute.relative_to(home))
    return f"…/{absolute.name}" if absolute.name else "…"


def _write(path: Path, sessions: list[dict[str, Any]]) -> None:
    text = json.dumps({"schema": SCHEMA, "sessions": sessions}, indent=2, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode())
