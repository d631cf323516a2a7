"""Stages `smoke` and `tests`: the CUDA tests, where a skip is a failure."""

from __future__ import annotations

import re
from pathlib import Path

from .context import Context
from .record import Record
from .runner import Command, Finding, Stage

SMOKE = ("tests/ops/test_registration.py", "-k", "current_stream or cuda_equals_cpu")
ON_CUDA = re.compile(r"needs_cuda|\bdevice: str\b")
"""Marks of a test file that has CUDA tests: the marker, or the fixture that is marked with it."""
REHEARSED = ("tests/ops/test_logit_scores.py", "tests/ops/test_background_pool_cuda.py")


def cuda_test_files(root: Path) -> list[str]:
    """Return the test files with CUDA tests; other files would need packages that a bare machine lacks."""
    files = sorted((root / "tests").rglob("test_*.py"))
    return [str(path.relative_to(root)) for path in files if ON_CUDA.search(path.read_text())]


def counts(text: str) -> dict[str, int]:
    """Return the numbers of pytest's last line, such as passed and failed."""
    summary = re.compile(r"\d+ (passed|failed|errors?|skipped|deselected).* in [\d.]+s")
    lines = [line for line in text.splitlines() if summary.search(line)]
    found = re.findall(r"(\d+) (passed|failed|error|skipped|deselected|xfailed)", lines[-1]) if lines else []
    return {name: int(number) for number, name in found}


def so_far(text: str) -> dict[str, int]:
    """Return the numbers of a run that was stopped, from pytest's marks: a dot for a test that passed."""
    marks = "".join(re.findall(r"^([.FEsxX]+)(?: +\[ *\d+%\])?$", text, re.MULTILINE))
    found = {"passed": marks.count("."), "failed": marks.count("F"), "error": marks.count("E")}
    return {name: number for name, number in found.items() if number > 0}


def read_tests(context: Context, record: Record, text: str) -> Finding:
    """Read the numbers; a run in which no test passed has failed."""
    found = counts(text) or so_far(text)
    said = ", ".join(f"{number} {name}" for name, number in found.items() if name != "deselected")
    said += " so far" if said and not counts(text) else ""
    first = next((line.removeprefix("FAILED ") for line in text.splitlines() if line.startswith("FAILED ")), "")
    detail = "; first: ".join(filter(None, (said or "pytest printed no summary", first[:160])))
    return Finding(detail=detail, facts=dict(found), failed=found.get("passed", 0) == 0)


def _smoke(context: Context, record: Record) -> list[Command]:
    return [Command(argv=context.cuda_tests(*SMOKE))]


def _tests(context: Context, record: Record) -> list[Command]:
    files = list(REHEARSED) if context.rehearse else cuda_test_files(context.work)
    # Thousands of small tests: most of their time is the host's.
    parallel = [] if context.rehearse or "xdist" in record.missing else ["-n", "4"]
    return [Command(argv=context.cuda_tests("--durations=5", *parallel, *files))]


SMOKE_STAGE = Stage(
    name="smoke",
    budget=45,
    shows="whether a static CUDA runtime next to torch's own sees torch's tensors and streams",
    commands=_smoke,
    read=read_tests,
    needs="build",
)
TESTS = Stage(
    name="tests",
    budget=180,
    shows="whether every CUDA test passes, skips as failures",
    commands=_tests,
    read=read_tests,
    needs="build",
)
