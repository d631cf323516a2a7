"""Exact detection metrics: AUROC, AUPR and FPR at a TPR, their curves, and the protocols of the papers.

Scores follow one convention everywhere: higher means more out-of-distribution (OOD). Every result carries
what its numbers depend on: the positive class, the image counts and, for a protocol, its name and repeats.
"""

from fastood.metrics.curves import PrCurve, RocCurve, pr_curve, roc_curve
from fastood.metrics.detection import DetectionMetrics, auroc, average_precision, detection_metrics, fpr_at_tpr
from fastood.metrics.protocol import PROTOCOLS, MeanStd, Protocol, ProtocolResult, evaluate_protocol
from fastood.metrics.rules import AuprKind, FprRule
from fastood.metrics.validation import Positive

__all__ = [
    "PROTOCOLS",
    "AuprKind",
    "DetectionMetrics",
    "FprRule",
    "MeanStd",
    "Positive",
    "PrCurve",
    "Protocol",
    "ProtocolResult",
    "RocCurve",
    "auroc",
    "average_precision",
    "detection_metrics",
    "evaluate_protocol",
    "fpr_at_tpr",
    "pr_curve",
    "roc_curve",
]
