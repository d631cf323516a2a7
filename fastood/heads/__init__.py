"""Classification heads that replace a linear layer, and the feature statistics that initialise them."""

from fastood.heads.decomposed_confidence import DecomposedConfidenceHead
from fastood.heads.gaussian_statistics import GaussianStatistics
from fastood.heads.hypersphere import HypersphereHead
from fastood.heads.mahalanobis import CholeskyMahalanobisHead
from fastood.heads.prototypes import PrototypeHead

__all__ = [
    "CholeskyMahalanobisHead",
    "DecomposedConfidenceHead",
    "GaussianStatistics",
    "HypersphereHead",
    "PrototypeHead",
]
