"""Planted bugs: the variants listed for each report kernel and source line; counterparts without a bug pass.

`pytest csrc/emulation/selftest` after a build of the variants plain, address, thread and written.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).with_name("planted.cu")
VARIANTS = ("plain", "address", "thread", "written")


class Bug(NamedTuple):
    """A planted bug, and the report that it must cause."""

    name: str
    message: str
    """A regular expression; `@text@` stands for the place of the line of the kernel that contains the text."""
    variants: tuple[str, ...] = VARIANTS[:3]


BUGS = [
    Bug(
        "divergent_barrier",
        r"divergent_barrier .*block 0, thread \d+ is at the barrier .* while others are at the barrier",
    ),
    Bug(
        "early_exit",
        r"early_exit .*block 0, thread \d+ waits at the barrier @__syncthreads@ for thread 5, which has exited",
    ),
    Bug(
        "stuck",
        r"stuck .*block 0 is stuck: 63 threads \(1 first\) at the barrier @__syncthreads@; 1 threads \(0 first\)",
    ),
    Bug(
        "lane_missing",
        r"lane_missing .*thread \d+ waits at the shuffle @__shfl_xor_sync@ for lane \d+, which has exited",
    ),
    Bug(
        "lane_not_there",
        r"lane_not_there .*thread \d+ waits at the shuffle @__shfl_xor_sync@ for lane 8, which is not there",
    ),
    Bug(
        "source_outside_mask",
        r"block 0, thread \d+ shuffles from lane 20, which is not in the mask 0x0000ffff, @__shfl_sync@",
    ),
    Bug("self_outside_mask", r"block 0, thread \d+ is not in the mask 0x0000ffff of its ballot @__ballot_sync@"),
    Bug("mismatched_kind", r"mismatched_kind .*thread \d+ is at the (all|any) .* of its warp are at the (any|all)"),
    Bug("mismatched_place", r"mismatched_place .*thread \d+ is at the shuffle .* of its warp are at the shuffle"),
    Bug("too_much_shared", r"too_much_shared .*64000 bytes of static shared memory, .* @float second@"),
    Bug("empty_grid", r"invalid configuration argument: good<<<0, 64>>> at @empty_grid@ is empty"),
    Bug("too_many_threads", r"good<<<1, 2048>>> at @too_many_threads@: a block has at most 1024 threads"),
    Bug("too_many_blocks", r"good<<<2147483648, 64>>> at @too_many_blocks@: a grid has at most 2\^31 - 1 blocks"),
    Bug("error_not_asked_for", r"no call read the error of a launch: good<<<0, 64>>> at csrc/\S+:\d+ is empty"),
    Bug("default_stream", r"good at @default_stream@ is queued on the default stream instead of the current stream"),
    Bug("memset_on_default_stream", r"cudaMemsetAsync at @memset_on@ is queued on the default stream"),
    Bug("no_guard", r"good at csrc/\S+:\d+ is queued without a DeviceGuard"),
    Bug("guard_of_another_device", r"a DeviceGuard of device 0, which is not the device of the tensors"),
    Bug("host_read", r"the host read -?nan after 0 waits"),
    Bug(
        "capture_waits",
        r"operation not permitted when stream is capturing: cudaStreamSynchronize at @cudaStreamSynchronize@",
    ),
    # Only the result is wrong: it shows poison, or depends on the order of threads.
    Bug("missing_barrier", r"sum -?nan", ("plain",)),
    Bug("no_syncwarp", r"sum -?nan", ("plain",)),
    Bug("never_written", r"sum -?nan"),
    Bug("workspace_never_written", r"sum -?nan"),
    Bug("shared_overrun", r"planted\.cu:\d+:\d+: runtime error: index 64 out of bounds", ("address",)),
    Bug("global_overrun", r"heap-buffer-overflow[\s\S]*global_overrun[\s\S]*@out\[threadIdx.x \+ 1\]@", ("address",)),
    Bug("global_overrun", r"emulated CUDA: global_overrun .*block 0, thread 63", ("address",)),
    Bug("misaligned", r"planted\.cu:\d+:\d+: runtime error: store to misaligned address", ("address",)),
    Bug("host_buffer_freed", r"heap-use-after-free[\s\S]*cudaMemcpyAsync queued at @cudaMemcpyAsync@", ("address",)),
    Bug("temporary_freed", r"heap-use-after-free[\s\S]*workspace_never_written .*block 0, thread \d+", ("address",)),
    Bug("missing_barrier", r"data race \S*planted\.cu:\d+ in missing_barrier", ("thread",)),
    Bug(
        "never_written",
        r"never_written .*block 0, thread 0 reads 4 bytes of shared memory that nothing has written, "
        r"@out\[threadIdx.x\]@",
        ("written",),
    ),
    Bug(
        "workspace_never_written",
        r"thread \d+ reads 4 bytes of memory of the op that nothing has written, @workspace\[threadIdx.x\]@",
        ("written",),
    ),
    Bug("missing_barrier", r"emulated CUDA: missing_barrier .*block 0, thread \d+", ("thread",)),
    Bug("no_syncwarp", r"data race \S*planted\.cu:\d+ in no_syncwarp", ("thread",)),
    Bug("blocks_race", r"data race \S*@blockIdx.x % 1@ in blocks_race", ("thread",)),
    Bug("last_block", r"data race \S*@sums\[threadIdx.x\]@ in last_block<false>", ("thread",)),
]

GOOD = {
    "good": "sum 43680\n",
    "good_syncwarp": "sum 14560\n",
    "good_atomics": "sum 768\n",
    "good_last_block": "sum 1360\n",
    "good_host_read": "the host read 63 after 1 waits\nsum 43680\n",
    "good_host_buffer": "sum 4160\n",
    "good_temporary": "sum 0\n",
    "good_second_turn": "sum 2080\n",
    "good_capture": "sum 0 before the replay\nsum 43680\n",
}


def run(builds: Path, variant: str, name: str, seed: int, max_blocks: int = 0, leaks: bool = False) -> str:
    program = builds / variant / "planted"
    assert program.exists(), f"{program} is missing: cmake --build {program.parent}"
    command = [str(program), name, str(seed), str(max_blocks)]
    if variant == "thread":
        # ThreadSanitizer's shadow memory collides with the randomised mappings of some Linux kernels.
        command = ["setarch", "-R", *command]
    # Fibers that are abandoned in a failed block leak their allocations.
    environment = os.environ | {"TSAN_OPTIONS": "history_size=0", "ASAN_OPTIONS": f"detect_leaks={int(leaks)}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    return done.stdout + done.stderr


def name_of(value: Bug | str) -> str:
    return value.name if isinstance(value, Bug) else value


def pattern_of(bug: Bug) -> str:
    lines = SOURCE.read_text().splitlines()
    own = re.compile(rf'void {bug.name}\(|"{bug.name}"')
    start = next((i for i, line in enumerate(lines) if own.search(line)), 0)

    def place(match: re.Match[str]) -> str:
        text = match[1].replace("\\", "")
        line = next(i for i in range(len(lines)) if text in lines[(start + i) % len(lines)])
        return rf"csrc/emulation/selftest/planted\.cu:{(start + line) % len(lines) + 1}"

    return re.sub(r"@(.*?)@", place, bug.message)


@pytest.mark.parametrize(("bug", "variant"), [(bug, v) for bug in BUGS for v in bug.variants], ids=name_of)
def test_bug_is_named(bug: Bug, variant: str, builds: Path) -> None:
    assert re.search(pattern_of(bug), run(builds, variant, bug.name, seed=1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", GOOD)
def test_counterpart_without_the_bug_passes(name: str, seed: int, variant: str, builds: Path) -> None:
    assert run(builds, variant, name, seed, leaks=True) == GOOD[name]


def test_second_turn_is_wrong_only_with_a_cap_on_blocks(builds: Path) -> None:
    assert run(builds, "plain", "wrong_second_turn", seed=1) == "sum 2080\n"
    assert run(builds, "plain", "wrong_second_turn", seed=1, max_blocks=1) == "sum 136\n"
    assert run(builds, "plain", "good_second_turn", seed=1, max_blocks=1) == "sum 2080\n"


def test_what_is_not_written_is_no_mark_of_a_missing_result_with_even_seeds(builds: Path) -> None:
    """Kernels write NaN and -1, too, where there is no result: neither may be what memory holds from the beginning."""
    for name in ("never_written", "workspace_never_written"):
        assert re.fullmatch(r"sum -?nan\n", run(builds, "plain", name, seed=1))
        assert re.fullmatch(r"sum \d\S*\n", run(builds, "plain", name, seed=2))


def test_wrong_result_depends_on_the_seed(builds: Path) -> None:
    by_seed = {run(builds, "plain", "no_syncwarp", seed) for seed in range(4)}
    assert len(by_seed) > 1
