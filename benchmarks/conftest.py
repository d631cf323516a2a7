"""Collection of comparisons, which are printed as ratios and written as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from fastood.common.files import write_atomically

sys.path.insert(0, str(Path(__file__).parent))
import harness
from harness import Comparison, Timing
from metadata import metadata

SCHEMA = 1
DIGITS = 4
"""Significant digits of a time or a ratio in the JSON; the rounds of one comparison differ in the second."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write the comparisons to this JSON file")
    parser.addoption("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--seconds", type=float, default=3.0, help="time to spend on each comparison")
    parser.addoption("--all-shapes", action="store_true", help="the whole grid where a benchmark has one, not a part")
    parser.addoption("--tiny", action="store_true", help="shapes of a rehearsal where a benchmark has them")
    parser.addoption("--profile", choices=["cuda", "torch"], help="profile one call of each subject after timing it")
    parser.addoption("--quick", action="store_true", help="a few rounds of each, to see that every benchmark runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a benchmark with a `dtype` in float32 and, on a GPU, also in bfloat16."""
    if "dtype" in metafunc.fixturenames:
        on_gpu = metafunc.config.getoption("--device") == "cuda"
        metafunc.parametrize("dtype", [torch.float32, torch.bfloat16] if on_gpu else [torch.float32], ids=str)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Callable) -> Callable[[Comparison, Callable[[], object]], None]:
    """Store a comparison for the summary and the JSON; pytest-benchmark times the subject for its own report."""

    def keep(comparison: Comparison, subject: Callable[[], object]) -> None:
        if request.config.getoption("--profile") is not None:
            profile(subject, request.config.getoption("--profile"))
            return
        rows = request.config.stash.setdefault(ROWS, [])
        rows.append(comparison)
        write_results(request.config, rows)
        benchmark.extra_info["comparison"] = comparison.as_json()
        benchmark.pedantic(subject, rounds=5, iterations=1)

    return keep


def profile(subject: Callable[[], object], profiler: str) -> None:
    """Call the subject once, between the marks that an outer profiler looks for, or under torch's own profiler."""
    torch.cuda.synchronize()
    if profiler == "cuda":
        torch.cuda.cudart().cudaProfilerStart()
        subject()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        subject()
        torch.cuda.synchronize()
    print(profiled.key_averages().table(sort_by="self_device_time_total", row_limit=20))


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> bool:
    """Return whether to use the tiny shapes of a rehearsal; the buffer that flushes the caches is then small, too."""
    if request.config.getoption("--tiny"):
        harness.L2_FLUSH_BYTES = 1 << 16
    return bool(request.config.getoption("--tiny"))


@pytest.fixture(scope="session")
def budget(request: pytest.FixtureRequest) -> dict[str, float]:
    """Return the time to spend on each comparison."""
    return (
        {"seconds": 0.05, "min_rounds": 2}
        if request.config.getoption("--quick")
        else {"seconds": request.config.getoption("--seconds")}
    )


ROWS: pytest.StashKey[list[Comparison]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    console = Console(width=max(terminalreporter._tw.fullwidth, 130))
    for op in dict.fromkeys(row.op for row in rows):
        of_op = [row for row in rows if row.op == op]
        peers = dict.fromkeys(name for row in of_op for name in row.timings if name != row.subject)
        table = Table(
            title=f"{op}: times {of_op[0].subject} is faster than each peer (20-80 % over rounds)", title_justify="left"
        )
        for heading in ("shape", "dtype", "thr", f"{of_op[0].subject} [ms]", "x floor", *peers):
            table.add_column(heading, justify="left" if heading in ("shape", "dtype") else "right")
        for row in of_op:
            ours = row.timings[row.subject]
            over_floor = "" if row.floor is None else f"{ours.median / row.floor:.1f}"
            shape = row.shape if ours.peak_bytes is None else f"{row.shape}, peak {ours.peak_bytes / 2**20:.0f} MiB"
            cells = [cell(row.timings.get(peer)) for peer in peers]
            table.add_row(shape, row.dtype, str(row.threads), f"{ours.median * 1e3:.3f}", over_floor, *cells)
        console.print(table)
    if config.getoption("--results") is not None:
        console.print(f"results: {config.getoption('--results')}")


def cell(timing: Timing | None) -> str:
    """Format a ratio with its spread and, if it was measured, the peak memory."""
    if timing is None:
        return ""
    text = f"{timing.ratio:.2f} ({timing.ratio_p20:.2f}-{timing.ratio_p80:.2f})"
    return text if timing.peak_bytes is None else f"{text} {timing.peak_bytes / 2**20:.0f} MiB"


def write_results(config: pytest.Config, rows: list[Comparison]) -> None:
    """Write the rows so far, each on one line: an interrupted run keeps its complete rows."""
    path: Path | None = config.getoption("--results")
    if path is None:
        return
    write_atomically(path, as_text(metadata(config.getoption("--device")), [row.as_json() for row in rows]).encode())


def as_text(metadata: dict[str, object], rows: list[dict[str, object]]) -> str:
    """Format metadata and rows as JSON, with each row on one line."""
    lines = ",\n  ".join(json.dumps(rounded(row), sort_keys=True) for row in rows)
    head = f'"schema": {SCHEMA},\n "metadata": {json.dumps(metadata, sort_keys=True)}'
    return f'{{\n {head},\n "rows": [\n  {lines}\n ]\n}}\n'


def rounded(value: Any) -> Any:
    """Round every float in a plain value to `DIGITS` significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
