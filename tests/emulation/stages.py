"""The stages of `make emulated`: their commands, the variant that each loads, and the summary of their output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.emulation import coverage, variants
from tests.emulation.reasons import Reasons
from tests.emulation.sources import ROOT

LOGS = variants.BUILD / "log"
TIMEOUT = 3600
"""Seconds after which a stage is ended."""


@dataclass(frozen=True)
class Result:
    """Outcome of a stage."""

    passed: bool
    summary: str
    seconds: float
    cpu: float = 0.0
    """CPU seconds of the process and of those that it waited for."""
    log: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A part of `make emulated`."""

    name: str
    part: str
    """Stages of the command line: build, selftest, workload, suites, sanitizers, coverage or mutations."""
    variant: str
    run: Callable[[], Result]
    first: bool = False
    """Whether the stage is a build, before all others."""
    alone: bool = False
    """Whether the stage occupies all cores, after all others."""
    also: tuple[str, ...] = ()
    """Other variants that the stage needs."""


@dataclass(frozen=True)
class Ran:
    """Outcome of a process."""

    status: int
    output: str
    seconds: float
    cpu: float


def command(variant: str, arguments: Sequence[str], log: str) -> Ran:
    """Run python with a variant's environment; its output goes to a log as well."""
    before, environment = variants.launcher(variant)
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{log}.log"
    start = time.perf_counter()
    with path.open("w") as output:
        process = subprocess.Popen(
            [*before, sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        # os.wait4 returns the CPU time, process.wait does not.
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        watchdog.cancel()
    seconds = time.perf_counter() - start
    text = path.read_text(errors="replace")
    if seconds >= TIMEOUT:
        text += f"\nended after {TIMEOUT} s: a block may be stuck\n"
    return Ran(process.returncode, text, seconds, usage.ru_utime + usage.ru_stime)


def last_line(output: str) -> str:
    """Return the last line that is not empty."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def build_stage(variant: str, jobs: int) -> Stage:
    """Return the stage that compiles a variant."""

    def run() -> Result:
        start = time.perf_counter()
        variants.build(variant, jobs)
        return Result(True, "built", time.perf_counter() - start)

    return Stage(f"build {variant}", "build", variant, run, first=True)


def module_stage(
    name: str, part: str, variant: str, arguments: Sequence[str], alone: bool = False, also: tuple[str, ...] = ()
) -> Stage:
    """Return a stage that is a module of this package, which prints its summary last."""

    def run() -> Result:
        log = name.replace(" ", "-")
        ran = command(variant, ["-m", *arguments], log)
        return Result(ran.status == 0, last_line(ran.output), ran.seconds, ran.cpu, ran.output)

    return Stage(name, part, variant, run, alone=alone, also=also)


def pytest_stage(name: str, part: str, variant: str, arguments: Sequence[str], also: tuple[str, ...] = ()) -> Stage:
    """Return a stage that runs tests by pytest; a run that selects no test proves nothing and fails."""

    def run() -> Result:
        options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        ran = command(variant, options, name.replace(" ", "-"))
        found = re.search(r"(\d+) passed", last_line(ran.output))
        passed = int(found[1]) if found else 0
        succeeded = ran.status == 0 and passed > 0
        return Result(succeeded, last_line(ran.output), ran.seconds, ran.cpu, ran.output, {"tests": passed})

    return Stage(name, part, variant, run, also=also)


def suite_stage(name: str, arguments: Sequence[str]) -> Stage:
    """Return a stage that runs tests of the package on the emulated device."""
    plugin = ["-p", "tests.emulation.plugin", "--emulated", str(variants.object_of("plain"))]
    return pytest_stage(name, "suites", "plain", [*plugin, *arguments])


def coverage_stage(folder: Path) -> Stage:
    """Return the stage that runs the workload with counters, and reads them."""

    def run() -> Result:
        variants.GCOV.path()
        coverage.reset(folder)
        arguments = ["-m", "tests.emulation.workload", str(variants.object_of("coverage"))]
        ran = command("coverage", arguments, "coverage")
        found = coverage.read(folder)
        problems = coverage.report(found, Reasons.read(coverage.UNCOVERED))
        summary = f"{100 * found.fraction:.2f} % of {found.num_lines} lines"
        text = "\n".join([ran.output] * (ran.status != 0) + problems)
        numbers = {"fraction": found.fraction, "lines": found.num_lines, "files": found.by_file()}
        numbers["kernels"] = found.kernels()
        return Result(ran.status == 0 and not problems, summary, ran.seconds, ran.cpu, text, numbers)

    return Stage("coverage", "coverage", "coverage", run)
