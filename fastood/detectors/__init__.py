"""Detectors on any trained model, fitted to its logits or features; a higher score is more out-of-distribution.

Names and calls are those of pytorch-ood: `fit`, `fit_features`, `predict`, `predict_features`. Constructors take their
own arguments, or those of pytorch-ood 0.4 by its names and in its order; where defaults differ, those here hold.
"""

from fastood.detectors.activation import ASH, SCALE, ReAct
from fastood.detectors.base import Detector
from fastood.detectors.dice import DICE
from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.gathering import gather_rows
from fastood.detectors.gradnorm import GradNorm
from fastood.detectors.knn import KNN
from fastood.detectors.linear_head import LinearHeadModel
from fastood.detectors.logits import GEN, EnergyBased, Entropy, KLMatching, MaxLogit, MaxSoftmax
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.mahalanobis_variants import RMD, Mahalanobis, MahalanobisODIN, MultiMahalanobis
from fastood.detectors.multi_layer import MultiLayerMahalanobisDetector
from fastood.detectors.odin import ODIN
from fastood.detectors.registry import DETECTORS, build_detectors, detector_names
from fastood.detectors.she import SHE
from fastood.detectors.suite import DetectorSuite
from fastood.detectors.vim import ViM

__all__ = [
    "ASH",
    "DETECTORS",
    "DICE",
    "GEN",
    "KNN",
    "ODIN",
    "RMD",
    "SCALE",
    "SHE",
    "Detector",
    "DetectorSuite",
    "EnergyBased",
    "Entropy",
    "FeatureExtractor",
    "GradNorm",
    "KLMatching",
    "LinearHeadModel",
    "Mahalanobis",
    "MahalanobisDetector",
    "MahalanobisODIN",
    "MaxLogit",
    "MaxSoftmax",
    "MultiLayerMahalanobisDetector",
    "MultiMahalanobis",
    "ReAct",
    "ViM",
    "build_detectors",
    "detector_names",
    "gather_rows",
]
