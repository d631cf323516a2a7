"""Stage `kernels`: names of the project's kernels that ran in tests that passed, and the pytest plugin that lists them.

`proven.json` of the results is the record that `python benchmarks/cuda_status.py proven` takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .context import Context, StageNotPossible, capability
from .record import PROVEN, Record, write_atomically
from .runner import Command, Finding, Stage
from .sanitize import FILES, SMALL
from .tests import counts, read_tests

if TYPE_CHECKING:
    import pytest

LINE = "KERNEL "


def pytest_runtestloop(session: pytest.Session) -> Iterator[object]:
    """Run the tests under torch's profiler, and print the name of each kernel that ran."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        result = yield
        torch.cuda.synchronize()
    for name in sorted({event.key for event in profiled.key_averages()}):
        print(f"\n{LINE}{name}")
    return result


try:
    import pytest

    pytest_runtestloop = pytest.hookimpl(wrapper=True)(pytest_runtestloop)
except ImportError:
    pass


def _commands(context: Context, record: Record) -> list[Command]:
    if context.rehearse:
        raise StageNotPossible("the emulated device has no profiler that lists kernels")
    return [Command(argv=context.cuda_tests("-p", "benchmarks.gpu.kernel_names", "-s", *FILES, "-k", SMALL))]


def read_kernels(context: Context, record: Record, text: str) -> Finding:
    """Keep the names of the project's kernels, if all tests passed."""
    names = sorted(set(re.findall(rf"^{LINE}(.*fastood.*)$", text, re.MULTILINE)))
    found = counts(text)
    if not names or found.get("failed", 0) + found.get("error", 0) > 0:
        return Finding(detail=f"{read_tests(context, record, text).detail}; {len(names)} kernels", failed=True)
    proven = {"by": record.machine.get("gpu"), "variants": [capability(context)], "kernels": names}
    write_atomically(context.out / PROVEN, json.dumps(proven, indent=1).encode())
    return Finding(detail=f"{len(names)} instances of kernels ran in {found['passed']} tests", facts={"kernels": names})


KERNELS = Stage(
    name="kernels",
    budget=45,
    shows="which kernels have run on this GPU",
    commands=_commands,
    read=read_kernels,
    needs="build",
)
