"""Stages of compute-sanitizer: memcheck, racecheck, synccheck and initcheck over small shapes of every kernel."""

from __future__ import annotations

import re
from functools import partial

from .context import Context
from .record import Record
from .runner import Command, Finding, Stage
from .tests import counts

FILES = [
    f"tests/ops/test_{name}.py"
    for name in (
        "outlier_loss",
        "logit_scores",
        "background_pool_cuda",
        "mahalanobis_logits",
        "mahalanobis_cuda",
        "class_l1_nearest",
        "detection_metrics_cuda",
        "augment_images",
    )
]
SMALL = " or ".join(
    (
        # Every group width: 4, 16 and 32 lanes, a block.
        "special_rows",
        "(float32 and (value_and_grad or float64_reference)"
        " and (33x2- or 33x10 or 7x129 or 7x1025 or 0x10- or top100))",
        # A warp's rows of one and two, tiles of 32, every edge of a block of columns; near pairs.
        "near_pairs or bad_row or (float32 and (17x5x or (equals_the_cpu and 1100)))",
        # Tied scores of every count, and replicates of more than a tile.
        "(statistics_are_those_of_the_cpu and float32 and tied) or (replicates and 700)",
        # Lanes past the last feature, and keys past the last one.
        "what_has_no_key or (float32 and 20x70x33)",
        "background_pool",
        "augment",
    )
)
OPTIONS: dict[str, list[str]] = {
    "memcheck": [],
    # The other tools watch the project's kernels alone: torch's take most of the time and are not under test.
    "racecheck": ["--racecheck-report", "all", "--kernel-name", "kernel_substring=fastood"],
    "synccheck": ["--kernel-name", "kernel_substring=fastood"],
    "initcheck": ["--kernel-name", "kernel_substring=fastood"],
}
BUDGETS = {"memcheck": 100, "racecheck": 100, "synccheck": 50, "initcheck": 50}
SHOWS = {
    "memcheck": "accesses out of bounds",
    "racecheck": "races in shared memory",
    "synccheck": "invalid barriers",
    "initcheck": "reads of memory that was never written",
}
ERROR_EXIT = "9"


def _commands(tool: str, context: Context, record: Record) -> list[Command]:
    sanitizer = [context.tool("compute-sanitizer"), "--tool", tool, *OPTIONS[tool]]
    # Python may take more than the default 60 s to its first kernel.
    sanitizer += ["--error-exitcode", ERROR_EXIT, "--launch-timeout", "120", "--target-processes", "all"]
    chosen = FILES[1:2] if context.rehearse else FILES
    argv = [*sanitizer, *context.cuda_tests(*chosen, "-k", SMALL)]
    # Without torch's cache each tensor is an allocation, so that a write past its end is seen.
    return [Command(argv=argv, env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})]


def read_sanitizer(context: Context, record: Record, text: str) -> Finding:
    """Count the errors; a run without the sanitizer's summary, or without a test that passed, has failed."""
    summary = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    passed = counts(text).get("passed", 0)
    first = next((line for line in text.splitlines() if re.match(r"=+ (Invalid|Error|Race|Uninit|Barrier)", line)), "")
    if not summary:
        return Finding(detail=f"no summary of the sanitizer; {passed} tests passed", failed=True)
    errors = sum(int(one or two) for one, two in summary)
    detail = f"{errors} errors in {passed} tests" + (f"; first: {first.strip('= ')[:120]}" if first else "")
    return Finding(detail=detail, facts={"errors": errors, "tests": passed}, failed=errors > 0 or passed == 0)


STAGES = [
    Stage(
        name=tool,
        budget=BUDGETS[tool],
        shows=SHOWS[tool],
        commands=partial(_commands, tool),
        read=read_sanitizer,
        needs="build",
    )
    for tool in OPTIONS
]
