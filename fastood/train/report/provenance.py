"""Provenance of a run as the page prints it, without locations on the disk of the sender."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fastood.console.wording import counted
from fastood.train.environment import without_location

STABLE = ("fastood", "torch", "python", "system", "device", "device_name", "threads", "processes", "cpu_capability")


def provenance_rows(sessions: Sequence[Mapping[str, Any]], seed: int) -> list[tuple[str, str]]:
    """Return the provenance of the last session, and the fields that changed between sessions.

    Args:
        sessions: Sessions of environment.json, the oldest first.
        seed: Seed of the run.

    Returns:
        Name and text of each row; empty without a session.
    """
    if not sessions:
        return []
    last = sessions[-1]
    others = "; resumed" if len(sessions) > 1 else ""
    device = f"{last['device_name']} ({last['device']}, {last['cpu_capability']})"
    threads = counted(last["threads"], "CPU thread")
    if last["processes"] > 1:
        threads += f" in each of {counted(last['processes'], 'process', 'processes')}"
    rows = [
        ("Date", f"{last['began'].replace('T', ' ').replace('+00:00', ' UTC')}{others}"),
        ("Run time", _time(sessions)),
        ("Command", " ".join(map(_quoted, without_location(shlex.split(last["command"]))))),
        ("Seed", str(seed)),
        ("Device", device),
        ("Threads", threads),
        ("Versions", f"fastood {last['fastood']}, PyTorch {last['torch']}, Python {last['python']}, {last['system']}"),
    ]
    changed = [key for key in STABLE if any(session[key] != last[key] for session in sessions)]
    for key in changed:
        values = dict.fromkeys(str(session[key]) for session in sessions)
        rows.append(("Changed between sessions", f"{key.replace('_', ' ')}: {', then '.join(values)}"))
    return rows


def _quoted(option: str) -> str:
    """Return an option quoted for a shell; the "…" and "~" of shortened paths are left unquoted for legibility."""
    plain = option.replace("…", "").replace("~", "")
    return option if plain and shlex.quote(plain) == plain else shlex.quote(option)


def _time(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Return the total time of the sessions that ended, and the number of those that did not."""
    seconds_of = [session["seconds"] for session in sessions if session["seconds"] is not None]
    if not seconds_of:
        return "unknown"
    seconds = round(sum(seconds_of))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    text = f"{minutes} min {seconds % 60:02d} s" if minutes else f"{seconds} s"
    text = f"{hours} h {minutes:02d} min" if hours else text
    stopped = len(sessions) - len(seconds_of)
    return f"{text}, without {counted(stopped, 'interrupted session')}" if stopped else text
