"""Values out of range, which the CPU ops refuse: a CUDA op reads nothing by them and marks its result by NaN or -1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fastood.ops import background_pool as pool_ops
from fastood.ops.outlier_loss import LossKind
from tests.emulation.cases.case import Case, Ops
from tests.support.augment_images_samples import AugmentSample
from tests.support.background_pool_samples import LAYOUTS, one_hot, pool_of
from tests.support.class_l1_nearest_samples import NearestSample, op_args
from tests.support.mahalanobis_samples import MahalanobisSample
from tests.support.op_samples import LossSample

LARGEST = torch.iinfo(torch.int64).max
OUTSIDE = (-1, LARGEST, -LARGEST - 1)
NAN = torch.nan


def _marked(
    folder: str,
    name: str,
    call: Callable[[Ops], Iterable[Tensor]],
    expected: Callable[[Ops], Iterable[Tensor]],
    ulps: float = 0,
    large: bool = False,
    blocks_race: bool = False,
) -> Case:
    """Return a case whose native results are made from valid arguments, and marked."""

    def run(ops: Ops) -> Iterable[Tensor]:
        return expected(ops) if ops is torch.ops.fastood else call(ops)

    return Case(folder, f"misuse: {name}", run, ulps=ulps, large=large, blocks_race=blocks_race)


def _pool() -> Iterator[Case]:
    folder = "background_pool"
    bad = torch.tensor([0.25, 1.0, -1e-9, NAN, 0.75, torch.inf], dtype=torch.float64)
    valid = (bad >= 0) & (bad < 1)
    for name, weights in (("even", torch.ones(100)), ("skewed", one_hot(5000, 77, rest=1e-6))):
        state = pool_of(weights, epsilon=0.5)._state
        tree = (state.omega, state.masses, state.stats)

        def drawn(ops: Ops, tree: tuple[Tensor, ...] = tree) -> list[Tensor]:
            index, importance = ops.background_pool_draw(*tree, bad.where(valid, 0.5), 0.5)
            return [index.where(valid, -1), importance.where(valid, NAN)]

        def found(ops: Ops, tree: tuple[Tensor, ...] = tree) -> list[Tensor]:
            target = bad * tree[2][pool_ops.MASS_TOTAL]
            return [ops.background_pool_find(*tree, target.where(valid, 0), 0.5).where(valid, -1)]

        yield _marked(
            folder, f"uniforms, {name}", lambda ops, tree=tree: ops.background_pool_draw(*tree, bad, 0.5), drawn
        )
        yield _marked(
            folder,
            f"targets, {name}",
            lambda ops, tree=tree: [ops.background_pool_find(*tree, bad * tree[2][pool_ops.MASS_TOTAL], 0.5)],
            found,
        )
    state = pool_of(LAYOUTS["half without weight"], epsilon=0.5)._state
    half = 0.5 * state.stats[pool_ops.MASS_TOTAL].expand(3).contiguous()
    yield _marked(
        folder,
        "masses of another pool",
        lambda ops: [ops.background_pool_find(state.omega, state.masses * 0, state.stats, half, 0.5)],
        lambda ops: [torch.full((3,), -1)],
    )
    empty = pool_of(torch.ones(100), epsilon=0.5)._state
    empty.omega.fill_(-torch.inf)
    pool_ops.pool_build(empty.omega, empty.masses, empty.stats, 0.5)
    uniform = torch.tensor([0.0, 0.5], dtype=torch.float64)
    yield _marked(
        folder,
        "a pool without weight",
        lambda ops: ops.background_pool_draw(empty.omega, empty.masses, empty.stats, uniform, 0.5),
        lambda ops: [torch.full((2,), -1), torch.full((2,), NAN)],
    )


def _nearest() -> Iterator[Case]:
    folder = "class_l1_nearest"
    args = op_args(NearestSample(20, 40, 5, 1), "cpu", torch.float32)
    last = int((args[2] == 19).nonzero())  # the position of the last row
    for value in (*OUTSIDE, 20):
        order = args[2].clone()
        order[last] = value

        def without_row(ops: Ops) -> list[Tensor]:
            distance, index = ops.class_l1_nearest(*args)
            distance[-1], index[-1] = NAN, -1
            return [distance, index]

        yield _marked(
            folder,
            f"query order {value}",
            lambda ops, order=order: ops.class_l1_nearest(*args[:2], order, *args[3:]),
            without_row,
            ulps=16,
        )
    for value in (*OUTSIDE, 40):
        order = torch.full_like(args[5], value)

        def without_keys(ops: Ops) -> list[Tensor]:
            distance, index = ops.class_l1_nearest(*args)
            return [distance.where(index < 0, NAN), torch.full_like(index, -1)]

        yield _marked(
            folder, f"key order {value}", lambda ops, order=order: ops.class_l1_nearest(*args[:5], order), without_keys
        )


def _heads() -> Iterator[Case]:
    for samples, diagonal in ((33, False), (33, True), (1100, False)):
        sample = MahalanobisSample(samples, 7, 5, diagonal=diagonal)
        features, means, scale = sample.make("cpu", torch.float32)
        _, residual, whitened, nearest = torch.ops.fastood.mahalanobis_logits(features, means, scale)
        grad = torch.ones(samples, 7)
        for value in (-1, LARGEST, 7):
            bad = nearest.clone()
            bad[3] = value

            # Its class is unknown: all gradients of means, and of what they share, are NaN.
            def marks(ops: Ops, args: tuple[Tensor, ...] = (grad, residual, whitened, nearest, scale)) -> list[Tensor]:
                of_features, of_means, _ = ops._mahalanobis_logits_backward(*args)
                of_features[3] = NAN
                return [of_features, torch.full_like(of_means, NAN)]

            yield _marked(
                "mahalanobis",
                f"nearest {value} of {sample}",
                lambda ops, args=(grad, residual, whitened, bad, scale): ops._mahalanobis_logits_backward(*args)[:2],
                marks,
                ulps=4096,
                large=samples > 1000,
            )


def _augment() -> Iterator[Case]:
    images, index, rows, columns, flip = AugmentSample(5, 3, 6, 7, 2).make("cpu")
    good = {"index": index, "rows": rows, "columns": columns}
    for argument, past in (("index", len(images)), ("rows", 5), ("columns", 5)):
        for value in (*OUTSIDE, past):
            bad = {**good, argument: good[argument].clone()}
            bad[argument][2] = value

            def call(ops: Ops, places: dict[str, Tensor]) -> Tensor:
                return ops.augment_images(images, *places.values(), flip, 2, [0.5], [0.25], torch.float32, False)

            def marks(ops: Ops, call: Callable[..., Tensor] = call) -> list[Tensor]:
                made = call(ops, good)
                made[2] = NAN
                return [made]

            yield _marked(
                "image_augment", f"{argument} {value}", lambda ops, bad=bad, call=call: [call(ops, bad)], marks
            )


def _metrics() -> Iterator[Case]:
    falling = torch.arange(5000, dtype=torch.int32).flip(0)[None]
    rising = torch.arange(3000, dtype=torch.int32)[None]
    low = torch.cat([torch.arange(4000), torch.zeros(1000, dtype=torch.int64)]).to(torch.int32)[None]
    for name, pair in (("falling", (falling, rising)), ("rising, then low", (rising, low)), ("both", (low, falling))):
        weights = [torch.ones(2, keys.shape[1], dtype=torch.int32) for keys in pair]

        # The numbers mean nothing; nothing outside of the rows is read, and they do not depend on the schedule.
        def shapes(ops: Ops, pair: tuple[Tensor, ...] = pair, weights: list[Tensor] = weights) -> list[Tensor]:
            found = [
                ops.ranking_statistics(*pair, None, None, None, [0.5]),
                ops.weighted_ranking_statistics(*pair, *weights, [0.5]),
            ]
            return [torch.tensor(x.shape) for x in found]

        yield _marked(
            "detection_metrics",
            f"keys that do not ascend, {name}",
            shapes,
            lambda ops: [torch.tensor([1, 8]), torch.tensor([2, 8])],
            # Tiles overlap where their ends cross, so that two blocks write the ranks of a score.
            blocks_race=True,
        )
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.5]] * 2)
    for value, clamped in ((-1, 0), (5, 4), (LARGEST, 4)):
        yield _marked(
            "detection_metrics",
            f"count {value} of scores",
            lambda ops, value=value: [ops.sort_scores(scores, torch.tensor([2, value]))],
            lambda ops, clamped=clamped: [ops.sort_scores(scores, torch.tensor([2, clamped]))],
        )


def _losses() -> Iterator[Case]:
    sample = LossSample(LossKind.UNIFORMITY, 6, 40)
    logits, rows = sample.make("cpu", torch.float32)
    _, _, stats, factors = torch.ops.fastood.outlier_loss(logits, *rows, *sample.settings)
    others = torch.arange(6) != 2
    for value in (40.0, 1e30, -1e30, NAN):
        bad = stats.clone()
        bad[2, 4] = value

        def gradient(ops: Ops, stats: Tensor) -> list[Tensor]:
            return [ops._outlier_loss_backward(torch.ones(()), logits, stats, factors, 0)[others]]

        yield _marked(
            "outlier_loss",
            f"target {value} in row_stats",
            lambda ops, bad=bad, gradient=gradient: gradient(ops, bad),
            lambda ops, gradient=gradient: gradient(ops, stats),
            ulps=16,
        )


def misuse_cases() -> list[Case]:
    """Return the cases of values out of range."""
    return [*_pool(), *_nearest(), *_heads(), *_augment(), *_metrics(), *_losses()]
