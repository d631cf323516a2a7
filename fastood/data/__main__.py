"""Work with image data: `python -m fastood.data list`, `pack`, `info`, `verify`."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from fastood.data.list_command import ListCommand
from fastood.data.pack_command import InfoCommand, PackCommand, VerifyCommand
from fastood.terminal import tolerant_terminal

Command = (
    Annotated[ListCommand, tyro.conf.subcommand("list")]
    | Annotated[PackCommand, tyro.conf.subcommand("pack")]
    | Annotated[InfoCommand, tyro.conf.subcommand("info")]
    | Annotated[VerifyCommand, tyro.conf.subcommand("verify")]
)


def main(args: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 on success, 1 if the command failed or found damage, 130 if stopped by Ctrl-C.
    """
    with tolerant_terminal():
        return _run(args)


def _run(args: Sequence[str] | None) -> int:
    command: ListCommand | PackCommand | InfoCommand | VerifyCommand = tyro.cli(
        Command,
        args=args,
        prog="python -m fastood.data",
        description="Work with image data.",
    )
    try:
        return command.run()
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {str(error).removeprefix('data.')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
