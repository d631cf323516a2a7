"""Collects comparisons, prints them as ratios, writes them as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

import fastood
from fastood.files import write_atomically

sys.path.insert(0, str(Path(__file__).parent))
from harness import Comparison, copy_bandwidth

SCHEMA = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write the comparisons to this JSON file")
    parser.addoption("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--seconds", type=float, default=3.0, help="time to spend on each comparison")
    parser.addoption("--quick", action="store_true", help="a few rounds of each, to see that every benchmark runs")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def bandwidth(device: str) -> float:
    return copy_bandwidth(device)


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Callable) -> Callable[[Comparison, Callable[[], object]], None]:
    """Keep a comparison for the summary and the JSON; pytest-benchmark times the subject for its own report."""

    def keep(comparison: Comparison, subject: Callable[[], object]) -> None:
        rows = request.config.stash.setdefault(ROWS, [])
        rows.append(comparison)
        write_results(request.config, rows)
        benchmark.extra_info["comparison"] = comparison.as_json()
        benchmark.pedantic(subject, rounds=5, iterations=1)

    return keep


@pytest.fixture(scope="session")
def budget(request: pytest.FixtureRequest) -> dict[str, float]:
    """Time to spend on each comparison."""
    return (
        {"seconds": 0.05, "min_rounds": 2}
        if request.config.getoption("--quick")
        else {"seconds": request.config.getoption("--seconds")}
    )


ROWS: pytest.StashKey[list[Comparison]] = pytest.StashKey()


def metadata(device: str) -> dict[str, object]:
    """What must match before two files of results may be compared."""
    info = {
        "git_sha": os.environ.get("FASTOOD_GIT_SHA") or output_of("git", "rev-parse", "HEAD") or "unknown",
        "git_dirty": os.environ.get("FASTOOD_GIT_DIRTY") == "1"
        or bool(output_of("git", "status", "--porcelain", "-uno")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor_name(),
        "device": device,
        "build": {name: value for name, value in fastood.build_info().items() if name != "cuda_reason"},
    }
    if device == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        info |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver}
    return info


def output_of(*command: str) -> str:
    """What a command prints, or nothing where it is not installed or fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def processor_name() -> str:
    """The CPU's model, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    console = Console(width=max(terminalreporter._tw.fullwidth, 130))
    for op in dict.fromkeys(row.op for row in rows):
        of_op = [row for row in rows if row.op == op]
        peers = [name for name in of_op[0].timings if name != of_op[0].subject]
        table = Table(
            title=f"{op}: times {of_op[0].subject} is faster than each peer (20-80 % over rounds)", title_justify="left"
        )
        for heading in ("shape", "dtype", "thr", f"{of_op[0].subject} [ms]", "x floor", *peers):
            table.add_column(heading, justify="left" if heading in ("shape", "dtype") else "right")
        for row in of_op:
            ours = row.timings[row.subject]
            over_floor = "" if row.floor is None else f"{ours.median / row.floor:.1f}"
            cells = [f"{t.ratio:.2f} ({t.ratio_p20:.2f}-{t.ratio_p80:.2f})" for t in (row.timings[p] for p in peers)]
            table.add_row(row.shape, row.dtype, str(row.threads), f"{ours.median * 1e3:.3f}", over_floor, *cells)
        console.print(table)
    if config.getoption("--results") is not None:
        console.print(f"results: {config.getoption('--results')}")


def write_results(config: pytest.Config, rows: list[Comparison]) -> None:
    """Write what there is so far: a run that is cut short keeps its finished rows."""
    path: Path | None = config.getoption("--results")
    if path is None:
        return
    content = {
        "schema": SCHEMA,
        "metadata": metadata(config.getoption("--device")),
        "rows": [row.as_json() for row in rows],
    }
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
