"""Times providers of the same computation in turn and compares them by ratio.

Machines are shared and clocks drift: an absolute time says little, a ratio of two medians taken minutes apart hardly
more. So every round times each provider once, in random order and after an untimed call of its own, and a ratio is
taken within each round; its spread over rounds is reported with it.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

Run = Callable[[], object]

# A call shorter than this is repeated within a round, so that the cost of reading the clock is negligible.
MIN_SAMPLE_S = 2e-3
# Seconds of one sample of calls that are timed back to back on a GPU, and how many calls it has at most.
HOT_SAMPLE_S, MOST_HOT_CALLS = 1e-3, 200
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
    # Peak bytes that a call allocates beyond what was allocated before it; None if not measured.
    peak_bytes: int | None = None


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
    # Lower bound in seconds: bytes over bandwidth or operations over rate, measured in the same run; None if unknown.
    floor: float | None
    floor_is: str
    # Bytes that the op reads (logits), to compare peak memory with; None if unknown.
    input_bytes: int | None = None
    timings: dict[str, Timing] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return a plain dictionary, with timings in milliseconds."""
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
                **({} if t.peak_bytes is None else {"peak_bytes": t.peak_bytes}),
            }
            for name, t in self.timings.items()
        }
        return row


def quantile(values: list[float], q: float) -> float:
    """Compute the q-quantile by linear interpolation."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def time_cpu(run: Run, calls: int) -> float:
    """Return seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


class CudaTimer:
    """Timer of device seconds per call by CUDA events.

    A call is timed cold, after the level-2 cache was flushed, or hot: all calls of a sample back to back, between two
    events. The host waits once per sample, so that it queues calls while the device works.
    """

    def __init__(self, *, cold: bool = True) -> None:
        self.flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda") if cold else None

    def __call__(self, run: Run, calls: int) -> float:
        """Return seconds per call."""
        pairs = []
        for _ in range(calls if self.flush is not None else 1):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if self.flush is not None:
                self.flush.zero_()
            start.record()
            for _ in range(1 if self.flush is not None else calls):
                run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) * 1e-3 / calls


def in_graph(run: Run) -> Run:
    """Capture one call, after a warm-up on another stream as capture requires, and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def empty_kernel() -> None:
    """Launch PyTorch's kernel that spins for zero cycles, which takes the least time of any launch."""
    torch.cuda._sleep(0)


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
    input_bytes: int | None = None,
    seconds: float = 2.0,
    min_rounds: int = 15,
    cold: bool = True,
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
        floor: Seconds that the work takes at least (`floor`), or None.
        floor_is: Description of the floor, e.g. `12 bytes per logit at 20.1 GB/s`.
        input_bytes: Bytes that the op reads; with it, on a GPU, the peak memory of every provider is measured.
        seconds: Budget of the whole comparison.
        min_rounds: Rounds at least; fewer, down to five, where they would take more than five times the budget.
        cold: On a GPU, whether the level-2 cache is flushed before each call; otherwise calls follow back to back.
    """
    timer = CudaTimer(cold=cold) if device == "cuda" else time_cpu
    calls: dict[str, int] = {}
    once: dict[str, float] = {}
    peaks: dict[str, int | None] = dict.fromkeys(providers)
    for name, run in providers.items():
        warm_up(run)
        if device == "cuda" and input_bytes is not None:
            peaks[name] = peak_memory(run)
        start = time.perf_counter()
        sample = timer(run, 1)
        # Wall time: on a GPU a sample also flushes the cache and waits.
        once[name] = time.perf_counter() - start
        calls[name] = calls_of(sample, device, cold)
    round_seconds = max(sum(once[name] * (calls[name] + 1) for name in providers), 1e-9)
    at_least = min(min_rounds, max(5, int(5 * seconds / round_seconds)))
    rounds = max(at_least, min(200, int(seconds / round_seconds)))
    names, order = list(providers), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in providers}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                # One untimed call: the previous provider has left caches, pages and allocators in another state.
                providers[name]()
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
            peak_bytes=peaks[name],
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
        input_bytes=input_bytes,
        timings=timings,
    )


def calls_of(sample: float, device: str, cold: bool) -> int:
    """Return how many calls make one sample, if one call takes `sample` seconds."""
    if device == "cpu":
        return max(1, int(MIN_SAMPLE_S / max(sample, 1e-7)))
    return 5 if cold else min(MOST_HOT_CALLS, max(5, int(HOT_SAMPLE_S / max(sample, 1e-7))))


def warm_up(run: Run) -> None:
    """Call three times, or once if that takes long, so that compiled code, caches and allocators are warm."""
    start = time.perf_counter()
    run()
    if time.perf_counter() - start < 0.3:
        run()
        run()


def peak_memory(run: Run) -> int:
    """Return the peak bytes that one call allocates on the GPU beyond what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_growth(run: Run) -> int:
    """Return the peak bytes by which this process, started for one provider, grows in one call (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@functools.cache
def copy_bandwidth(device: str, size: int) -> float:
    """Measure the bytes per second, read and written, of a copy of `size` bytes.

    No kernel that is bound by memory is faster. On the CPU the rate depends on the size, because of the caches.
    """
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.zeros_like(source)
    timer = CudaTimer() if device == "cuda" else time_cpu
    target.copy_(source)
    return 2 * source.nbytes / fastest(timer, lambda: target.copy_(source), max(1, (1 << 20) // size))


@functools.cache
def exp_rate() -> float:
    """Measure the float32 exponentials per second of `torch.exp` on the CPU, on all threads and within the caches."""
    x = torch.linspace(-8, 0, torch.get_num_threads() << 15)
    out = torch.empty_like(x)
    return x.numel() / fastest(time_cpu, lambda: torch.exp(x, out=out), 2)


@functools.cache
def matmul_rate(device: str) -> float:
    """Measure the float32 operations per second of `torch.mm`, a multiply-add counted as two; kernels can be faster."""
    a = torch.ones(1024, 1024, device=device)
    out = torch.empty_like(a)
    timer = CudaTimer() if device == "cuda" else time_cpu
    torch.mm(a, a, out=out)
    return 2 * 1024**3 / fastest(timer, lambda: torch.mm(a, a, out=out), 1)


def fastest(timer: Callable[[Run, int], float], run: Run, calls: int) -> float:
    """Return the least seconds per call, of the samples of a third of a second: a floor is a limit, not an average."""
    samples = [timer(run, calls)]
    until = time.perf_counter() + 0.3
    while len(samples) < 9 or time.perf_counter() < until:
        samples.append(timer(run, calls))
    return min(samples)


def floor(device: str, moved: int, exponentials: int) -> tuple[float, str]:
    """Return the seconds for moving the bytes or, on the CPU, for the exponentials: the larger, with its name.

    The exponentials are those of `torch.exp`; a kernel with a cheaper exponential can be faster.
    """
    # A batch that fits into the caches is not bound by memory: measure a copy of about its size.
    size = 256 << 20 if device == "cuda" else min(max(1 << (moved // 3).bit_length(), 1 << 20), 256 << 20)
    bandwidth = copy_bandwidth(device, size)
    by_bytes = moved / bandwidth, f"{moved} bytes at the {bandwidth / 1e9:.1f} GB/s of a copy of {size >> 20} MiB"
    if device == "cuda":
        return by_bytes
    rate = exp_rate()
    return max(by_bytes, (exponentials / rate, f"{exponentials} exponentials at {rate / 1e9:.2f} per ns"))
