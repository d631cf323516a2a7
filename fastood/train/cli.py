"""Program behind `python -m fastood.train`: a run is opened, trained, evaluated and reported."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from fastood.common.files import NO_ROOM
from fastood.console.names import printable_lines
from fastood.console.terminal import tolerant_terminal
from fastood.train.command import Command, complete_command, parse_command

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
    with tolerant_terminal(), ExitStack() as held:
        return _run(args, held)


def _run(args: Sequence[str], held: ExitStack) -> int:
    """Run the command line; `held` closes the run after errors have been printed."""
    started = time.monotonic()
    command = None
    try:
        command = complete_command(parse_command(args))
        # Imported late: help and wrong options do not wait for it.
        from fastood.train.engine.failure import StageFailedError
        from fastood.train.report.results_table import print_metrics
        from fastood.train.run import Run

        command_line = shlex.join(["python", "-m", "fastood.train", *args])
        run = held.enter_context(Run.open(command.config, command.path, resume=command.resume, command=command_line))
    except (OSError, TypeError, ValueError) as error:
        return _report(error, command)
    except KeyboardInterrupt:
        print("stopped before training began", file=sys.stderr)
        return 130
    try:
        run.fabric.print(f"run folder: {command.path}", flush=True)
        run.train(checkpoint_every=command.checkpoint_every)
        if not run.is_first:
            return 0
        evaluation = run.evaluate()
        run.report(evaluation)
    except (StageFailedError, OSError, ValueError) as error:
        return _report(error, command)
    except RuntimeError as error:
        if run.fabric.world_size == 1 or "onnection" not in str(error):
            raise
        print(f"error: another process of the group has ended: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        if run.is_first:
            print(f"{stopped or 'stopped'}\nresume with: {command.to_resume()}", file=sys.stderr)
        return 130
    print_metrics(evaluation.metrics)
    print(f"report: {command.path / 'report.html'}")
    print(f"total: {time.monotonic() - started:.0f} s")
    return SOME_FAILED if "failed" in evaluation.metrics else 0


def _report(error: Exception, command: Command | None) -> int:
    """Print an error, and on a full disk how to resume a run that has begun; return the exit code."""
    print(f"error: {printable_lines(str(error))}", file=sys.stderr)
    if command is not None and isinstance(error, OSError) and error.errno in NO_ROOM:
        from fastood.train.run_folder import CONFIG_NAME

        # Without a config, --resume would begin a run with the defaults.
        if (command.path / CONFIG_NAME).exists():
            print(f"make room, then resume with: {command.to_resume()}", file=sys.stderr)
    return 1
