"""Losses for training with background data, as modules for any training loop.

Most are called `loss(logits, targets)`; targets below zero mark background rows.
"""

from fastood.losses.deep_svdd import DeepSVDDLoss
from fastood.losses.energy import EnergyLoss, EnergyRegularizedLoss
from fastood.losses.ice import ICELoss, SigmoidLikelihoodLoss
from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.losses.objectosphere import EntropicOpenSetLoss, ObjectosphereLoss
from fastood.losses.outlier_exposure import EntropyMaximizationLoss, OutlierExposureLoss
from fastood.losses.prototype import PrototypeLoss
from fastood.losses.reject_class import RejectClassLoss

__all__ = [
    "DeepSVDDLoss",
    "EnergyLoss",
    "EnergyRegularizedLoss",
    "EntropicOpenSetLoss",
    "EntropyMaximizationLoss",
    "ICELoss",
    "MixedBatchLoss",
    "ObjectosphereLoss",
    "OutlierExposureLoss",
    "PrototypeLoss",
    "RejectClassLoss",
    "SigmoidLikelihoodLoss",
]
