"""A call, or a few that belong together, whose results are compared between two implementations of the ops."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Ops = Any
"""`torch.ops.fastood` or `torch.ops.fastood_emulated`, whose attributes torch makes at run time."""


@dataclass(frozen=True)
class Case:
    """One entry of the workload."""

    folder: str
    """The folder of csrc/ whose kernels run."""
    name: str
    run: Callable[[Ops], Iterable[Tensor]]
    """Calls the ops and returns all that they computed. It leaves its inputs unchanged."""
    ulps: float = 0
    """How far a result may be from the native CPU op's, in units of eps of its dtype times the largest magnitude of
    its tensor; 0: every bit agrees."""
    second_turn: bool = False
    """Whether the case has more than two blocks, so that a grid capped at two makes its loops turn again."""
    large: bool = False
    """Whether the case has more of what smaller cases have as well. Sanitizers, which take long, leave it out."""
    blocks_race: bool = False
    """Whether two blocks may write the same element, because the input is invalid. ThreadSanitizer reports it."""

    def __str__(self) -> str:
        return f"{self.folder}: {self.name}"


def first_line(error: Exception) -> str:
    """Return the message of an error without the place in C++ that raised it."""
    return re.sub(r"^\w+, [^ ]+:\d+, ", "", str(error).splitlines()[0])


def refusal(folder: str, name: str, run: Callable[[Ops], object]) -> Case:
    """Return the case of a call that must be refused: its result is the message, which has to be the CPU op's."""

    def message(ops: Ops) -> list[Tensor]:
        try:
            run(ops)
        except RuntimeError as error:
            return [torch.tensor(list(first_line(error).encode()))]
        raise AssertionError(f"{folder}: {name} was not refused")

    return Case(folder, f"refused: {name}", message)
