"""Prototype loss of generalized convolutional prototype learning (GCPL, Yang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.ops._rows import Numbers, as_targets
from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, check_tensor, compute_dtype

__all__ = ["PrototypeLoss"]


class PrototypeLoss(nn.Module):
    r"""Mean squared distance of in-distribution features to the nearest prototype of their target class.

        min_j ‖z - m_yj‖²

    Yang et al. 2018 (https://arxiv.org/abs/1805.03438) add this regulariser to the distance-based cross-entropy with a
    small factor λ; Pei et al. 2022 (https://arxiv.org/abs/2112.11648) use λ = 0.01. Rows with a target below zero
    (background) are excluded from the mean. Ambiguity: the authors' code halves the distance and uses λ = 0.001; here
    the distance is not halved.

    Shape:
        - features: `[N, d]`, float64, float32, bfloat16 or float16.
        - prototypes: `[K, J, d]`, J prototypes of each class, on the device of `features`.
        - targets: `[N]`, a class in `0 … K - 1`, or below zero for background; dtypes as in `MixedBatchLoss`.
        - output: `[]`, float64 for float64 features, else float32; zero without in-distribution rows.

    Raises:
        TypeError: If an argument has another type or dtype.
        ValueError: If an argument has the wrong shape or device, or, on the CPU, a target is not below K. On a CUDA
            device such a target makes the loss NaN instead, because a check would wait for the device.

    Example:
        >>> import torch
        >>> prototypes = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])  # two of each class
        >>> features = torch.tensor([[3.0, 1.0], [0.0, 7.0], [50.0, 50.0]])
        >>> PrototypeLoss()(features, prototypes, torch.tensor([0, 1, -1]))  # (2 + 4) / 2
        tensor(3.)
    """

    def forward(self, features: Tensor, prototypes: Tensor, targets: Numbers) -> Tensor:
        """Return the scalar loss; see the class for shapes."""
        return self.with_per_sample(features, prototypes, targets)[0]

    def with_per_sample(self, features: Tensor, prototypes: Tensor, targets: Numbers) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and the detached squared distances of the rows, `[N]`, 0 for background."""
        labels = _checked_targets(features, prototypes, targets)
        dtype = compute_dtype(features.dtype)
        in_distribution = labels >= 0
        # torch.where rather than a product with the mask: 0 * inf of a background row would be NaN.
        rows = torch.where(in_distribution[:, None], features.to(dtype), 0.0)
        # Background rows read class 0 to keep the shapes static, and are masked out below.
        own = prototypes[labels.clamp(0, len(prototypes) - 1)].to(dtype)
        nearest = (rows[:, None] - own).square().sum(dim=2).amin(dim=1)
        if labels.device.type != "cpu":
            # Unchecked: an index out of range would destroy the CUDA context of the process.
            nearest = nearest.masked_fill(labels >= len(prototypes), torch.nan)
        per_sample = torch.where(in_distribution, nearest, 0.0)
        return per_sample.sum() / in_distribution.sum().clamp(min=1), per_sample.detach()


def _checked_targets(features: Tensor, prototypes: Tensor, targets: Numbers) -> Tensor:
    """Return the targets as int64 `[N]`, or raise unless all arguments fit."""
    check_tensor("features", features, LOGIT_DTYPES)
    check_tensor("prototypes", prototypes, LOGIT_DTYPES)
    if features.dim() != 2:
        raise ValueError(f"features must be [N, d], got shape {tuple(features.shape)}")
    if prototypes.dim() != 3 or prototypes.shape[2] != features.shape[1] or 0 in prototypes.shape:
        raise ValueError(
            f"prototypes must be [K, J, d] with d = {features.shape[1]} like the features, "
            f"got shape {tuple(prototypes.shape)}"
        )
    if prototypes.device != features.device:
        raise ValueError(f"prototypes must be on {features.device} like features, got {prototypes.device}")
    labels = as_targets(targets, features, "features")
    # Reading values would wait for a device, and break the graph of a compiled function.
    readable = labels.device.type == "cpu" and not (torch.compiler.is_compiling() or is_transformed())
    if readable and labels.numel() > 0:
        largest = int(labels.max())
        if largest >= prototypes.shape[0]:
            raise ValueError(
                f"targets must be below K = {prototypes.shape[0]} (or negative: background), got {largest}"
            )
    return labels
