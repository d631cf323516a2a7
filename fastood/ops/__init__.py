"""Accelerated ops: typed functions over `torch.ops.fastood`, one file each.

`reference` holds the same formulas in plain float64 PyTorch, for tests and for reading.
"""

import fastood.ops._extension  # noqa: F401  registers the ops, or says why it cannot
from fastood.ops.augment_images import augment_images
from fastood.ops.class_l1_nearest import ClassL1Index, class_l1_nearest
from fastood.ops.logit_scores import logit_scores
from fastood.ops.mahalanobis_logits import mahalanobis_logits, mahalanobis_logits_and_nearest
from fastood.ops.weighted_uniformity import weighted_uniformity, weighted_uniformity_value_and_grad

__all__ = [
    "ClassL1Index",
    "augment_images",
    "class_l1_nearest",
    "logit_scores",
    "mahalanobis_logits",
    "mahalanobis_logits_and_nearest",
    "weighted_uniformity",
    "weighted_uniformity_value_and_grad",
]
