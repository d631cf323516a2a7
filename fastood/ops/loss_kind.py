"""The losses of mixed batches, by number: the `int loss` of the ops."""

from __future__ import annotations

from enum import IntEnum


class LossKind(IntEnum):
    """Kind of a fused loss: `OutlierLoss` of csrc/outlier_loss/losses.h, which has the formulas."""

    UNIFORMITY = 0
    ENTROPY = 1
    ENERGY_MARGIN = 2
    ENERGY = 3
    REJECT_CLASS = 4
    ICE = 5
    MAGNITUDE = 6
    ICE_MINUS = 7
    SIGMOID = 8
