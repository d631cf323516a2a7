"""Stages of times: the goals first, then every benchmark of a GPU with its peers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .context import Context
from .record import Record
from .runner import Command, Finding, Stage
from .tests import read_tests

PYTEST = ("pytest", "-q", "-rs", "-p", "no:cacheprovider", "-o", "addopts=", "--device", "cuda", "--benchmark-disable")
FILES: dict[str, tuple[int, str, tuple[str, ...], str]] = {
    # stage: budget, seconds for each comparison, files, selection in a rehearsal
    "times-losses": (120, "0.3", ("test_outlier_losses_cuda.py", "test_outlier_losses.py"), "test_ice and 256-10"),
    "times-pool": (60, "0.3", ("test_background_pool.py",), "sparse_step and 1280000-256-1.0"),
    "times-metrics": (45, "0.5", ("test_detection_metrics.py",), "test_metrics and 64x"),
    "times-head": (60, "0.3", ("test_mahalanobis_logits.py",), "128x10x64"),
    "times-nearest": (45, "0.3", ("test_class_l1_nearest.py",), "60"),
    "times-scores": (30, "0.3", ("test_logit_scores.py",), "256-10"),
    "times-augment": (45, "0.5", ("test_augment_images.py",), "128"),
    "times-step": (60, "2", ("test_resampling_step.py",), "small-cnn"),
    "times-loading": (45, "1", ("test_image_loading.py",), "memory"),
}


def benchmark(context: Context, files: Sequence[str], seconds: str, *more: str) -> Command:
    """Return the command that runs files of benchmarks and keeps their rows."""
    tiny = ["--tiny", "--quick"] if context.rehearse else []
    paths = [f"benchmarks/{name}" for name in files]
    argv = context.module(*PYTEST, *paths, "--seconds", seconds, "--results", str(context.rows), *tiny, *more)
    return Command(argv=argv)


def read_rows(context: Context, record: Record, text: str) -> Finding:
    """Read pytest's numbers, and name the comparisons that were skipped."""
    finding = read_tests(context, record, text)
    skipped = [line.removeprefix("SKIPPED ") for line in text.splitlines() if line.startswith("SKIPPED")]
    return Finding(detail=finding.detail, facts={**finding.facts, "skips": skipped}, failed=finding.failed)


def _goals(context: Context, record: Record) -> list[Command]:
    return [benchmark(context, ["test_gpu_goals.py"], "0.5")]


def _files(name: str, context: Context, record: Record) -> list[Command]:
    _, seconds, files, rehearsed = FILES[name]
    return [benchmark(context, files, seconds, *(["-k", rehearsed] if context.rehearse else []))]


GOALS_STAGE = Stage(
    name="goals",
    budget=120,
    shows="how far each goal is, next to the floors and the peers of the same run",
    commands=_goals,
    read=read_rows,
    needs="build",
)
STAGES = [
    Stage(
        name=name,
        budget=budget,
        shows=f"times next to peers: {', '.join(files)}",
        commands=partial(_files, name),
        read=read_rows,
        needs="build",
    )
    for name, (budget, _, files, _) in FILES.items()
]
