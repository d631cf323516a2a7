"""Command line that recomputes the table of a run from its weights: `python -m fastood.evaluate runs/NAME`."""

from __future__ import annotations

import sys
import warnings
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
    from fastood.train.engine.group import Group
    from fastood.train.run import Run

DESCRIPTION = """Score a run's stored weights again, print its table, and compare it with metrics.json.

Examples:

  python -m fastood.evaluate runs/mine
  python -m fastood.evaluate runs/mine --detectors all --write
  torchrun --nproc-per-node 2 -m fastood.evaluate runs/mine --detectors all
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score a run's stored weights again, print its table, and compare it with metrics.json.

    Processes that torchrun launches share the work, with the numbers of one process.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, runs/NAME."""
    tolerance: float = 1e-3
    """Largest difference of a metric, as a fraction, that still counts as equal: another machine rounds differently."""
    device: Device | None = None
    """Device to compute on; by default that of the run."""
    protocol: ProtocolName | None = None
    """Print the table by another protocol than the run's; metrics.json is neither compared nor changed."""
    detectors: tuple[str, ...] = ()
    """Evaluate detectors instead of the run's own scores: "all" that need no training, or some by name, such as
    msp knn bal (an unknown name prints the list; bal trains a GAN per arm, for half a minute or more). Each image
    passes a network once for all of them; logits and features of training and test images are cached in the run's
    folder. The step of ODIN is chosen on training and background images."""
    write: bool = False
    """Replace metrics.json, scores and report or, with --detectors, detectors.json and its figure; by default no result
    is written."""


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the values in which two metrics documents differ: path, old value and new value.

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
    """Compare two metrics documents.

    Args:
        old: Contents of metrics.json.
        new: Contents that have just been computed.
        tolerance: Largest difference of a number that counts as equal.

    Returns:
        Whether the documents agree, and a sentence to print.

    Example:
        >>> describe_difference({"auroc": 0.9}, {"auroc": 0.8}, tolerance=1e-3)
        (False, 'differs from metrics.json in 1 value, e.g. auroc: 0.9 there, 0.8 here')
    """
    # Warnings are sentences about the other values, which are compared themselves.
    differing = [change for change in changes(old, new) if change[0] != "warnings"]
    if not differing:
        return True, "the same as metrics.json, to the last digit"

    def size(change: tuple[str, Any, Any]) -> float:
        _, before, after = change
        numbers = isinstance(before, int | float) and isinstance(after, int | float)
        return abs(before - after) if numbers else float("inf")

    path, before, after = max(differing, key=size)
    if size((path, before, after)) <= tolerance:
        return True, f"the same as metrics.json within {size((path, before, after)):.1e}"
    count = f"{len(differing)} value{'s' if len(differing) > 1 else ''}"
    return False, f"differs from metrics.json in {count}, e.g. {path}: {before} there, {after} here"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; None takes those of the process.

    Returns:
        Exit status: 0 if the table agrees with metrics.json or, with detectors or another protocol, has been printed;
        1 if it differs or cannot be computed; 130 if stopped by Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    with tolerant_terminal():
        command: Command = read_command_line(
            Command, args=args, prog="python -m fastood.evaluate", description=DESCRIPTION
        )
        from fastood.train.engine.group import Group

        try:
            group = Group.join()
        except (OSError, ValueError) as error:
            print(f"error: {printable_lines(str(error))}", file=sys.stderr)
            return 1
        with group, ExitStack() as held:
            code = _run(command, group, held)
        # An error if another process has failed while this one waited for all to finish.
        return code or int(group.ended is not None)


def _run(command: Command, group: Group, held: ExitStack) -> int:
    """Run the command; the lock of the run is released with `held`."""
    try:
        from fastood.train.report.results_table import print_metrics
        from fastood.train.run import Run
        from fastood.train.run_folder import RunFolder

        folder = RunFolder(expanded(command.run))
        if command.write and command.protocol is not None:
            raise ValueError(
                f"write must not be given with protocol {command.protocol}: metrics.json holds the run's own protocol"
            )
        config = folder.read_config()
        if command.protocol is not None:
            config = replace(config, protocol=PROTOCOLS[command.protocol])
        stored = folder.read_metrics()
        run = held.enter_context(Run.load(config, folder, device=command.device, write=command.write))
        if not run.is_first:
            # Every process fits the detectors and would print the warnings of the first one again.
            held.enter_context(warnings.catch_warnings(action="ignore"))
        if command.detectors:
            return evaluate_detectors(run, command)
        evaluation = run.evaluate()
    except (OSError, StageFailedError, TypeError, ValueError) as error:
        # The others may not have this error, and would wait for this process.
        group.fail(str(error))
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        group.fail("it was stopped")
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    except RuntimeError:
        if (ended := group.break_off()) is None:
            raise
        print(f"error: {ended}", file=sys.stderr)
        return 1
    if evaluation is None:
        return 0  # the first process prints and writes
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


def evaluate_detectors(run: Run, command: Command) -> int:
    """Score, print and, with `write`, store the detectors that the command names.

    Returns:
        Exit status 0.

    Raises:
        ValueError: If a name is unknown.
    """
    from fastood.detectors import detector_names
    from fastood.evaluate.detector_scores import score_detectors
    from fastood.evaluate.detectors_document import detectors_document
    from fastood.evaluate.printing import print_detectors, write_detectors

    names = detector_names() if command.detectors == ("all",) else command.detectors
    scores = score_detectors(run, names)
    run.end_sharing()
    if not run.is_first:
        return 0
    document = detectors_document(run, scores)
    print_detectors(document)
    if command.write:
        print(f"written: {', '.join(map(str, write_detectors(run.folder, document)))}")
    return 0
