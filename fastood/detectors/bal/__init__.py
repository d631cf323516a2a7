"""Boundary aware learning (Pei et al. 2022): a conditional GAN learns where the features of a frozen network end."""

from fastood.detectors.bal.detector import BoundaryAwareDetector
from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.detectors.bal.feature_frame import FeatureFrame
from fastood.detectors.bal.gan import ConditionalDiscriminator, ConditionalGenerator
from fastood.detectors.bal.score import boundary_score
from fastood.detectors.bal.settings import BoundarySettings
from fastood.detectors.bal.trainer import BoundaryLosses, BoundaryTraining

__all__ = [
    "BoundaryAwareDetector",
    "BoundaryLosses",
    "BoundarySettings",
    "BoundaryTraining",
    "ConditionalDiscriminator",
    "ConditionalGenerator",
    "FeatureBank",
    "FeatureFrame",
    "boundary_score",
]
