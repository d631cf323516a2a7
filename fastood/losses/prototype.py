"""The prototype loss: features near a prototype of their class (Yang et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from fastood.losses.mixed_batch import check_targets
from fastood.ops._validation import compute_dtype


class PrototypeLoss(nn.Module):
    r"""Mean squared distance of in-distribution features to the nearest prototype of their own class.

        min_j ‖z - m_yj‖²

    The regulariser that Yang et al. 2018 add to the distance-based cross-entropy, with a small weight λ, for GCPL; Pei
    et al. 2022 take 0.01. Rows with a target below zero (background) do not count. Ambiguity: the authors' code has
    half of it, and 0.001 for λ; here it is whole.

    Shape:
        - features: `[N, d]`, float64, float32, bfloat16 or float16.
        - prototypes: `[K, J, d]`, J of each class, on the device of `features`.
        - targets: `[N]`, int64, a class in `0 … K - 1`, or below zero for background.
        - output: `[]`, float64 for float64 features, else float32; zero without in-distribution rows.

    Raises:
        TypeError: An argument is of another dtype.
        ValueError: An argument has the wrong shape or device.

    Example:
        >>> import torch
        >>> prototypes = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])  # two of each class
        >>> features = torch.tensor([[3.0, 1.0], [0.0, 7.0], [50.0, 50.0]])
        >>> PrototypeLoss()(features, prototypes, torch.tensor([0, 1, -1]))  # (2 + 4) / 2
        tensor(3.)
    """

    def forward(self, features: Tensor, prototypes: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss; shapes as in the class."""
        return self.with_per_sample(features, prototypes, targets)[0]

    def with_per_sample(self, features: Tensor, prototypes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, each row's squared distance, 0 for background."""
        _check(features, prototypes, targets)
        dtype = compute_dtype(features.dtype)
        known = targets >= 0
        # Background is left out rather than weighted by 0, which would make NaN of what is infinite.
        own = prototypes[targets[known]].to(dtype)
        nearest = (features[known].to(dtype)[:, None] - own).square().sum(dim=2).amin(dim=1)
        per_sample = nearest.new_zeros(len(targets))
        per_sample[known] = nearest.detach()
        return nearest.sum() / max(1, len(nearest)), per_sample


def _check(features: Tensor, prototypes: Tensor, targets: Tensor) -> None:
    for name, value in (("features", features), ("prototypes", prototypes)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {value.dtype}")
    if features.dim() != 2:
        raise ValueError(f"features must be [N, d], got shape {tuple(features.shape)}")
    if prototypes.dim() != 3 or prototypes.shape[2] != features.shape[1] or 0 in prototypes.shape:
        raise ValueError(
            f"prototypes must be [K, J, d] with d = {features.shape[1]} like the features, "
            f"got shape {tuple(prototypes.shape)}"
        )
    if prototypes.device != features.device:
        raise ValueError(f"prototypes must be on {features.device} like features, got {prototypes.device}")
    check_targets(targets, features, "features")
