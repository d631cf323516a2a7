"""Times providers of the same computation in turn and compares them by ratio.

Machines are shared and clocks drift: an absolute time says little, a ratio of two medians taken minutes apart hardly
more. So every round times each provider once, in an order that rotates, and a ratio is taken within each round; its
spread over rounds is reported with it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch

Run = Callable[[], object]

# One call shorter than this is repeated within a round, so that the clock's own cost disappears.
MIN_SAMPLE_S = 2e-3
# Larger than any level-2 cache (50 MB on H100 and H200): writing it between calls leaves the caches cold.
L2_FLUSH_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call of one provider over the rounds of a comparison."""

    provider: str
    median: float
    p20: float
    p80: float
    # Ratio of this provider's time to that of the subject, round by round: above 1, the subject is faster.
    ratio: float
    ratio_p20: float
    ratio_p80: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the results: an op on one shape, its subject and its peers."""

    op: str
    shape: str
    dtype: str
    device: str
    threads: int
    subject: str
    rounds: int
    # Seconds that bytes over bandwidth or operations over rate allow, measured in the same run; None where not stated.
    floor: float | None
    floor_is: str
    timings: dict[str, Timing] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """A plain dictionary, timings in milliseconds as named."""
        row = asdict(self)
        row["floor_ms"] = None if self.floor is None else self.floor * 1e3
        del row["floor"]
        row["timings"] = {
            name: {
                "median_ms": t.median * 1e3,
                "p20_ms": t.p20 * 1e3,
                "p80_ms": t.p80 * 1e3,
                "ratio": t.ratio,
                "ratio_p20": t.ratio_p20,
                "ratio_p80": t.ratio_p80,
            }
            for name, t in self.timings.items()
        }
        return row


def quantile(values: list[float], q: float) -> float:
    """The q-quantile, by linear interpolation."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def time_cpu(run: Run, calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


class CudaTimer:
    """Device seconds per call by events, with the level-2 cache flushed before each."""

    def __init__(self) -> None:
        self.flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, run: Run, calls: int) -> float:
        """Seconds per call, host work overlapped where it can be."""
        total = 0.0
        for _ in range(calls):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.flush.zero_()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            total += start.elapsed_time(end) * 1e-3
        return total / calls


def compare(
    op: str,
    shape: str,
    providers: Mapping[str, Run],
    *,
    subject: str,
    dtype: str = "float32",
    device: str = "cpu",
    floor: float | None = None,
    floor_is: str = "",
    seconds: float = 2.0,
    min_rounds: int = 15,
) -> Comparison:
    """Time `providers` in turn for about `seconds` in all and take the ratios to `subject`.

    Args:
        op: Name of the row.
        shape: As printed, e.g. `128x10`.
        providers: Name to a call that does the whole work once; compiled ones have been warmed up by the caller or are
            here, by three calls each.
        subject: The provider whose speed is claimed.
        dtype: As printed.
        device: `cpu` or `cuda`.
        floor: Seconds that no implementation can beat, or None.
        floor_is: What the floor counts, e.g. `12 bytes per logit at 20.1 GB/s`.
        seconds: Budget of the whole comparison.
        min_rounds: Rounds at least, whatever the budget.
    """
    timer = CudaTimer() if device == "cuda" else time_cpu
    calls: dict[str, int] = {}
    once: dict[str, float] = {}
    for name, run in providers.items():
        for _ in range(3):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        sample = timer(run, 1)
        # Wall time: on a GPU a sample also flushes the cache and waits.
        once[name] = time.perf_counter() - start
        calls[name] = max(1, int(MIN_SAMPLE_S / max(sample, 1e-7))) if device == "cpu" else 5
    round_seconds = sum(once[name] * calls[name] for name in providers)
    rounds = max(min_rounds, min(200, int(seconds / round_seconds)))
    names = list(providers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                samples[name].append(timer(providers[name], calls[name]))
    finally:
        gc.enable()
    timings = {}
    for name, values in samples.items():
        ratios = [value / base for value, base in zip(values, samples[subject], strict=True)]
        timings[name] = Timing(
            provider=name,
            median=statistics.median(values),
            p20=quantile(values, 0.2),
            p80=quantile(values, 0.8),
            ratio=statistics.median(ratios),
            ratio_p20=quantile(ratios, 0.2),
            ratio_p80=quantile(ratios, 0.8),
        )
    return Comparison(
        op=op,
        shape=shape,
        dtype=dtype,
        device=device,
        threads=torch.get_num_threads(),
        subject=subject,
        rounds=rounds,
        floor=floor,
        floor_is=floor_is,
        timings=timings,
    )


def copy_bandwidth(device: str) -> float:
    """Bytes per second (read and written) of a large copy: what a kernel bound by memory can hope for."""
    source = torch.empty(64 << 20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timer = CudaTimer() if device == "cuda" else time_cpu
    target.copy_(source)
    return 2 * source.nbytes / statistics.median(timer(lambda: target.copy_(source), 1) for _ in range(7))
