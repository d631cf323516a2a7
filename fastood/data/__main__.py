"""Work with image data: `python -m fastood.data list`."""

import sys
from collections.abc import Sequence

import tyro

from fastood.data.list_command import ListCommand


def main(args: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 on success, 1 if the command failed.
    """
    command: ListCommand = tyro.extras.subcommand_cli_from_dict(
        {"list": ListCommand},
        args=args,
        prog="python -m fastood.data",
        description="Work with image data.",
    )
    try:
        return command.run()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
