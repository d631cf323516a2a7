"""Build the emulation of the CUDA code and check it there: `python -m tests.emulation [PART …]`, or `make emulated`.

Parts: selftest, workload, suites, sanitizers, coverage, mutations; all by default. What changed is built first. Each
stage prints a line with its time; at the end come coverage, mutations noticed and tests passed. Logs are in
`build/emulated/log/`, all results in `build/emulated/result.json`. The exit status is 0 if every stage passed, 1 if one
failed or could not run. docs/emulation.md says what it shows and what it cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict

from tests.emulation import variants
from tests.emulation.mutations import SEEDS
from tests.emulation.stages import (
    Result,
    Stage,
    build_stage,
    coverage_stage,
    module_stage,
    pytest_stage,
    suite_stage,
)

PARTS = ("selftest", "workload", "suites", "sanitizers", "coverage", "mutations")
SLOW = "bal or opcheck or large_shapes or rows_beyond_one_grid or was_stopped or test_compile"
"""Tests of CUDA that run by `--thorough` alone, as an expression of `pytest -k`."""
CAPPED = tuple(
    f"tests/ops/test_{name}.py"
    for name in (
        "augment_images",
        "background_pool_batches",
        "background_pool_cuda",
        "class_l1_nearest",
        "detection_metrics_cuda",
        "mahalanobis_cuda",
        "mahalanobis_shapes",
        "raw_op_values",
    )
)
"""Tests of CUDA that run once more in grids of two blocks; by `--thorough` all do."""
AS_CPU = ("tests/ops/test_detection_metrics.py", "tests/ops/test_raw_ops.py")
"""Tests whose tensors of the CPU go to the CUDA kernels."""
AS_CPU_THOROUGH = (
    "tests/ops",
    "tests/losses",
    "tests/metrics",
    "tests/heads",
    "tests/samplers",
    "tests/test_scores.py",
)
"""Tests whose tensors of the CPU go to the CUDA kernels, by `--thorough`."""
RESULT = variants.BUILD / "result.json"
EVIDENCE = variants.BUILD / "evidence.json"
OUTCOMES = variants.BUILD / "mutations.json"


def all_stages(jobs: int, files: str, *, thorough: bool = False) -> list[Stage]:
    """Return every stage; `files` limits the mutations, `thorough` runs every test."""
    seeds = ",".join(map(str, SEEDS))
    workload = "tests.emulation.workload"
    limited = ["--file", files] if files else []
    mutants = [str(variants.object_of("mutants")), "--jobs", str(jobs), "--json", str(OUTCOMES), *limited]
    mutants.append("--sanitizers")
    return [
        *(build_stage(variant, max(1, jobs // len(variants.VARIANTS))) for variant in variants.VARIANTS),
        module_stage("workload", "workload", "plain", [workload, str(variants.object_of("plain")), "--seeds", seeds]),
        module_stage(
            "address and undefined behaviour",
            "sanitizers",
            "address",
            [workload, str(variants.object_of("address")), "--small", "--seeds", "1,0"],
        ),
        module_stage(
            "races",
            "sanitizers",
            "thread",
            [workload, str(variants.object_of("thread")), "--small", "--no-races", "--seeds", "1"],
        ),
        module_stage(
            "reads of memory that was never written",
            "sanitizers",
            "written",
            [workload, str(variants.object_of("written")), "--small", "--seeds", "1"],
        ),
        coverage_stage(variants.folder_of("coverage")),
        pytest_stage(
            "selftest", "selftest", "plain", ["csrc/emulation/selftest"], also=("address", "thread", "written")
        ),
        suite_stage("tests of CUDA", ["--emulated-seed", "1", "tests", *([] if thorough else ["-k", f"not ({SLOW})"])]),
        suite_stage(
            "tests of CUDA in grids of two blocks",
            [
                *("--emulated-seed", "2", "--emulated-max-blocks", "2"),
                *(["tests"] if thorough else [*CAPPED, "-k", f"not ({SLOW})"]),
            ],
        ),
        suite_stage(
            "tests of the CPU on CUDA kernels",
            ["--emulated-as-cpu", "--emulated-seed", "3", *(AS_CPU_THOROUGH if thorough else AS_CPU)],
        ),
        module_stage(
            "mutations",
            "mutations",
            "mutants",
            ["tests.emulation.mutations", *mutants],
            alone=True,
            also=("thread", "address"),
        ),
    ]


def run_stage(stage: Stage) -> Result:
    """Run a stage; a missing tool or a failed build is a failure that says so."""
    start = time.perf_counter()
    try:
        return stage.run()
    except (variants.MissingToolError, FileNotFoundError, RuntimeError) as error:
        seconds = time.perf_counter() - start
        return Result(False, f"could not run: {str(error).splitlines()[0]}", seconds, log=str(error))


def run_all(stages: Sequence[Stage], jobs: int) -> dict[str, Result]:
    """Run builds, then the stages that take a core, then those that take all; print a line as each ends."""
    results: dict[str, Result] = {}
    groups = [
        [stage for stage in stages if stage.first],
        [stage for stage in stages if not stage.first and not stage.alone],
        *([stage] for stage in stages if stage.alone),
    ]
    for group in groups:
        with ThreadPoolExecutor(jobs if len(group) > 1 else 1) as pool:
            futures = {}
            for stage in group:
                builds = (f"build {variant}" for variant in (stage.variant, *stage.also))
                failed = [build for build in builds if build in results and not results[build].passed]
                if failed:
                    show(stage, results, Result(False, f"could not run: {failed[0]} failed", 0.0))
                    continue
                futures[pool.submit(run_stage, stage)] = stage
            for future in as_completed(futures):
                show(futures[future], results, future.result())
    return results


def show(stage: Stage, results: dict[str, Result], result: Result) -> None:
    """Keep a result and print its line, and the end of the log of a failure."""
    results[stage.name] = result
    verdict = "ok  " if result.passed else "FAIL"
    times = f"{result.seconds:6.1f} s" + (f" ({result.cpu:5.1f} s of CPU)" if result.cpu else "")
    print(f"{verdict} {times}  {stage.name}: {result.summary}", flush=True)
    if not result.passed:
        print(*(f"        {line}" for line in result.log.splitlines()[-25:]), sep="\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--file", default="", help="mutations of files whose path has this part alone")
    parser.add_argument("--thorough", action="store_true", help="also run the tests that take long")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}: choose among {', '.join(PARTS)}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    parts = options.parts or list(PARTS)
    start = time.perf_counter()
    every = all_stages(options.jobs, options.file, thorough=options.thorough)
    stages = [stage for stage in every if stage.first or stage.part in parts]
    needed = {variant for stage in stages if not stage.first for variant in (stage.variant, *stage.also)}
    stages = [stage for stage in stages if stage.variant in needed]
    results = run_all(stages, options.jobs)
    write(results)
    whole = parts == list(PARTS) and not options.file
    if whole and all(result.passed for result in results.values()):
        EVIDENCE.write_text(json.dumps(evidence(results), indent=1) + "\n")
    print("\n".join(summary(results, time.perf_counter() - start)))
    return 0 if all(result.passed for result in results.values()) else 1


def write(results: dict[str, Result]) -> None:
    """Write `result.json`, without the logs."""
    document = {name: {k: v for k, v in asdict(result).items() if k != "log"} for name, result in results.items()}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


def evidence(results: dict[str, Result]) -> dict[str, object]:
    """Return the run as `benchmarks/cuda_status.py emulated` reads it: kernels, variants, lines and mutants by file."""
    numbers = results["coverage"].numbers
    files = {file: {"lines": lines} for file, lines in numbers["files"].items()}
    for outcome in json.loads(OUTCOMES.read_text()):
        mutants = files.setdefault(outcome["site"]["file"], {}).setdefault("mutants", [0, 0])
        mutants[0] += bool(outcome["how"])
        mutants[1] += 1
    return {
        "by": variants.compiler_version(),
        "variants": list(variants.VARIANTS),
        "kernels": numbers["kernels"],
        "files": {file.removeprefix("csrc/"): counts for file, counts in sorted(files.items())},
    }


def summary(results: dict[str, Result], seconds: float) -> list[str]:
    """Return the last lines: failures, and coverage, mutations and tests."""
    failed = [name for name, result in results.items() if not result.passed]
    lines = [f"failed: {', '.join(failed)}"] if failed else []
    facts = []
    if "coverage" in results:
        facts.append(f"coverage {results['coverage'].summary}")
    if "mutations" in results:
        facts.append(results["mutations"].summary)
    tests = sum(result.numbers.get("tests", 0) for result in results.values())
    facts.append(f"tests passed {tests}")
    return [*lines, f"{' · '.join(facts)} · {seconds:.0f} s"]


if __name__ == "__main__":
    sys.exit(main())
