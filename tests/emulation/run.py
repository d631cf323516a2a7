"""Any module or script with the emulated device on, as `python` would run it.

`python -m tests.emulation.run [--so SO] -m fastood.train msp --device cuda …`, or a path instead of `-m MODULE`.
Without `--so` the shared object of `build/emulated/plain` is used, if it is there, and else the kernels of the CPU.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from tests.emulation import kernels
from tests.emulation.device import emulated_cuda

_USAGE = "usage: python -m tests.emulation.run [--so SO] (-m MODULE | SCRIPT) [ARGUMENT …]"


def main(args: list[str]) -> None:
    """Run the module or script of a command line.

    Args:
        args: The command line without the name of this program.

    Raises:
        SystemExit: If the command line has neither a module nor a script.
    """
    path = kernels.DEFAULT if kernels.DEFAULT.exists() else None
    if args[:1] == ["--so"]:
        if len(args) < 2:
            raise SystemExit(_USAGE)
        path, args = Path(args[1]), args[2:]
    is_module = args[:1] == ["-m"]
    args = args[1:] if is_module else args
    if not args:
        raise SystemExit(_USAGE)
    if path is not None:
        kernels.load(path)
    sys.argv = args
    with emulated_cuda():
        if is_module:
            runpy.run_module(args[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(args[0]).parent))
            runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
