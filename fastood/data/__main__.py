"""Work with image data: `python -m fastood.data list`, `pack`, `info`, `verify`."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from fastood.console.command_line import read_command_line
from fastood.console.names import printable_lines
from fastood.console.terminal import tolerant_terminal
from fastood.data.commands.list import ListCommand
from fastood.data.commands.pack import InfoCommand, PackCommand, VerifyCommand

Command = (
    Annotated[ListCommand, tyro.conf.subcommand("list")]
    | Annotated[PackCommand, tyro.conf.subcommand("pack")]
    | Annotated[InfoCommand, tyro.conf.subcommand("info")]
    | Annotated[VerifyCommand, tyro.conf.subcommand("verify")]
)

DESCRIPTION = """Work with image data.

Examples:

  python -m fastood.data list
  python -m fastood.data pack folder:pictures pools/pictures
  python -m fastood.train oe --data.background packed:pools/pictures
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 1 if the command failed or found damage, 130 if stopped by Ctrl-C.
    """
    with tolerant_terminal():
        return _run(args)


def _run(args: Sequence[str] | None) -> int:
    command: ListCommand | PackCommand | InfoCommand | VerifyCommand = read_command_line(
        Command,
        args=sys.argv[1:] if args is None else args,
        prog="python -m fastood.data",
        description=DESCRIPTION,
    )
    try:
        return command.run()
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {printable_lines(str(error).removeprefix('data.'))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; repeat the command to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
