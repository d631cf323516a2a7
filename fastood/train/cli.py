"""Program behind `python -m fastood.train`: a run is opened, trained, evaluated and reported."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from fastood.common.distributed import exchange
from fastood.common.files import NO_ROOM
from fastood.console.names import printable_lines
from fastood.console.terminal import tolerant_terminal
from fastood.train.command import Command, complete_command, parse_command
from fastood.train.engine.group import Group, outcome_of_first
from fastood.train.engine.interrupt import TrainingInterrupted

SOME_FAILED = 3
"""Exit code of a run that is finished but lacks some of its arms."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; None takes those of this process.

    Returns:
        0 at the end of a run; 3 at its end if training failed in some of its arms; 1 after an error, or if training
        failed in every arm; 130 if stopped by Ctrl-C. (2 is the exit code of a wrong option.)
    """
    args = sys.argv[1:] if args is None else args
    with tolerant_terminal():
        if {"-h", "--help", "--help-all"} & set(args):
            parse_command(args)
        try:
            group = Group.join()
        except (OSError, ValueError) as error:
            return _report(error, None)
        with group, ExitStack() as held:
            code = _run(args, group, held)
        # An error if another process has failed while this one waited for all to finish.
        return code or int(group.ended is not None)


def _run(args: Sequence[str], group: Group, held: ExitStack) -> int:
    """Run the command line; `held` closes the run after errors have been printed."""
    started = time.monotonic()
    command = None
    try:
        command = _agreed_command(args, group)
        # Imported late: help and wrong options do not wait for it.
        from fastood.train.engine.failure import StageFailedError
        from fastood.train.report.results_table import print_metrics
        from fastood.train.run import Run

        command_line = shlex.join(["python", "-m", "fastood.train", *args])
        run = held.enter_context(Run.open(command.config, command.path, resume=command.resume, command=command_line))
    except (OSError, TypeError, ValueError) as error:
        group.fail(str(error))
        return _report(error, command)
    except RuntimeError as error:
        return _broken(error, group)
    except KeyboardInterrupt:
        group.fail("it was stopped before training began")
        print("stopped before training began", file=sys.stderr)
        return 130
    try:
        run.fabric.print(f"run folder: {command.path}", flush=True)
        run.train(checkpoint_every=command.checkpoint_every)
        evaluation = run.evaluate()
        if evaluation is None:
            return 0  # the first process writes the results
        run.report(evaluation)
    except (StageFailedError, OSError, ValueError) as error:
        group.fail(str(error))
        return _report(error, command)
    except RuntimeError as error:
        return _broken(error, group)
    except TrainingInterrupted as stopped:
        if run.is_first:
            print(f"{stopped}\nresume with: {command.to_resume()}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        group.fail("it was stopped")
        if run.is_first:
            print(f"stopped\nresume with: {command.to_resume()}", file=sys.stderr)
        return 130
    print_metrics(evaluation.metrics)
    print(f"report: {command.path / 'report.html'}")
    print(f"total: {time.monotonic() - started:.0f} s")
    return SOME_FAILED if "failed" in evaluation.metrics else 0


def _agreed_command(args: Sequence[str], group: Group) -> Command:
    """Return the command of the first process, which alone reads recipe and run: other nodes may lack the files.

    Raises:
        SystemExit: If an option is wrong; on every process.
        ValueError: If options exclude each other, or the processes have different command lines; on every process.
    """
    if group.launch.processes == 1:
        return complete_command(parse_command(args))

    def parse() -> Command | int:
        try:
            return complete_command(parse_command(args))
        except SystemExit as wrong:
            return wrong.code if isinstance(wrong.code, int) else 1

    every = exchange(list(args))
    for rank, other in enumerate(every):
        if other != every[0]:
            raise ValueError(
                f"every process must have the same command line, got {shlex.join(every[0])} on rank 0 and "
                f"{shlex.join(other)} on rank {rank}"
            )
    outcome = outcome_of_first(parse)
    if isinstance(outcome, int):
        raise SystemExit(outcome)
    return outcome


def _broken(error: RuntimeError, group: Group) -> int:
    """Print which other process has ended, and return the exit code; raise `error` if none has."""
    ended = group.break_off()
    if ended is None:
        raise error
    print(f"error: {ended}", file=sys.stderr)
    return 1


def _report(error: Exception, command: Command | None) -> int:
    """Print an error, and on a full disk how to resume a run that has begun; return the exit code."""
    print(f"error: {printable_lines(str(error))}", file=sys.stderr)
    if command is not None and isinstance(error, OSError) and error.errno in NO_ROOM:
        from fastood.train.run_folder import CONFIG_NAME

        # Without a config, --resume would begin a run with the defaults.
        if (command.path / CONFIG_NAME).exists():
            print(f"make room, then resume with: {command.to_resume()}", file=sys.stderr)
    return 1
