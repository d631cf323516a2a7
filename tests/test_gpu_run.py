"""The stages of a GPU run with stub commands: limits, kills, resumption, and the verdict."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import build, kernel_names, profiling, sanitize, train, verdict
from benchmarks.gpu.context import Context, StageNotPossible, find_tools
from benchmarks.gpu.goals import FLOOR, GOALS, TIME
from benchmarks.gpu.record import (
    EXTENSION,
    LOGS,
    PROVEN,
    ROWS,
    RUNNING_LOG,
    RUNNING_ROWS,
    STATE,
    VERDICT,
    Record,
    StageRecord,
)
from benchmarks.gpu.runner import Command, Stage, recover, run_stages
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.tests import counts, cuda_test_files, read_tests

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES = 8
"""Files in the folder of results, so that few are to be copied off a machine."""


def stub(name: str, code: str, *, budget: float = 20, needs: str | None = None) -> Stage:
    return Stage(
        name=name,
        budget=budget,
        shows="a stub",
        commands=lambda context, record: [Command(argv=[sys.executable, "-c", code])],
        needs=needs,
    )


@pytest.fixture
def context(tmp_path: Path) -> Context:
    context = Context(out=tmp_path / "out", work=tmp_path / "work")
    context.out.mkdir()
    context.logs.mkdir(parents=True)
    return context


def row(key: str, median_ms: float, *, floor_ms: float | None = None, **ratios: float) -> dict:
    def timing(median: float, ratio: float) -> dict[str, float]:
        spread = {"ratio": ratio, "ratio_p20": ratio, "ratio_p80": ratio}
        return {"median_ms": median, "p20_ms": median, "p80_ms": median, **spread}

    timings = {name: timing(median_ms * ratio, ratio) for name, ratio in ratios.items()}
    return {
        "op": f"goal {key}: work",
        "shape": "1",
        "dtype": "float32",
        "subject": "fastood",
        "floor_ms": floor_ms,
        "timings": {"fastood": timing(median_ms, 1.0), **timings},
    }


def measured(*rows: dict, rehearsal: bool = False) -> Record:
    record = Record(source="s", rehearsal=rehearsal)
    record.stages["goals"] = StageRecord(outcome="passed", seconds=1, rows=list(rows))
    return record


def goal_of(reference: str) -> str:
    return next(goal.key for goal in GOALS if goal.reference == reference)


def test_outcomes_and_the_folder(context: Context):
    def missing(context: Context, record: Record) -> list[Command]:
        raise StageNotPossible("no such tool")

    stages = [
        stub("good", "print('fine')"),
        stub("bad", "print('why'); raise SystemExit(3)"),
        stub("slow", "import time; time.sleep(60)", budget=0.5),
        Stage(name="lacking", budget=20, shows="", commands=missing),
        stub("blocked", "print('never')", needs="bad"),
        stub("no program", "", needs="good"),
    ]
    record = Record(source="s")
    run_stages(stages, context, record, seconds=60)
    outcomes = {name: stage.outcome for name, stage in record.stages.items()}
    assert outcomes == {
        "good": "passed",
        "bad": "failed",
        "slow": "cut off",
        "lacking": "not possible",
        "blocked": "not possible",
        "no program": "passed",
    }
    assert "exit status 3" in record.stages["bad"].detail
    assert "why" in record.stages["bad"].detail
    assert Record.load(context.out) == record
    with tarfile.open(context.out / LOGS) as archive:
        assert b"fine" in archive.extractfile("good.log").read()
    assert "no such tool" in (context.out / VERDICT).read_text()
    assert {path.name for path in context.out.iterdir()} == {STATE, LOGS, VERDICT}
    assert len({STATE, LOGS, ROWS, VERDICT, RUNNING_LOG, RUNNING_ROWS, EXTENSION, PROVEN}) <= MOST_FILES


def test_a_later_call_continues(context: Context):
    once = f"open({str(context.out / '../count')!r}, 'a').write('x')"
    stages = [stub("first", once), stub("second", once, budget=30)]
    record = Record(source="s")
    run_stages(stages[:1], context, record, seconds=60)
    run_stages(stages, context, record, seconds=5)  # too little for another stage
    assert list(record.stages) == ["first"]
    record = Record.load(context.out)
    run_stages(stages, context, record, seconds=60)
    assert list(record.stages) == ["first", "second"]
    run_stages(stages[:1], context, record, seconds=60, redo=True)
    assert (context.out / "../count").read_text() == "xxx"


RUN = """
import sys
from pathlib import Path
from benchmarks.gpu.context import Context
from benchmarks.gpu.record import Record, STATE
from benchmarks.gpu.runner import Command, Stage, Stopped, recover, run_stages
out, work = Path(sys.argv[1]), Path(sys.argv[2])
context = Context(out=out, work=work)
context.logs.mkdir(parents=True, exist_ok=True)
record = Record.load(out) if (out / STATE).exists() else Record(source="s")
recover(context, record)
rows = '{"metadata": {"a": 1}, "rows": [{"op": "o", "shape": "1", "dtype": "f"}]}'
sleeps = f"import os, time; open({str(context.rows)!r}, 'w').write({rows!r}); print('waits', os.getpid(), flush=True);"
codes = {"quick": "print('done')", "long": sleeps + f"time.sleep({sys.argv[3]})"}
stages = [
    Stage(name=name, budget=60, shows="", commands=lambda c, r, code=code: [Command(argv=[sys.executable, "-c", code])])
    for name, code in codes.items()
]
try:
    run_stages(stages, context, record, seconds=60)
except Stopped:
    pass
"""


def start(context: Context, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(context.out), str(context.work), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_loses_no_finished_stage_and_no_row(context: Context, number: signal.Signals):
    log = context.out / RUNNING_LOG
    process = start(context, 60)
    until(lambda: log.exists() and re.search(rb"^waits \d+$", log.read_bytes(), re.MULTILINE) is not None)
    child = int(re.findall(r"^waits (\d+)$", log.read_text(), re.MULTILINE)[0])
    process.send_signal(number)
    process.wait()
    until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])
    record = Record.load(context.out)
    assert record.stages["quick"].outcome == "passed"
    assert record.running == ("long" if number == signal.SIGKILL else None)
    recover(context, record)
    assert record.stages["long"].outcome == "cut off"
    assert [found["op"] for found in record.rows()] == ["o"]
    assert start(context, 0).wait() == 0
    record = Record.load(context.out)
    assert {name: stage.outcome for name, stage in record.stages.items()} == {"quick": "passed", "long": "passed"}
    assert json.loads((context.out / ROWS).read_text())["rows"] == [{"op": "o", "shape": "1", "dtype": "f"}]


def test_the_verdict_compares_with_the_goals():
    by_time, by_floor, by_peer = goal_of(TIME), goal_of(FLOOR), goal_of("solve + mm")
    limit = {goal.key: goal.limit for goal in GOALS}

    def at(time: float, floor: float, peer: float) -> Record:
        return measured(
            row(by_time, limit[by_time] * time * 1e-3),
            row(by_floor, 1.0, floor_ms=floor),
            row(by_peer, 1.0, **{"solve + mm": peer}),
        )

    page = verdict.page(at(0.9, 0.95, 0.95))
    assert "**3 met, 0 missed" in page
    assert "solve + mm: 0.95" in page
    bad = at(1.1, 0.8, 0.8)
    assert "**0 met, 3 missed" in verdict.page(bad)
    assert [goal.key for goal in profiling.slowest(bad)] == [by_peer, by_time, by_floor]
    assert "0 met, 0 missed" in verdict.page(Record(source="s"))


def test_a_rehearsal_states_no_time():
    record = measured(row(goal_of(TIME), 0.0123456, floor_ms=0.01, eager=3.0), rehearsal=True)
    record.fakes = ["ncu"]
    page = verdict.page(record)
    assert page.startswith("# REHEARSAL")
    assert "Tools replaced by scripts: ncu" in page
    assert "12.3" not in page
    assert "eager" not in page


def test_logs_are_read_for_what_they_show(context: Context):
    record = Record(source="s")
    assert counts("3 failed, 20 passed, 2 skipped in 3.21s") == {"failed": 3, "passed": 20, "skipped": 2}
    assert read_tests(context, record, "5 deselected in 0.1s").failed
    stopped = read_tests(context, record, "$ command\n...F [ 10%]\n.. [ 20%]\n....")
    assert "9 passed, 1 failed so far" in stopped.detail
    quiet = "7 passed in 1s\n========= ERROR SUMMARY: 0 errors"
    assert not sanitize.read_sanitizer(context, record, quiet).failed
    assert sanitize.read_sanitizer(context, record, "7 passed in 1s").failed
    assert sanitize.read_sanitizer(context, record, quiet.replace("7 passed", "9 deselected")).failed
    loud = "========= Invalid __global__ read of size 4\n7 passed in 1s\n========= ERROR SUMMARY: 2 errors"
    assert "Invalid __global__ read" in sanitize.read_sanitizer(context, record, loud).detail
    csv = '"ID","Kernel Name","gpu__time_duration.sum"\n"","","us"\n"0","pass_kernel","12.5"\n'
    (kernel,) = profiling.kernels(f"noise\n{csv}more")
    assert (kernel["kernel"], kernel["time"]) == ("pass_kernel", "12.5 us")
    methods = 'METHODS oe ice\nMETHOD {"method": "oe", "error": null, "checked": true, "accuracy": {"oe": 0.91}}\n'
    assert "not reached: ice" in train.read_training(context, record, methods).detail
    assert "least accuracy is 0.91" in train.read_training(context, record, methods).detail
    assert not train.read_training(context, record, methods.replace(" ice", "")).failed


def test_only_kernels_of_a_run_that_passed_are_proven(context: Context):
    record = Record(source="s", machine={"gpu": "a GPU"})
    log = "KERNEL void fastood::fill_kernel(float*)\n.KERNEL at::native::other\nKERNEL void fastood::draw_kernel()\n"
    assert kernel_names.read_kernels(context, record, log + "1 failed, 3 passed in 1s").failed
    assert not (context.out / PROVEN).exists()
    assert not kernel_names.read_kernels(context, record, log + "3 passed in 1s").failed
    proven = json.loads((context.out / PROVEN).read_text())
    assert proven["by"] == "a GPU"
    assert proven["kernels"] == ["void fastood::draw_kernel()", "void fastood::fill_kernel(float*)"]


def test_an_extension_is_kept_for_another_machine(context: Context):
    built = context.work / "fastood" / "_C.cpython-311-x86_64-linux-gnu.so"
    built.parent.mkdir()
    built.write_bytes(b"machine code")
    ptxas = "ptxas info : Used 40 registers\n 0 bytes spill stores\nUsed 64 registers\n 8 bytes spill stores"
    record = Record(source="s")
    finding = build.read_build(context, record, ptxas)
    assert "2 kernels, at most 64 registers, 1 with spills" in finding.detail
    built.unlink()
    record.stages["build"] = StageRecord(outcome="passed", seconds=1)
    build.restore_extension(context, record)
    assert built.read_bytes() == b"machine code"
    built.unlink()
    (context.out / EXTENSION).unlink()
    build.restore_extension(context, record)
    assert "build" not in record.stages


def test_bad_options_name_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    for arguments, message in (
        (["--stages", "build,nothing"], "--stages must be among machine, build"),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--rehearse"], "--rehearse needs --emulated"),
    ):
        assert program.main([str(out), *arguments]) == 2
        assert message in capsys.readouterr().err
    out.mkdir(exist_ok=True)
    Record(source="other").save(out)
    assert program.main([str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert program.main([str(out), "--resume"]) == 2
    assert "holds results of source other" in capsys.readouterr().err
    (out / STATE).write_text("{")
    assert program.main([str(out), "--resume"]) == 2
    assert "is no record of a run" in capsys.readouterr().err


def test_a_rehearsal_imitates_only_tools_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "ncu").write_text("#!/bin/sh\n")
    (tmp_path / "ncu").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    tools, fakes = find_tools(rehearse=True)
    assert tools["ncu"] == str(tmp_path / "ncu")
    assert "ncu" not in fakes
    tools, fakes = find_tools(rehearse=False)
    assert fakes == []


def test_the_plan_fits_the_time():
    assert sum(stage.budget for stage in STAGES) <= 30 * 60
    names = [stage.name for stage in STAGES]
    first = STAGES[: names.index("tests") + 1]
    assert sum(stage.budget for stage in first) <= 10 * 60
    assert {"machine", "build", "smoke", "goals"} <= {stage.name for stage in first}
    for position, stage in enumerate(STAGES):
        assert stage.needs is None or stage.needs in names[:position]


def test_every_goal_and_every_file_of_cuda_tests_is_there():
    import test_gpu_goals

    assert {goal.measure for goal in GOALS} == set(test_gpu_goals.MEASURES)
    assert len({goal.key for goal in GOALS}) == len(GOALS)
    files = cuda_test_files(ROOT)
    assert {"tests/ops/test_background_pool_cuda.py", "tests/losses/test_losses.py"} <= set(files)
    assert set(sanitize.FILES) <= set(files)
