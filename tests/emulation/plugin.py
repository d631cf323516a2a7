"""Pytest plugin: tests of CUDA without a GPU.

- `pytest -p tests.emulation.plugin --emulated SO` runs the tests marked needs_cuda on the emulated device.
- `pytest -p tests.emulation.plugin --emulated SO --emulated-as-cpu` runs tests of the CPU on the CUDA kernels.

SO is the shared object of `csrc/emulation`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read by tests/conftest.py when it is imported: a CUDA test that skips has failed.
os.environ["FASTOOD_REQUIRE_CUDA"] = "1"

from tests.emulation import as_cpu, kernels
from tests.emulation.device import emulated_cuda
from tests.emulation.exceptions import AS_CPU, ON_DEVICE


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emulation")
    group.addoption("--emulated", type=Path, metavar="SO", help="shared object of csrc/emulation")
    group.addoption("--emulated-as-cpu", action="store_true", help="run the CUDA kernels on tensors of the CPU")
    group.addoption("--emulated-seed", type=int, default=1, help="order of threads and blocks; 0: in order")
    group.addoption("--emulated-max-blocks", type=int, default=0, help="cap of every grid; 0: none")
    group.addoption("--emulated-report", type=Path, help="JSON file for the numbers of tests and launches")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("emulated")
    if path is None:
        raise pytest.UsageError("tests.emulation.plugin needs --emulated SO, the shared object of csrc/emulation")
    config.pluginmanager.register(_Emulation(config, kernels.load(path)), "emulation")


class _Emulation:
    """One session on the emulated kernels."""

    def __init__(self, config: pytest.Config, loaded: kernels.EmulatedKernels) -> None:
        self.kernels = loaded
        self.seed: int = config.getoption("emulated_seed")
        self.max_blocks: int = config.getoption("emulated_max_blocks")
        self.as_cpu: bool = config.getoption("emulated_as_cpu")
        self.report: Path | None = config.getoption("emulated_report")
        self.outcomes: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        loaded.set_seed(self.seed)
        if self.max_blocks > 0:
            loaded.set_max_blocks(self.max_blocks)
        if self.as_cpu:
            as_cpu.install()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        exceptions = AS_CPU if self.as_cpu else ON_DEVICE
        kept, left_out = [], []
        for item in items:
            runs = ("needs_cuda" in item.keywords) != self.as_cpu and not isinstance(item, pytest.DoctestItem)
            reason = next((why for part, why in exceptions.items() if part in item.nodeid), None)
            if runs and reason is not None:
                self.left_out[item.nodeid] = reason
            (kept if runs and reason is None else left_out).append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.as_cpu:
            return (yield)
        with emulated_cuda():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] = self.outcomes.get(report.outcome, 0) + 1

    def pytest_sessionfinish(self) -> None:
        if self.report is None:
            return
        summary = {
            "mode": "as-cpu" if self.as_cpu else "device",
            "seed": self.seed,
            "max_blocks": self.max_blocks,
            "passed": self.outcomes.get("passed", 0),
            "failed": self.outcomes.get("failed", 0),
            "skipped": self.outcomes.get("skipped", 0),
            "left_out": self.left_out,
            "kernels_launched": self.kernels.num_launches(),
        }
        self.report.write_text(json.dumps(summary, indent=2) + "\n")
