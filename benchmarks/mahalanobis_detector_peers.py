"""Peers of the Mahalanobis detector: the computations of pytorch-ood 0.2 and OpenOOD 1.5, reimplemented.

Both centre class by class in float32 and invert the covariance. To score, both form, for every class, the product of
all rows with all rows and take its diagonal; OpenOOD does so on the CPU wherever the network is. pytorch-ood adds 1e-6
to the diagonal and inverts by LU, OpenOOD calls scikit-learn's EmpiricalCovariance (which centres once more, and
inverts by eigenvalues).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor


@dataclass(frozen=True)
class Fitted:
    """Means `[K, d]` and the inverse covariance `[d, d]`, float32."""

    means: Tensor
    precision: Tensor


def fit_pytorch_ood(features: Tensor, labels: Tensor) -> Fitted:
    classes = int(labels.max()) + 1
    means = torch.zeros(classes, features.shape[1])
    scatter = torch.zeros(features.shape[1], features.shape[1])
    for index in range(classes):
        rows = features[labels == index]
        means[index] = rows.mean(0)
        scatter += (rows - means[index]).T @ (rows - means[index])
    covariance = scatter / (len(features) - 1) + 1e-6 * torch.eye(features.shape[1])
    return Fitted(means, torch.linalg.inv(covariance))


def fit_openood(features: Tensor, labels: Tensor) -> Fitted:
    means, centred = [], []
    for index in range(int(labels.max()) + 1):
        rows = features[labels == index]
        means.append(rows.mean(0))
        centred.append(rows - means[-1])
    estimator = EmpiricalCovariance(assume_centered=False)
    estimator.fit(torch.cat(centred).numpy().astype(np.float32))
    return Fitted(torch.stack(means), torch.from_numpy(estimator.precision_).float())


def score(fitted: Fitted, features: Tensor) -> Tensor:
    """Compute scores `[N]`, higher for OOD, by the diagonal of an N × N product per class, as both libraries do."""
    of_class = []
    for mean in fitted.means:
        rows = features - mean
        of_class.append((rows @ fitted.precision @ rows.T).diag())
    return torch.stack(of_class, 1).amin(1)
