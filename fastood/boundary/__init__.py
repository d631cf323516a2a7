"""Boundary aware learning (Pei et al. 2022): a conditional GAN learns where the features of a frozen network end."""

from fastood.boundary.bank import FeatureBank
from fastood.boundary.detector import BoundaryAwareDetector
from fastood.boundary.frame import FeatureFrame
from fastood.boundary.network import BoundaryAwareNetwork
from fastood.boundary.networks import ConditionalDiscriminator, ConditionalGenerator
from fastood.boundary.score import boundary_score
from fastood.boundary.settings import BoundarySettings
from fastood.boundary.training import BoundaryLosses, BoundaryTraining

__all__ = [
    "BoundaryAwareDetector",
    "BoundaryAwareNetwork",
    "BoundaryLosses",
    "BoundarySettings",
    "BoundaryTraining",
    "ConditionalDiscriminator",
    "ConditionalGenerator",
    "FeatureBank",
    "FeatureFrame",
    "boundary_score",
]
