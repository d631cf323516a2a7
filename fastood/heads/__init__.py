"""Classification heads that replace a linear layer, and the statistics that they start from."""

from fastood.heads.gaussian_statistics import GaussianStatistics

__all__ = ["GaussianStatistics"]
