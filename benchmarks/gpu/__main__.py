"""Command line of the GPU run: `python -m benchmarks.gpu OUT [--minutes 10] [--resume] [--stages a,b] [--list]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import verdict
from .build import restore_extension
from .context import ROOT, Context, copy_tree, find_tools, source_hash
from .record import STATE, VERDICT, Record, restore_logs, write_atomically
from .runner import Stopped, recover, run_stages
from .stages import STAGES


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="folder of results (default: benchmarks/results/gpu-DATE)")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of this call (default 30)")
    parser.add_argument("--stages", help="names separated by commas; run even if they have a result")
    parser.add_argument("--resume", action="store_true", help="continue an earlier call in OUT where it stopped")
    parser.add_argument("--list", action="store_true", help="print the stages and their budgets")
    parser.add_argument("--rehearse", action="store_true", help="run every stage on an emulated device, in tiny shapes")
    parser.add_argument("--emulated", type=Path, help="fastood_emulated.so for --rehearse")
    parser.add_argument("--work", type=Path, help="folder for the copy that is built (default: a temporary one)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; return 0 if all that ran passed, 1 if one failed, 2 for an error in the options."""
    options = parse(arguments)
    if options.list:
        for stage in STAGES:
            print(f"{stage.name:18} {stage.budget:4.0f} s  {stage.shows}")
        print(f"{'together':18} {sum(stage.budget for stage in STAGES):4.0f} s at most")
        return 0
    try:
        return run(options)
    except ValueError as error:
        print(f"benchmarks/gpu.sh: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Run the stages that the options choose.

    Raises:
        ValueError: If an option does not fit, or OUT holds another run.
    """
    by_name = {stage.name: stage for stage in STAGES}
    chosen = list(STAGES)
    if options.stages is not None:
        names = options.stages.split(",")
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise ValueError(f"--stages must be among {', '.join(by_name)}, got {', '.join(unknown)}")
        chosen = [stage for stage in STAGES if stage.name in names]
    if not 0 < options.minutes <= 24 * 60:
        raise ValueError(f"--minutes must be above 0 and at most a day, got {options.minutes:g}")
    if options.rehearse and (options.emulated is None or not options.emulated.is_file()):
        raise ValueError(
            f"--rehearse needs --emulated FILE, the compiled emulation of a CUDA device, got {options.emulated}: "
            "make emulated builds build/emulated/plain/fastood_emulated.so"
        )
    out = (options.out or ROOT / "benchmarks/results" / f"gpu-{_today()}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / STATE).exists() and not options.resume and options.stages is None:
        raise ValueError(f"{out} holds a run: continue it with --resume, or give another folder")
    tools, fakes = find_tools(rehearse=options.rehearse)
    context = Context(out=out, work=Path(), tools=tools, fakes=fakes, rehearse=options.rehearse)
    if options.emulated is not None:
        context.extension = options.emulated.resolve()
    record = opened(context)
    with tempfile.TemporaryDirectory(prefix="fastood-gpu-", ignore_cleanup_errors=True) as temporary:
        context.work = options.work.resolve() if options.work else Path(temporary) / "tree"
        try:
            copy_tree(ROOT, context.work, with_extension=options.rehearse)
            restore_logs(out, context.logs)
            restore_extension(context, record)
            recover(context, record)
            run_stages(chosen, context, record, seconds=60 * options.minutes, redo=options.stages is not None)
        except (Stopped, KeyboardInterrupt):
            print(f"stopped; continue with --resume {out}", file=sys.stderr)
    write_atomically(out / VERDICT, verdict.page(record).encode())
    print((out / VERDICT).read_text())
    bad = [name for name, stage in record.stages.items() if stage.outcome in ("failed", "cut off")]
    return 1 if bad else 0


def opened(context: Context) -> Record:
    """Return the record of OUT, or a new one.

    Raises:
        ValueError: If OUT holds results of other sources, or of a rehearsal when this is none.
    """
    source = source_hash(context.root)
    if (context.out / STATE).exists():
        record = Record.load(context.out)
        if record.source != source:
            raise ValueError(
                f"{context.out} holds results of source {record.source}, this is {source}: give another folder"
            )
        if record.rehearsal != context.rehearse:
            raise ValueError(
                f"{context.out} holds {'a rehearsal' if record.rehearsal else 'a run'}: give another folder"
            )
    else:
        record = Record(source=source, commit=_commit(context.root), rehearsal=context.rehearse)
    record.calls += 1
    record.fakes = sorted({*record.fakes, *context.fakes})
    return record


def _commit(root: Path) -> str:
    if os.environ.get("FASTOOD_GIT_SHA"):
        return os.environ["FASTOOD_GIT_SHA"]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _today() -> str:
    import datetime

    return datetime.date.today().strftime("%Y%m%d")


if __name__ == "__main__":
    sys.exit(main())
