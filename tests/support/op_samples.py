"""One table of inputs per op: it drives correctness, gradients, opcheck, compile and export, on every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.ops.outlier_loss import LossKind, LossSettings, RowArguments

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_logits(
    rows: int, classes: int, *, spread: float, offset: float, strided: bool, device: str, dtype: torch.dtype
) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 10007 + classes)
    shape = (rows, classes * 2 if strided else classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + offset
    return logits.to(device, dtype)[:, :classes]


def random_weight(rows: int, weights: str, *, device: str, dtype: torch.dtype) -> Tensor | None:
    """`weights`: none, random, some_zero or all_zero."""
    if weights == "none":
        return None
    weight = torch.rand(rows, generator=torch.Generator().manual_seed(rows), dtype=torch.float64) + 0.1
    if weights == "some_zero":
        weight[::3] = 0
    if weights == "all_zero":
        weight.zero_()
    return weight.to(device, torch.float64 if dtype == torch.float64 else torch.float32)


@dataclass(frozen=True)
class UniformitySample:
    """Logits of one shape and spread; `weights` names how rows are weighted."""

    rows: int
    classes: int
    spread: float = 1.0
    offset: float = 0.0
    weights: str = "random"
    strided: bool = False

    def __str__(self) -> str:
        layout = "-strided" if self.strided else ""
        return f"{self.rows}x{self.classes}-spread{self.spread:g}+{self.offset:g}-{self.weights}{layout}"

    def make(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        logits = random_logits(
            self.rows,
            self.classes,
            spread=self.spread,
            offset=self.offset,
            strided=self.strided,
            device=device,
            dtype=dtype,
        )
        return logits, random_weight(self.rows, self.weights, device=device, dtype=dtype)


# Around the lane counts (16, 32), the switch of layouts (32 classes), a warp, and the chunk of the row sums (1024).
UNIFORMITY_SAMPLES = [
    *(UniformitySample(rows, classes) for rows in (1, 15, 16, 33) for classes in (1, 2, 3, 10, 31, 32, 33)),
    *(UniformitySample(7, classes, weights="none") for classes in (100, 129, 1000, 1023, 1024, 1025, 2049)),
    *(UniformitySample(37, 10, spread=spread) for spread in (1e-3, 1e-2, 0.1, 10, 50)),
    *(UniformitySample(5, 1000, spread=spread, offset=8) for spread in (1e-2, 0.1, 10)),
    UniformitySample(0, 10),
    UniformitySample(0, 10, weights="none"),
    UniformitySample(40, 10, weights="some_zero"),
    UniformitySample(9, 100, weights="some_zero"),
    UniformitySample(4, 7, weights="all_zero"),
    UniformitySample(20, 10, strided=True),
    UniformitySample(6, 129, strided=True),
]

SMALL_UNIFORMITY_SAMPLES = [s for s in UNIFORMITY_SAMPLES if s.rows * s.classes <= 200 and s.weights != "all_zero"]


@dataclass(frozen=True)
class LossSample:
    """A mixed batch for one loss of the family; `targets` names which rows are background."""

    kind: LossKind
    rows: int
    classes: int
    spread: float = 1.0
    weights: str = "random"
    targets: str = "mixed"  # mixed, sorted, id, background
    by_weight: bool = True
    strided: bool = False

    def __str__(self) -> str:
        layout = "-strided" if self.strided else ""
        by = "" if self.by_weight else "-mean"
        return (
            f"{self.kind.name.lower()}-{self.rows}x{self.classes}-spread{self.spread:g}"
            f"-{self.weights}-{self.targets}{by}{layout}"
        )

    @property
    def settings(self) -> LossSettings:
        # Margins in the middle of the energies and norms that a sample has, so that each hinge is met from both sides.
        margins = {
            LossKind.ENERGY_MARGIN: (-3.0 - self.spread, -2.0),
            LossKind.MAGNITUDE: (self.spread * self.classes**0.5, 0.0),
        }.get(self.kind, (0.0, 0.0))
        num_reject = 0 if self.kind != LossKind.REJECT_CLASS else max(1, self.classes // 3)
        return LossSettings(self.kind, 0.7, *margins, num_reject=num_reject, by_weight=self.by_weight)

    def make(self, device: str, dtype: torch.dtype) -> tuple[Tensor, RowArguments]:
        logits = random_logits(
            self.rows,
            self.classes,
            spread=self.spread,
            offset=0.0,
            strided=self.strided,
            device=device,
            dtype=dtype,
        )
        if self.kind in (LossKind.ICE, LossKind.ICE_MINUS):  # negative squared distances, some of them close to zero
            logits = -logits.square()
        generator = torch.Generator().manual_seed(self.rows + 1)
        known = self.classes - self.settings.num_reject
        targets = torch.randint(0, known, (self.rows,), generator=generator)
        background = torch.rand(self.rows, generator=generator) < 0.6
        if self.targets == "sorted":
            background = background.sort().values
        if self.targets in ("id", "background"):
            background.fill_(self.targets == "background")
        targets[background] = -1
        targets[background & (torch.arange(self.rows) % 4 == 0)] = -100
        uniform01 = torch.rand(self.rows, generator=generator, dtype=torch.float64)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        return logits, RowArguments(
            targets.to(device),
            random_weight(self.rows, self.weights, device=device, dtype=dtype),
            uniform01.to(device, compute) if self.kind == LossKind.REJECT_CLASS else None,
        )


def loss_samples(kind: LossKind) -> list[LossSample]:
    """The samples of one loss: every edge of the kernels, and every kind of batch."""
    least = 2 if kind == LossKind.REJECT_CLASS else 1
    return [
        *(
            LossSample(kind, rows, classes)
            for rows in (1, 17, 33)
            for classes in (1, 2, 3, 10, 31, 32, 33)
            if classes >= least
        ),
        *(LossSample(kind, 7, classes, weights="none") for classes in (129, 1000, 1023, 1025)),
        *(LossSample(kind, 37, 10, spread=spread) for spread in (1e-2, 5, 30)),
        *(LossSample(kind, 7, 300, spread=spread, targets="sorted") for spread in (1e-2, 5, 30)),
        *(LossSample(kind, 40, 10, targets=targets, weights="none") for targets in ("id", "background", "sorted")),
        *(LossSample(kind, 9, 100, targets=targets) for targets in ("id", "background")),
        LossSample(kind, 0, 10),
        LossSample(kind, 40, 10, weights="some_zero"),
        LossSample(kind, 9, 100, weights="some_zero", by_weight=False),
        LossSample(kind, 40, 7, by_weight=False),
        LossSample(kind, 6, 7, weights="all_zero"),
        LossSample(kind, 20, 10, strided=True),
        LossSample(kind, 6, 129, strided=True, weights="none"),
    ]


LOSS_SAMPLES = [sample for kind in LossKind for sample in loss_samples(kind)]
SMALL_LOSS_SAMPLES = [s for s in LOSS_SAMPLES if s.rows * s.classes <= 120 and s.spread <= 5]


def outlier_loss_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of every op of the family, for opcheck: (name, op, args)."""
    calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []
    ops = torch.ops.fastood
    samples = [
        *(LossSample(kind, 17, 10) for kind in LossKind),
        LossSample(LossKind.UNIFORMITY, 3, 100, weights="none"),
        LossSample(LossKind.REJECT_CLASS, 3, 40, by_weight=False),
        LossSample(LossKind.ENTROPY, 0, 4),
    ]
    for sample in samples:
        for dtype in DTYPES:
            logits, rows = sample.make(device, dtype)
            args = (logits, *rows, *sample.settings)
            _, per_sample, row_stats, factors = ops.outlier_loss.default(*args)
            grad_loss = torch.ones((), dtype=per_sample.dtype, device=device)
            calls += [
                ("outlier_loss", ops.outlier_loss.default, args),
                ("outlier_loss_value_and_grad", ops.outlier_loss_value_and_grad.default, args),
                (
                    "_outlier_loss_backward",
                    ops._outlier_loss_backward.default,
                    (grad_loss, logits, row_stats, factors, int(sample.kind)),
                ),
            ]
    return calls


@dataclass(frozen=True)
class ScoreSample:
    """Logits of one shape and spread for `logit_scores`; `classes` does not count the reject classes."""

    rows: int
    classes: int
    spread: float = 1.0
    num_reject: int = 0
    gen_top: int | None = None
    strided: bool = False

    def __str__(self) -> str:
        layout = "-strided" if self.strided else ""
        return f"{self.rows}x{self.classes}+{self.num_reject}-spread{self.spread:g}-top{self.gen_top}{layout}"

    @property
    def settings(self) -> dict[str, int | None]:
        return {"num_reject": self.num_reject, "gen_top": self.gen_top}

    def make(self, device: str, dtype: torch.dtype) -> Tensor:
        return random_logits(
            self.rows,
            self.classes + self.num_reject,
            spread=self.spread,
            offset=0.0,
            strided=self.strided,
            device=device,
            dtype=dtype,
        )


# Around the lane counts (4, 16, 32), the switch of layouts on the CPU (256 logits), of groups on CUDA (16, 128, 1024),
# and the chunk of the row sums (1024).
SCORE_SAMPLES = [
    *(ScoreSample(rows, classes) for rows in (1, 15, 16, 33) for classes in (1, 2, 3, 10, 16, 17, 31, 32, 33)),
    *(ScoreSample(7, classes) for classes in (127, 129, 255, 256, 257, 272, 1000, 1023, 1024, 1025, 2049)),
    *(ScoreSample(37, 10, spread=spread) for spread in (1e-3, 1e-2, 0.1, 10, 50)),
    *(ScoreSample(5, 1000, spread=spread) for spread in (1e-3, 1e-2, 0.1, 10, 50)),
    *(ScoreSample(19, 10, gen_top=top) for top in (1, 2, 3, 9, 10, 11)),
    *(ScoreSample(5, 1000, spread=spread, gen_top=top) for spread in (0.1, 3) for top in (1, 2, 100, 999, 1000)),
    *(ScoreSample(19, classes, num_reject=1) for classes in (1, 2, 10, 255, 256)),
    *(ScoreSample(5, classes, num_reject=7, gen_top=5) for classes in (10, 249, 250, 1000)),
    *(ScoreSample(3, 300, num_reject=300, spread=spread) for spread in (0.1, 30)),
    ScoreSample(0, 10),
    ScoreSample(0, 1000, num_reject=3),
    ScoreSample(20, 10, strided=True),
    ScoreSample(6, 129, strided=True, num_reject=5),
    ScoreSample(6, 500, strided=True, gen_top=20),
]


def logit_scores_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of `logit_scores` for opcheck: (name, op, args)."""
    op = torch.ops.fastood.logit_scores.default
    return [
        ("logit_scores", op, (sample.make(device, dtype), mask, sample.num_reject, 0.1, sample.gen_top or 0))
        for sample, mask in [
            (ScoreSample(17, 10), 0b0111111),
            (ScoreSample(17, 10, gen_top=3), 0b0110000),
            (ScoreSample(3, 300, num_reject=5, gen_top=20), 0b1111111),
            (ScoreSample(5, 2000, strided=True), 0b0000010),
            (ScoreSample(0, 4), 0b0111111),
        ]
        for dtype in DTYPES
    ]
