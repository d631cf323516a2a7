"""Stage `train`: every method of `fastood.train` with `--device cuda`, on the embedded digits, shortened."""

from __future__ import annotations

import json

from .context import Context
from .record import Record
from .runner import Command, Finding, Stage


def _commands(context: Context, record: Record) -> list[Command]:
    shortened = ["--factor", "1000", "--methods", "ice", "resample"] if context.rehearse else ["--factor", "3"]
    return [Command(argv=context.module("benchmarks.gpu.train_methods", "--device", "cuda", *shortened))]


def read_training(context: Context, record: Record, text: str) -> Finding:
    """Read one line of JSON for each method; a method without one was not trained."""
    results = [json.loads(line.removeprefix("METHOD ")) for line in text.splitlines() if line.startswith("METHOD ")]
    expected = next((line.split()[1:] for line in text.splitlines() if line.startswith("METHODS ")), [])
    trained = [result["method"] for result in results if result["error"] is None]
    wrong = [f"{result['method']}: {result['error']}" for result in results if result["error"] is not None]
    left = [name for name in expected if name not in {result["method"] for result in results}]
    least = min((min(r["accuracy"].values()) for r in results if r["error"] is None and r["checked"]), default=None)
    detail = f"{len(trained)} of {len(expected)} methods train to finite metrics"
    detail += "" if least is None else f", the least accuracy is {least:.2f}"
    if wrong:
        detail += f"; {wrong[0][:160]}"
    if left:
        detail += f"; not reached: {', '.join(left)}"
    return Finding(detail=detail, facts={"results": results}, failed=bool(wrong) or bool(left) or not trained)


TRAIN = Stage(
    name="train",
    budget=210,
    shows="whether all 13 methods train on the GPU: finite metrics, an accuracy far above chance",
    commands=_commands,
    read=read_training,
    needs="build",
)
