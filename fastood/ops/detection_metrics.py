"""Exact detection metrics on sorted scores: sort once, then one pass per pair of sets or replicate.

`fastood.ops.reference.detection_metrics` computes them in plain float64 PyTorch.
"""

from fastood.ops.ranking_statistics import RankingStatistics, RocCounts, ranking_statistics, roc_counts
from fastood.ops.resampling import Scheme, resampled_statistics, resampling_counts
from fastood.ops.score_keys import keys_to_scores, sort_scores

__all__ = [
    "RankingStatistics",
    "RocCounts",
    "Scheme",
    "keys_to_scores",
    "ranking_statistics",
    "resampled_statistics",
    "resampling_counts",
    "roc_counts",
    "sort_scores",
]
