"""Memory and time of a pool by its size and the number of processes that divide it, as docs/scale.md states them.

    python benchmarks/scale.py --out scale.json
    python benchmarks/scale.py --sizes 1e5 1e6 --processes 1 2

Processes are joined by gloo on this machine, one thread each. For each size and number of processes: bytes of the pool
on each process, resident memory beyond that of an empty process, seconds to make the slice, and the median time of
`draw + importance + sparse step`, of the same with an exact step, and of the two collectives of a step alone, with the
20th and 80th percentile.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from metadata import metadata

from fastood.samplers import BackgroundPool, ShardedBackgroundPool

BATCH = 256
SIZES = (1e5, 1e6, 1e7, 1e8, 1e9)
EXACT_UP_TO = 1e8
"""Largest pool whose exact step, a pass over all weights, is timed."""


def percentiles(times: list[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile in microseconds."""
    p20, *_, p80 = statistics.quantiles(times, n=5)
    return {
        name: round(1e6 * value, 1) for name, value in (("p50", statistics.median(times)), ("p20", p20), ("p80", p80))
    }


def timed(call: Callable[[], object], *, repeats: int) -> dict[str, float]:
    """Return the time of a call after one that is not timed; every process takes the same number."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return percentiles(times)


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(rank: int, processes: int, size: int, folder: str) -> None:
    """Measure in one process, and write the numbers of rank 0 with the bytes of all ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    dist.barrier()
    before, begin = peak_bytes(), time.perf_counter()
    pool = BackgroundPool(size) if processes == 1 else ShardedBackgroundPool(size)
    seconds = time.perf_counter() - begin
    generator = torch.Generator().manual_seed(0)
    exchange = torch.zeros(8, dtype=torch.float64)
    parts = torch.empty(processes * 8, dtype=torch.float64)

    def step(mode: str) -> None:
        if isinstance(pool, ShardedBackgroundPool):
            index = pool.draw(BATCH, generator=generator, verify=False).index
        else:
            index, _ = pool.sample(BATCH, generator=generator)
        pool.importance(index)
        pool.ascend(index, (index % 7).float(), lr=1.0, mode=mode)

    def collectives() -> None:
        for _ in range(2):
            dist.all_gather_into_tensor(parts, exchange)

    row: dict[str, Any] = {
        "examples": size,
        "processes": processes,
        "seconds_to_make": round(seconds, 3),
        "sparse_us": timed(lambda: step("sparse"), repeats=300),
        "collectives_us": timed(collectives, repeats=300),
        "exact_us": timed(lambda: step("exact"), repeats=10) if size <= EXACT_UP_TO else None,
    }
    state = pool._state
    own = sum(t.numel() * t.element_size() for t in (state.omega, state.velocity, state.masses, state.stats))
    every: list[Any] = [None] * processes
    dist.all_gather_object(every, (own, peak_bytes() - before))
    row["pool_bytes"] = [pool_bytes for pool_bytes, _ in every]
    row["resident_bytes"] = [resident for _, resident in every]
    row["bytes_per_example"] = round(sum(row["pool_bytes"]) / size, 3)
    if rank == 0:
        Path(folder, "row.json").write_text(json.dumps(row), encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Measure every size with every number of processes, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="examples of the pool")
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2, 4), help="processes that divide the pool")
    parser.add_argument("--out", type=Path, help="JSON file of the rows; none is written without it")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        for processes in arguments.processes:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(measure, args=(processes, int(size), folder), nprocs=processes)
                rows.append(json.loads(Path(folder, "row.json").read_text(encoding="utf-8")))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out is not None:
        head = json.dumps({"batch": BATCH, "metadata": metadata("cpu")}, indent=1).removesuffix("\n}")
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        arguments.out.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
