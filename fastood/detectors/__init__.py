"""Detectors that are fitted to features of any trained model; a higher score is more out-of-distribution."""

from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.multi_layer import MultiLayerMahalanobisDetector

__all__ = ["FeatureExtractor", "MahalanobisDetector", "MultiLayerMahalanobisDetector"]
