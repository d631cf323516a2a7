"""Goals of the CUDA kernels as data: work, shape, limit, and where the limit comes from.

`benchmarks/test_gpu_goals.py` measures each goal and stores the rows under its key; verdict.py compares them. The
limits are the design targets of the kernels: K1 to K5 are the first targets for losses, pool, head, metrics and nearest
neighbours, P1 to P5 their later revision. Work without a target is measured and reported.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOOR = "floor"
TIME = "time"

K1 = "K1: at most 1.15 times the bytes for N K of 4 million and more"
K2 = "K2, P2: at most 8 µs a step at B 256"
P2 = "P2: at most 20 µs a step at B 4096, up to 10⁹ examples"
K3 = "K3, P4: at least 90 % of the speed of solve + matmul"
K4 = "K4, P3: at most 150 µs for 64 sets of 36,000 scores"
K5 = "K5, P5: at most 1.5 times the larger of bytes and two instructions per element"
COPY = "P1: at least 80 % of copy bandwidth"
EXACT = "P2: at most 1.3 times a streaming pass"
STEP = "whole job: at least 5 times the authors' way"
NONE = "no target"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One goal: the subject's time over a reference is at most `limit`."""

    key: str
    measure: str
    """Function of `benchmarks/test_gpu_goals.py` that measures the goal."""
    work: str
    shape: tuple[int, ...]
    tiny: tuple[int, ...]
    """Shape for a rehearsal."""
    dtype: str = "float32"
    reference: str = FLOOR
    """`floor` of the row, the name of a provider of the row, or `time` for microseconds."""
    limit: float | None
    """Largest ratio to the reference, or microseconds; None if there is no target."""
    how: str
    source: str


def _losses(dtype: str) -> list[Goal]:
    """Return the goals of the losses in one dtype."""
    return [
        Goal(
            key=f"losses-{dtype}",
            measure="losses",
            work="OutlierExposureLoss, forward + backward",
            shape=(65536, 1000),
            tiny=(16, 10),
            dtype=dtype,
            limit=1.15,
            how="replayed from a graph; floor: logits read twice and written once at the speed of a copy",
            source=K1,
        )
    ]


GOALS: list[Goal] = [
    Goal(
        key="pool-256",
        measure="pool_step",
        work="pool: draw + sparse step",
        shape=(1_280_000, 256),
        tiny=(5000, 8),
        reference=TIME,
        limit=8.0,
        how="one graph of draw and step, replayed back to back",
        source=K2,
    ),
    *_losses("float32"),
    *_losses("bfloat16"),
    Goal(
        key="metrics-64x36k",
        measure="metrics",
        work="AUROC, both AUPRs, FPR95",
        shape=(64, 10_000, 26_000),
        tiny=(2, 50, 70),
        reference=TIME,
        limit=150.0,
        how="public call on tensors of the GPU",
        source=K4,
    ),
    Goal(
        key="head-forward",
        measure="head_forward",
        work="mahalanobis_logits, forward",
        shape=(4096, 1000, 2048),
        tiny=(8, 4, 16),
        reference="solve + mm",
        limit=1 / 0.9,
        how="public call without gradient, next to one solve for features and means and one matmul",
        source=K3,
    ),
    Goal(
        key="pool-4096",
        measure="pool_step",
        work="pool: draw + sparse step",
        shape=(1_280_000, 4096),
        tiny=(5000, 64),
        reference=TIME,
        limit=20.0,
        how="one graph of draw and step, replayed back to back",
        source=P2,
    ),
    Goal(
        key="nearest-50k",
        measure="nearest",
        work="class_l1_nearest, forward",
        shape=(128, 50_000, 512, 10),
        tiny=(8, 60, 4, 3),
        limit=1.5,
        how="index made before; floor: keys at the speed of a copy, or two instructions per element at that of matmul",
        source=K5,
    ),
    Goal(
        key="pool-exact",
        measure="pool_exact",
        work="pool: draw + exact step",
        shape=(16_000_000, 128),
        tiny=(5000, 8),
        reference="streaming pass",
        limit=1.3,
        how="graph of draw and step, next to a pass that reads and writes the 16 bytes of each example",
        source=EXACT,
    ),
    Goal(
        key="scores",
        measure="scores",
        work="all logit_scores",
        shape=(65536, 1000),
        tiny=(16, 10),
        limit=1.25,
        how="public call without gradient; floor: one read of the logits at the speed of a copy",
        source=COPY,
    ),
    *_losses("float16"),
    Goal(
        key="head-backward",
        measure="head_backward",
        work="mahalanobis_logits, forward + backward",
        shape=(4096, 1000, 2048),
        tiny=(8, 4, 16),
        reference="solve + mm",
        limit=1 / 0.9,
        how="gradients of features, means and factor by autograd",
        source=K3,
    ),
    Goal(
        key="head-small",
        measure="head_forward",
        work="mahalanobis_logits, forward",
        shape=(256, 100, 512),
        tiny=(8, 4, 8),
        reference="solve + mm",
        limit=1 / 3,
        how="public call without gradient",
        source="K3: at least 3 times the speed for N of 256 and less",
    ),
    Goal(
        key="augment",
        measure="augment",
        work="augmented batch from a pool",
        shape=(100_000, 512, 32),
        tiny=(20, 4, 8),
        limit=None,
        how="one batch of given draws; floor: one byte read and four written per pixel",
        source=NONE,
    ),
    Goal(
        key="resampling-step",
        measure="resampling_step",
        work="training step of resampling, WRN-16-1",
        shape=(128,),
        tiny=(4,),
        reference="authors' way, channels last, 1+1 workers",
        limit=1 / 5,
        how="steps of the trainer, network included",
        source=STEP,
    ),
]


def by_key() -> dict[str, Goal]:
    """Return the goals by key."""
    return {goal.key: goal for goal in GOALS}
