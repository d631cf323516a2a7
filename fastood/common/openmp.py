"""Waiting of OpenMP's threads: to be settled before torch is imported, which loads their library."""

import os
import sys

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_quietly() -> None:
    """Let idle threads of this program's commands sleep instead of spin, unless the environment says otherwise.

    Steps of a small network are many short parallel regions. Threads that spin at the end of each take the core that
    the last one needs as soon as anything else runs on the machine. Another program that imports fastood is left alone.
    """
    is_command = any(
        option == "-m" and module.partition(".")[0] == "fastood"
        for option, module in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    )
    if is_command and not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
