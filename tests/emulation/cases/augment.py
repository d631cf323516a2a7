"""Calls of `augment_images`: all pixel types, layouts and alignments."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.emulation.cases.case import Case, Ops, refusal
from tests.support.augment_images_samples import DTYPES, AugmentSample

AUGMENT = "image_augment"


def _case(sample: AugmentSample, dtype: torch.dtype, channels_last: bool, second_turn: bool = False) -> Case:
    images = sample.make("cpu")
    mean = sample.mean if isinstance(sample.mean, list) else [sample.mean]
    std = sample.std if isinstance(sample.std, list) else [sample.std]

    def run(ops: Ops) -> list[Tensor]:
        return [ops.augment_images(*images, sample.padding, mean, std, dtype, channels_last)]

    name = f"{sample}-{dtype}{'-channels_last' * channels_last}"
    return Case(AUGMENT, name, run, second_turn=second_turn)


def _outside() -> Case:
    """Return a batch with indices out of range: NaN on CUDA, refused by the CPU op."""
    images, _, rows, columns, flip = AugmentSample(5, 3, 6, 7, 2).make("cpu")
    index = torch.tensor([0, 9, 3, -1, 8])
    bad = (index < 0) | (index >= len(images))

    def run(ops: Ops) -> list[Tensor]:
        native = ops is torch.ops.fastood
        chosen = torch.where(bad, 0, index) if native else index
        made = ops.augment_images(images, chosen, rows, columns, flip, 2, [0.5], [0.25], torch.float32, False)
        if native:
            made[bad] = torch.nan
        return [made]

    return Case(AUGMENT, "indices out of range", run)


def augment_cases() -> list[Case]:
    """Return the cases of the augmentation."""
    samples = [
        *(AugmentSample(5, 3, 5, width, 2) for width in (1, 2, 7, 8)),
        *(AugmentSample(5, channels, 6, 7, 3, by_channel=True) for channels in (1, 2, 4)),
        *(AugmentSample(5, 3, 6, 8, 2, flip=flip) for flip in ("all", "none")),
        *(AugmentSample(5, 3, 7, 6, 2, layout=layout) for layout in ("channels_last", "transposed", "strided")),
        AugmentSample(6, 3, 4, 5, 11),
        AugmentSample(0, 3, 8, 8, 1),
    ]
    cases = [_case(sample, torch.float32, last) for sample in samples for last in (False, True)]
    cases += [
        _case(AugmentSample(4, 3, 5, width, 1), dtype, last)
        for width in (4, 5)
        for dtype in DTYPES
        for last in (False, True)
    ]
    cases += [_case(AugmentSample(9, 3, 16, 17, 2), torch.float32, last, second_turn=True) for last in (False, True)]
    args = AugmentSample(5, 3, 6, 7, 2).make("cpu")
    cases += [
        _outside(),
        refusal(
            AUGMENT,
            "integer results",
            lambda ops: ops.augment_images(*args, 2, [0.5], [0.25], torch.int64, False),
        ),
    ]
    return cases
