"""Wait policy of OpenMP threads, to be set before torch is imported, which loads the OpenMP library."""

import os
import sys

__all__ = ["SETTINGS", "wait_quietly"]

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_quietly() -> None:
    """Let idle OpenMP threads sleep instead of spin in commands of fastood, unless the environment sets a policy.

    Steps of a small network are many short parallel regions. As soon as anything else runs on the machine, threads that
    spin at the end of a region take the core that the last thread needs. Other programs that import fastood keep their
    policy.
    """
    is_command = any(
        option == "-m" and module.partition(".")[0] == "fastood"
        for option, module in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    )
    if is_command and not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
