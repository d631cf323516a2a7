"""The workload of the emulation: cases that reach every branch of the CUDA code, against the native CPU ops.

    python -m tests.emulation.workload PATH_OF_SO [--seeds 1,2,3,0] [--folder background_pool] [--times]

`fastood_emulated.so` has the CUDA ops as `torch.ops.fastood_emulated`, for tensors of the CPU. Each case runs there and
on `torch.ops.fastood`; pool, metrics and augmentation agree in every bit, losses, scores and heads within the ulps that
their case states. Memory that torch leaves uninitialised is NaN or the largest integer.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.emulation.cases import Case, Ops, all_cases

CAP = 2
"""Blocks of a capped grid: more rows than two blocks hold make a grid-stride loop turn again."""


@dataclass(frozen=True)
class Emulated:
    """The loaded object: its ops, and how its kernels are scheduled."""

    ops: Ops
    library: ctypes.CDLL

    def set_seed(self, seed: int) -> None:
        """Order threads and blocks by this seed; 0: in order."""
        self.library.emu_set_seed(ctypes.c_long(seed))

    def set_max_blocks(self, blocks: int) -> None:
        """Cap the grids of grid-stride loops; 0: by the kernels' constants alone."""
        self.library.emu_set_max_blocks(ctypes.c_long(blocks))


def load(path: Path) -> Emulated:
    """Load the object of an emulated build, with memory poisoned and one thread of torch."""
    import fastood  # noqa: F401  # the native ops

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.ops.load_library(str(path))
    return Emulated(torch.ops.fastood_emulated, ctypes.CDLL(str(path)))


def results(case: Case, ops: Ops) -> list[Tensor]:
    """Run a case and return what it computed, detached from memory that a later call may change."""
    return [x.detach().clone() for x in case.run(ops)]


def difference(found: Tensor, expected: Tensor, ulps: float) -> str:
    """Return how a result differs from the expected one by more than `ulps`, or an empty string."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"is {found.dtype} {tuple(found.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    if not found.dtype.is_floating_point:
        wrong = found != expected
        return f"differs at {int(wrong.sum())} of {wrong.numel()} entries" if bool(wrong.any()) else ""
    # Zeros of either sign are one number to all users of these results.
    wrong = (found != expected) & ~(found.isnan() & expected.isnan())
    if not bool(wrong.any()):
        return ""
    distance = ulps_apart(found, expected)
    return f"is {distance:.3g} ulp away, of {ulps:g}" if not distance <= ulps else ""


def ulps_apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference in eps of the largest finite magnitude expected; inf: not comparable."""
    wide, reference = found.double(), expected.double()
    same = (wide == reference) | (wide.isnan() & reference.isnan())
    rest = ~same
    if not bool(rest.any()):
        return 0.0
    finite = reference[reference.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    apart = float((wide[rest] - reference[rest]).abs().max())
    if not (apart < float("inf") and scale > 0):
        return float("inf")
    return apart / (torch.finfo(found.dtype).eps * scale)


def compare(found: Sequence[Tensor], expected: Sequence[Tensor], ulps: float = 0) -> str:
    """Return the first difference of two lists of results, or an empty string."""
    if len(found) != len(expected):
        return f"{len(found)} results instead of {len(expected)}"
    for k, (x, y) in enumerate(zip(found, expected, strict=True)):
        if message := difference(x, y, ulps):
            return f"result {k} {message}"
    return ""


def caps_of(case: Case) -> tuple[int, ...]:
    """Return the caps of grids that a case runs under."""
    return (0, CAP) if case.second_turn else (0,)


def check(emulated: Emulated, case: Case, seeds: Iterable[int]) -> tuple[list[str], int]:
    """Return how a case's results differ from the native op's, for each seed and cap, and the number of tensors."""
    expected = results(case, torch.ops.fastood)
    failures, count = [], 0
    for seed in seeds:
        for cap in caps_of(case):
            emulated.set_seed(seed)
            emulated.set_max_blocks(cap)
            found = results(case, emulated.ops)
            count += len(found)
            if message := compare(found, expected, case.ulps):
                failures.append(f"{case} (seed {seed}, cap {cap}): {message}")
    return failures, count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workload and print its failures; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulation.workload", description="Run the workload.")
    parser.add_argument("path", type=Path, help="fastood_emulated.so")
    parser.add_argument("--seeds", default="1", help="schedules, separated by commas; 0: in order (default: 1)")
    parser.add_argument("--small", action="store_true", help="leave out large cases, for sanitizers")
    parser.add_argument("--no-races", action="store_true", help="leave out invalid input that makes blocks race")
    parser.add_argument("--folder", help="cases of this folder of csrc/ alone")
    parser.add_argument("--times", action="store_true", help="print the time of each case")
    options = parser.parse_args(arguments)
    emulated = load(options.path)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    begin = time.perf_counter()
    cases = [case for case in all_cases() if options.folder in (None, case.folder)]
    cases = [case for case in cases if not (options.small and case.large)]
    cases = [case for case in cases if not (options.no_races and case.blocks_race)]
    failures, count = [], 0
    for case in cases:
        start = time.perf_counter()
        messages, tensors = check(emulated, case, seeds)
        failures += messages
        count += tensors
        if options.times:
            print(f"{time.perf_counter() - start:7.3f} s  {case}", flush=True)
        for message in messages:
            print(message, flush=True)
    races = emulated.library.emu_num_reports()
    if races:
        failures.append(f"{races} races reported")
        print(failures[-1])
    seconds = time.perf_counter() - begin
    print(f"{len(cases)} cases, {count} tensors, {len(failures)} failures, {seconds:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
