"""Losses for training with background data, to drop into any loop.

Targets below zero mark background rows: `loss(logits, targets)`.
"""

from fastood.losses import functional
from fastood.losses.outlier_exposure import OutlierExposureLoss

__all__ = ["OutlierExposureLoss", "functional"]
