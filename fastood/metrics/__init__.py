"""Exact detection metrics: AUROC, AUPR and FPR at a TPR, their curves, and the protocols of the papers.

Scores follow one convention everywhere: higher means more out-of-distribution (OOD). Every result carries
what its numbers depend on: the positive class, the image counts and, for a protocol, its name and repeats.
"""

from fastood.metrics.curves import PrCurve, RocCurve, pr_curve, roc_curve
from fastood.metrics.detection import DetectionMetrics, detection_metrics
from fastood.metrics.protocol import MeanStd, Protocol, ProtocolResult, evaluate_protocol
from fastood.metrics.thresholds import Positive

__all__ = [
    "DetectionMetrics",
    "MeanStd",
    "Positive",
    "PrCurve",
    "Protocol",
    "ProtocolResult",
    "RocCurve",
    "detection_metrics",
    "evaluate_protocol",
    "pr_curve",
    "roc_curve",
]
