"""Accelerated ops: typed functions over `torch.ops.fastood`, one file each.

`fastood.losses` wraps `outlier_loss` with checks and conversions of its arguments. `fastood.ops.background_pool` holds
the ops of `fastood.samplers.BackgroundPool`; they trust their arguments and are not meant to be called directly.
`fastood.ops.reference` has the formulas in plain float64 PyTorch.
"""

from fastood.ops import (
    _extension,  # noqa: F401  registers the ops, or says why it cannot
    _negated_views,  # noqa: F401  registers kernels
)
from fastood.ops.augment_images import augment_images
from fastood.ops.class_l1_nearest import ClassL1Index, class_l1_nearest
from fastood.ops.detection_metrics import (
    RankingStatistics,
    RocCounts,
    Scheme,
    keys_to_scores,
    ranking_statistics,
    resampled_statistics,
    resampling_counts,
    roc_counts,
    sort_scores,
)
from fastood.ops.logit_scores import logit_scores
from fastood.ops.mahalanobis_logits import mahalanobis_logits, mahalanobis_logits_and_nearest
from fastood.ops.outlier_loss import (
    LossKind,
    LossSettings,
    RowArguments,
    outlier_loss,
    outlier_loss_value_and_grad,
)
from fastood.ops.weighted_uniformity import weighted_uniformity, weighted_uniformity_value_and_grad

__all__ = [
    "ClassL1Index",
    "LossKind",
    "LossSettings",
    "RankingStatistics",
    "RocCounts",
    "RowArguments",
    "Scheme",
    "augment_images",
    "class_l1_nearest",
    "keys_to_scores",
    "logit_scores",
    "mahalanobis_logits",
    "mahalanobis_logits_and_nearest",
    "outlier_loss",
    "outlier_loss_value_and_grad",
    "ranking_statistics",
    "resampled_statistics",
    "resampling_counts",
    "roc_counts",
    "sort_scores",
    "weighted_uniformity",
    "weighted_uniformity_value_and_grad",
]
