"""The prototype loss: features near a prototype of their class (Yang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.ops._rows import Numbers, as_targets
from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, check_tensor, compute_dtype


class PrototypeLoss(nn.Module):
    r"""Mean squared distance of in-distribution features to the nearest prototype of their own class.

        min_j ‖z - m_yj‖²

    The regulariser that Yang et al. 2018 add to the distance-based cross-entropy, with a small weight λ, for GCPL; Pei
    et al. 2022 take 0.01. Rows with a target below zero (background) do not count. Ambiguity: the authors' code has
    half of it, and 0.001 for λ; here it is whole.

    Shape:
        - features: `[N, d]`, float64, float32, bfloat16 or float16.
        - prototypes: `[K, J, d]`, J of each class, on the device of `features`.
        - targets: `[N]`, a class in `0 … K - 1`, or below zero for background; types as in `MixedBatchLoss`.
        - output: `[]`, float64 for float64 features, else float32; zero without in-distribution rows.

    Raises:
        TypeError: An argument is of another type or dtype.
        ValueError: An argument has the wrong shape or device, or a target is not below K.

    Example:
        >>> import torch
        >>> prototypes = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])  # two of each class
        >>> features = torch.tensor([[3.0, 1.0], [0.0, 7.0], [50.0, 50.0]])
        >>> PrototypeLoss()(features, prototypes, torch.tensor([0, 1, -1]))  # (2 + 4) / 2
        tensor(3.)
    """

    def forward(self, features: Tensor, prototypes: Tensor, targets: Numbers) -> Tensor:
        """Return the scalar loss; shapes as in the class."""
        return self.with_per_sample(features, prototypes, targets)[0]

    def with_per_sample(self, features: Tensor, prototypes: Tensor, targets: Numbers) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, each row's squared distance, 0 for background."""
        labels = _checked(features, prototypes, targets)
        dtype = compute_dtype(features.dtype)
        known = labels >= 0
        # Background takes part as zeros, and by torch.where: times 0 what is infinite would be NaN.
        rows = torch.where(known[:, None], features.to(dtype), 0.0)
        own = prototypes[labels.clamp(min=0)].to(dtype)
        nearest = (rows[:, None] - own).square().sum(dim=2).amin(dim=1)
        per_sample = torch.where(known, nearest, 0.0)
        return per_sample.sum() / known.sum().clamp(min=1), per_sample.detach()


def _checked(features: Tensor, prototypes: Tensor, targets: Numbers) -> Tensor:
    """Return the targets as the loss wants them, or raise."""
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
    # An index out of range would stop a CUDA device for good, so that this waits for it.
    if not (torch.compiler.is_compiling() or is_transformed() or labels.is_meta or labels.numel() == 0):
        largest = int(labels.max())
        if largest >= prototypes.shape[0]:
            raise ValueError(
                f"targets must be below K = {prototypes.shape[0]} (or negative: background), got {largest}"
            )
    return labels
