"""Losses as functions."""

from fastood.ops.weighted_uniformity import weighted_uniformity

__all__ = ["weighted_uniformity"]
