"""Exact detection metrics: AUROC, AUPR and FPR at a TPR, their curves, and the protocols of the papers.

In every function a higher score means more out-of-distribution (OOD). Every result holds the settings that its numbers
depend on: the positive class, the image counts and, for a protocol, its name and repeats.
"""

from fastood.metrics.bootstrap import bootstrap_differences, bootstrap_metrics
from fastood.metrics.calibration import ScoreCalibration, threshold_at_tpr
from fastood.metrics.curves import PrCurve, RocCurve, pr_curve, roc_curve
from fastood.metrics.delong import DelongEstimate, DelongTest, delong_estimate, delong_test
from fastood.metrics.detection import DetectionMetrics, auroc, average_precision, detection_metrics, fpr_at_tpr
from fastood.metrics.evaluator import DetectionEvaluator
from fastood.metrics.histogram import Bounded, HistogramEvaluator, HistogramMetrics
from fastood.metrics.intervals import BootstrapResult, Difference, Interval, IntervalMethod, Resampling
from fastood.metrics.many_detectors import evaluate_detectors
from fastood.metrics.open_set import autc, oscr
from fastood.metrics.protocol import PROTOCOLS, MeanStd, Protocol, ProtocolResult, evaluate_protocol
from fastood.metrics.risk_coverage import RiskCoverageCurve, risk_coverage_curve
from fastood.metrics.rules import AuprKind, FprRule
from fastood.metrics.validation import Positive

__all__ = [
    "PROTOCOLS",
    "AuprKind",
    "BootstrapResult",
    "Bounded",
    "DelongEstimate",
    "DelongTest",
    "DetectionEvaluator",
    "DetectionMetrics",
    "Difference",
    "FprRule",
    "HistogramEvaluator",
    "HistogramMetrics",
    "Interval",
    "IntervalMethod",
    "MeanStd",
    "Positive",
    "PrCurve",
    "Protocol",
    "ProtocolResult",
    "Resampling",
    "RiskCoverageCurve",
    "RocCurve",
    "ScoreCalibration",
    "auroc",
    "autc",
    "average_precision",
    "bootstrap_differences",
    "bootstrap_metrics",
    "delong_estimate",
    "delong_test",
    "detection_metrics",
    "evaluate_detectors",
    "evaluate_protocol",
    "fpr_at_tpr",
    "oscr",
    "pr_curve",
    "risk_coverage_curve",
    "roc_curve",
    "threshold_at_tpr",
]
