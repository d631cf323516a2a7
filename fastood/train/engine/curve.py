"""Training curves: an entry for every epoch of a stage, the same whether or not the run was stopped in between."""

import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from fastood.common.files import write_atomically

SCHEMA = 1
"""Version of the layout of curves.json."""
PARTS = 20
"""Number of entries of a stage without epochs."""

Entry = dict[str, float | None]
"""epoch (from 1; None without epochs), step (the last one), loss (mean over its steps), accuracy (fraction of the
in-distribution images of its batches that were classified correctly at their step; None if nothing is classified)
and learning_rate (at its end; None if there is no single one)."""


class Curve:
    """Entries of a stage so far, and the sums of the current epoch.

    Args:
        steps_per_epoch: Steps of an epoch; None for a stage without epochs, which is cut into equal parts.
        total_steps: Steps of the stage.

    Example:
        >>> curve = Curve(steps_per_epoch=2, total_steps=4)
        >>> for step in (1, 2, 3, 4):
        ...     curve.add(loss=1.0 / step)
        ...     if curve.ends_at(step):
        ...         entry = curve.close(step, learning_rate=0.1)
        >>> [(entry["epoch"], entry["loss"]) for entry in curve.entries][0]
        (1, 0.75)
    """

    def __init__(self, steps_per_epoch: int | None, total_steps: int) -> None:
        self.has_epochs = steps_per_epoch is not None
        self.length = steps_per_epoch or max(1, ceil(total_steps / PARTS))
        self.total_steps = total_steps
        self.entries: list[Entry] = []
        self._loss, self._steps = 0.0, 0
        self._correct, self._total = 0, 0

    @property
    def epochs(self) -> int | None:
        """Epochs of the whole stage; None for a stage without."""
        return ceil(self.total_steps / self.length) if self.has_epochs else None

    def add(self, *, loss: float) -> None:
        """Add a step."""
        self._loss += loss
        self._steps += 1

    def add_accuracy_counts(self, correct: int, total: int) -> None:
        """Add the number of correctly classified images, of `total` images of the epoch."""
        self._correct += correct
        self._total += total

    def ends_at(self, step: int) -> bool:
        """Return whether an epoch ends after this number of steps of the stage."""
        return step % self.length == 0 or step == self.total_steps

    def close(self, step: int, *, learning_rate: float | None) -> Entry:
        """End the epoch and return its entry."""
        entry: Entry = {
            "epoch": ceil(step / self.length) if self.has_epochs else None,
            "step": step,
            "loss": self._loss / self._steps,
            "accuracy": self._correct / self._total if self._total else None,
            "learning_rate": learning_rate,
        }
        self.entries.append(entry)
        self._loss, self._steps, self._correct, self._total = 0.0, 0, 0, 0
        return entry

    def state_dict(self) -> dict[str, Any]:
        """Return entries and sums, for the stage's checkpoint."""
        sums = {"loss": self._loss, "steps": self._steps, "correct": self._correct, "total": self._total}
        return {"entries": self.entries, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self.entries = list(state["entries"])
        sums = state["sums"]
        self._loss, self._steps = sums["loss"], sums["steps"]
        self._correct, self._total = sums["correct"], sums["total"]


def write_curve(path: Path, stage: str, entries: Sequence[Entry]) -> None:
    """Write a stage's entries into curves.json, atomically; a damaged file is replaced."""
    stages = {**read_curves(path), stage: list(entries)}
    text = json.dumps({"schema": SCHEMA, "stages": stages}, indent=1)
    write_atomically(path, f"{text}\n".encode())


def read_curves(path: Path) -> dict[str, list[Entry]]:
    """Return every stage's entries in curves.json, in the order of training; empty if there is no readable file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        stages: dict[str, list[Entry]] = dict(document["stages"]) if document["schema"] == SCHEMA else {}
        whole = all(_is_entry(entry) for entries in stages.values() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return stages if whole else {}


def _is_entry(entry: Any) -> bool:
    """Return whether a value is an entry as returned by `Curve.close`.

    Raises:
        KeyError: If a field is missing.
        TypeError: If it is not a mapping.
    """
    optional = ("epoch", "accuracy", "learning_rate")
    numbers = (entry["step"], entry["loss"], *(entry[name] for name in optional if entry[name] is not None))
    return all(isinstance(number, int | float) for number in numbers)
