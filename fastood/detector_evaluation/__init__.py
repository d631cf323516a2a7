"""Detectors on the networks of a run: one pass of the images for all of them."""

from fastood.detector_evaluation.detectors import DetectorScores, detectors_document, score_detectors
from fastood.detector_evaluation.printing import print_detectors, write_detectors

__all__ = ["DetectorScores", "detectors_document", "print_detectors", "score_detectors", "write_detectors"]
