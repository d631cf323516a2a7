"""Calls of the losses and scores: all group widths, dtypes, kinds of rows, one block and several."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastood.ops.outlier_loss import LossKind
from tests.emulation.cases.case import Case, Ops, refusal
from tests.support.op_samples import DTYPES, LossSample, ScoreSample

LOSS = "outlier_loss"
SCORES = "logit_scores"

# Rows that take three blocks of 256 threads, by number of classes: groups of 4, 16 and 32 lanes, and a block per row.
SEVERAL_BLOCKS = ((300, 3), (82, 17), (41, 129), (7, 1030))


def _loss_case(sample: LossSample, dtype: torch.dtype, second_turn: bool = False, large: bool = False) -> Case:
    logits, rows = sample.make("cpu", dtype)

    def run(ops: Ops) -> Iterator[Tensor]:
        args = (logits, *rows, *sample.settings)
        loss, per_sample, row_stats, factors = ops.outlier_loss(*args)
        # The factors are float64 sums of losses of rows, which have the precision of the loss.
        yield from (loss, per_sample, row_stats, factors.to(loss.dtype))
        upstream = torch.full((), 1.5, dtype=loss.dtype)
        yield ops._outlier_loss_backward(upstream, logits, row_stats, factors, int(sample.kind))

    # Summed in another order; row_stats and gradients follow exponentials whose last bits differ.
    return Case(LOSS, f"{sample}-{dtype}", run, ulps=16, second_turn=second_turn, large=large)


def _with_nan(kind: LossKind, dtype: torch.dtype) -> Case:
    sample = LossSample(kind, 9, 20)
    logits, rows = sample.make("cpu", dtype)
    logits = logits.clone()
    logits[1, 3], logits[4, 0], logits[5] = torch.nan, torch.inf, -torch.inf

    def run(ops: Ops) -> Iterator[Tensor]:
        loss, per_sample, row_stats, factors = ops.outlier_loss(logits, *rows, *sample.settings)
        yield from (loss, per_sample)
        yield ops._outlier_loss_backward(torch.ones_like(loss), logits, row_stats, factors, int(kind))

    return Case(LOSS, f"{kind.name.lower()} of NaN and infinite logits", run, ulps=16)


def _target_outside() -> Case:
    """Return a batch with targets that are no class: NaN on CUDA, refused by the CPU op."""
    sample = LossSample(LossKind.UNIFORMITY, 9, 6, targets="id")
    logits, rows = sample.make("cpu", torch.float32)
    bad = torch.arange(9) % 4 == 2
    assert rows.targets is not None
    targets = torch.where(bad, 6, rows.targets)

    def run(ops: Ops) -> Iterator[Tensor]:
        native = ops is torch.ops.fastood
        chosen = rows.targets if native else targets
        loss, per_sample, _, _ = ops.outlier_loss(logits, chosen, *rows[1:], *sample.settings)
        yield torch.where(torch.tensor(native), torch.nan, loss)
        yield torch.where(bad, torch.nan, per_sample) if native else per_sample

    return Case(LOSS, "targets that are no class", run, ulps=16)


def loss_cases() -> list[Case]:
    """Return the cases of the outlier losses."""
    cases = []
    for kind in LossKind:
        least = 2 if kind == LossKind.REJECT_CLASS else 1
        samples = [
            *(LossSample(kind, 5, classes) for classes in (least, 3, 17, 129, 1025)),
            *(LossSample(kind, 5, 40, spread=spread, targets="sorted") for spread in (1e-2, 5, 30)),
            LossSample(kind, 11, 10, targets="id", weights="none"),
            LossSample(kind, 11, 10, targets="background"),
            LossSample(kind, 13, 7, weights="some_zero", by_weight=False),
            LossSample(kind, 6, 7, weights="all_zero"),
            LossSample(kind, 6, 40, strided=True),
            LossSample(kind, 0, 10),
        ]
        cases += [_loss_case(sample, torch.float32) for sample in samples]
        cases += [_loss_case(LossSample(kind, 9, 12), dtype) for dtype in DTYPES if dtype != torch.float32]
        cases.append(_with_nan(kind, torch.float32))
    for rows, classes in SEVERAL_BLOCKS:
        for kind in (LossKind.UNIFORMITY, LossKind.ENTROPY, LossKind.MAGNITUDE, LossKind.REJECT_CLASS):
            cases.append(_loss_case(LossSample(kind, rows, classes), torch.float32, second_turn=True))
    # More blocks than `finish_loss` has threads, each of which adds up every 256th.
    cases.append(_loss_case(LossSample(LossKind.UNIFORMITY, 270, 1025), torch.float32, large=True))
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))

    def without_targets(ops: Ops) -> tuple[Tensor, ...]:
        return ops.outlier_loss_value_and_grad(logits, None, None, None, 0, 1.0, 0.0, 0.0, 0, True)

    def backward(ops: Ops, logits: Tensor, stats: Tensor, factors: Tensor) -> Tensor:
        return ops._outlier_loss_backward(torch.ones(()), logits, stats, factors, 0)

    cases += [
        _target_outside(),
        Case(LOSS, "value and gradient without targets", without_targets, ulps=16),
        refusal(
            LOSS,
            "integer logits",
            lambda ops: ops.outlier_loss(logits.long(), None, None, None, 0, 1.0, 0.0, 0.0, 0, True),
        ),
        refusal(
            LOSS, "an unknown loss", lambda ops: ops.outlier_loss(logits, None, None, None, 99, 1.0, 0.0, 0.0, 0, True)
        ),
        refusal(
            LOSS,
            "row_stats of another batch",
            lambda ops: backward(ops, logits, torch.zeros(3, 5), torch.zeros(4, dtype=torch.float64)),
        ),
    ]
    return cases


def _score_case(sample: ScoreSample, mask: int, dtype: torch.dtype, second_turn: bool = False) -> Case:
    logits = sample.make("cpu", dtype)

    def run(ops: Ops) -> list[Tensor]:
        # Scores of their own magnitudes: one tensor each.
        return list(ops.logit_scores(logits, mask, sample.num_reject, 0.1, sample.gen_top or 0).unbind())

    return Case(SCORES, f"{sample}-mask{mask}-{dtype}", run, ulps=64, second_turn=second_turn)


def score_cases() -> list[Case]:
    """Return the cases of the detection scores."""
    all_scores, max_logit, sums = 0b0111111, 0b0000010, 0b0110101
    samples = [
        *(ScoreSample(5, classes) for classes in (1, 2, 3, 16, 17, 129, 1025)),
        *(ScoreSample(7, 40, spread=spread) for spread in (0, 1e-3, 1e-2, 0.1, 10, 50)),
        *(ScoreSample(7, 10, gen_top=top) for top in (1, 2, 9, 10, 11)),
        *(ScoreSample(5, 200, spread=spread, gen_top=top) for spread in (0.1, 3) for top in (1, 100, 199)),
        ScoreSample(4, 1030, gen_top=20),
        ScoreSample(6, 40, strided=True, gen_top=5),
        ScoreSample(0, 10),
    ]
    with_reject = [ScoreSample(7, 10, num_reject=1), ScoreSample(5, 1030, num_reject=7), ScoreSample(3, 30, 0.1, 30)]
    cases = [_score_case(sample, all_scores, torch.float32) for sample in samples]
    cases += [_score_case(sample, all_scores | 0b1000000, torch.float32) for sample in with_reject]
    cases += [_score_case(ScoreSample(9, 12, gen_top=3), all_scores, dtype) for dtype in DTYPES]
    cases += [_score_case(ScoreSample(9, 12), mask, torch.float32) for mask in (max_logit, sums)]
    for rows, classes in SEVERAL_BLOCKS:
        for mask in (all_scores, max_logit):
            cases.append(_score_case(ScoreSample(rows, classes, gen_top=2), mask, torch.float32, second_turn=True))

    special = ScoreSample(8, 20).make("cpu", torch.float32).clone()
    special[0, 3], special[1, 0], special[2], special[3, :2], special[4] = torch.nan, torch.inf, -torch.inf, 9.0, 2.5
    for top in (0, 3):
        cases.append(
            Case(
                SCORES,
                f"NaN, infinite, tied and equal logits, top {top}",
                lambda ops, top=top: list(ops.logit_scores(special, all_scores, 0, 0.1, top).unbind()),
                ulps=64,
            )
        )
    masked = ScoreSample(6, 10, num_reject=3).make("cpu", torch.float32).clone()
    masked[1, 10:], masked[2, 10:], masked[2, 4] = -torch.inf, -torch.inf, torch.nan
    cases.append(
        Case(
            SCORES,
            "reject classes that are masked",
            lambda ops: list(ops.logit_scores(masked, all_scores | 0b1000000, 3, 0.1, 0).unbind()),
            ulps=64,
        )
    )
    cases.append(refusal(SCORES, "an empty mask", lambda ops: ops.logit_scores(special, 0, 0, 0.1, 0)))
    return cases
