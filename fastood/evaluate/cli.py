"""Recompute a run's table from its weights: `python -m fastood.evaluate runs/NAME`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastood.console.command_line import read_command_line
from fastood.console.names import expanded, printable_lines
from fastood.console.terminal import tolerant_terminal
from fastood.metrics.protocol import PROTOCOLS, ProtocolName
from fastood.train.config import Device
from fastood.train.engine.failure import StageFailedError

if TYPE_CHECKING:
    from fastood.train.run import Run

DESCRIPTION = """Score a run's stored weights again, print its table, and compare it with metrics.json.

Examples:

  python -m fastood.evaluate runs/mine
  python -m fastood.evaluate runs/mine --detectors all --write
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score a run's stored weights again, print its table, and compare it with metrics.json."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder, runs/NAME."""
    tolerance: float = 1e-3
    """Largest difference of a fraction that still counts as the same: another machine rounds differently."""
    device: Device | None = None
    """Where to compute; by default where the run did."""
    protocol: ProtocolName | None = None
    """Print the table of another protocol than the run's; metrics.json is not compared and stays."""
    detectors: tuple[str, ...] = ()
    """Judge detectors instead of the run's own scores: "all" that need no training, or by name, such as msp knn bal (a
    wrong one prints them all; bal trains a GAN, for half a minute or so). Each image passes a network once for all of
    them; the logits and features of training and test images stay in the run's folder for the next time. ODIN's step is
    chosen on training and background images."""
    write: bool = False
    """Replace metrics.json, scores and report, or detectors.json and its picture; without it no result is written."""


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Values in which two metrics documents differ: path, old value, new value.

    Example:
        >>> list(changes({"seed": 0, "mean": {"auroc": 0.9}}, {"seed": 0, "mean": {"auroc": 0.8}}))
        [('mean.auroc', 0.9, 0.8)]
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from changes(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield path, old, new


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any], *, tolerance: float) -> tuple[bool, str]:
    """Whether two metrics documents agree within a tolerance, and a sentence that says so.

    Example:
        >>> describe_difference({"auroc": 0.9}, {"auroc": 0.8}, tolerance=1e-3)
        (False, 'differs from metrics.json in 1 value, e.g. auroc: 0.9 there, 0.8 here')
    """
    # Warnings are sentences about the other values.
    found = [change for change in changes(old, new) if change[0] != "warnings"]
    if not found:
        return True, "the same as metrics.json, to the last digit"

    def size(change: tuple[str, Any, Any]) -> float:
        _, before, after = change
        numbers = isinstance(before, int | float) and isinstance(after, int | float)
        return abs(before - after) if numbers else float("inf")

    path, before, after = max(found, key=size)
    if size((path, before, after)) <= tolerance:
        return True, f"the same as metrics.json within {size((path, before, after)):.1e}"
    count = f"{len(found)} value{'s' if len(found) > 1 else ''}"
    return False, f"differs from metrics.json in {count}, e.g. {path}: {before} there, {after} here"


def main(args: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 if the table is that of metrics.json, or with detectors if there is one; 1 if it differs or cannot be
        computed, 130 if stopped by Ctrl-C.
    """
    with tolerant_terminal(), ExitStack() as held:
        return _run(sys.argv[1:] if args is None else args, held)


def _run(args: Sequence[str], held: ExitStack) -> int:
    """The command line; the lock of the run ends with `held`."""
    command: Command = read_command_line(Command, args=args, prog="python -m fastood.evaluate", description=DESCRIPTION)
    try:
        from fastood.train.report.print_metrics import print_metrics
        from fastood.train.run import Run
        from fastood.train.run_folder import RunFolder

        folder = RunFolder(expanded(command.run))
        if command.write and command.protocol is not None:
            raise ValueError(
                f"write must not be given with protocol {command.protocol}: metrics.json is of the run's own"
            )
        config = folder.read_config()
        if command.write:
            held.enter_context(folder.lock())
        if command.protocol is not None:
            config = replace(config, protocol=PROTOCOLS[command.protocol])
        stored = folder.read_metrics()
        if command.device is not None:
            config = replace(config, device=command.device)
        run = held.enter_context(Run.load(config, folder))
        if command.detectors:
            return judge_detectors(run, command)
        evaluation = run.evaluate()
    except (OSError, StageFailedError, TypeError, ValueError) as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print_metrics(evaluation.metrics)
    if command.protocol is not None:
        return 0
    same, sentence = describe_difference(stored, evaluation.metrics, tolerance=command.tolerance)
    print(sentence)
    if command.write:
        try:
            run.report(evaluation)
        except (OSError, ValueError) as error:
            print(f"error: {printable_lines(str(error))}", file=sys.stderr)
            return 1
        print(f"written: {folder.metrics}, {folder.scores}, {folder.path / 'report.html'}")
    return 0 if same else 1


def judge_detectors(run: Run, command: Command) -> int:
    """The command line with `detectors`.

    Raises:
        ValueError: If a name is unknown.
    """
    from fastood.detectors import detector_names
    from fastood.evaluate.detector_scores import detectors_document, score_detectors
    from fastood.evaluate.printing import print_detectors, write_detectors

    names = detector_names() if command.detectors == ("all",) else command.detectors
    document = detectors_document(run, score_detectors(run, names))
    print_detectors(document)
    if command.write:
        print(f"written: {', '.join(map(str, write_detectors(run.folder, document)))}")
    return 0
