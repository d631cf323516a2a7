"""Boundary aware learning, BAL: a conditional GAN on the features of a frozen network.

Pei et al. 2022 (https://arxiv.org/abs/2112.11648). In this package `generator_network` is the generator G of the GAN,
and `generator` a `torch.Generator`.
"""

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
