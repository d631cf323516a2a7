"""Head with learnt prototypes that replaces a linear layer (GCPL, Yang et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastood.ops._arguments import as_real
from fastood.ops._features import check_size
from fastood.ops._validation import widened
from fastood.ops.mahalanobis_logits import mahalanobis_logits

__all__ = ["PrototypeHead"]


class PrototypeHead(nn.Module):
    r"""Logits from distances to prototypes: the closer features are to a prototype of a class, the larger its logit.

    With prototypes m_kj, j = 1 … J, of class k,

        v_k(z) = log Σ_j exp(-γ ‖z - m_kj‖²)        so that        softmax(v)_k = Σ_j p(m_kj | z),

    the posterior of Yang et al. 2018 (https://arxiv.org/abs/1805.03438): the cross-entropy of these logits is the
    paper's distance-based cross-entropy. Train it together with `PrototypeLoss`. Distances are computed from
    differences, not as `‖z‖² - 2 z·m + ‖m‖²`, which cancels for small distances, and the prototype loss makes distances
    small.

    Ambiguities and how they are resolved:
        - The authors' code starts with all prototypes at zero, where several prototypes of a class would stay equal.
          Here they are drawn with a standard deviation of `init_scale`, small compared to features.
        - `no_weight_decay()` names the prototypes: decay would pull the classes to the origin of the features.

    Args:
        in_features: Width d of the features.
        num_classes: Number of classes K.
        per_class: Number of prototypes J of each class; 1 in the authors' code.
        gamma: γ > 0, the hardness of the assignment; 1 in the authors' code.
        init_scale: Standard deviation of the initial prototypes, at least 0.
        generator: Source of the initial values, on the CPU; None for PyTorch's global generator.

    Attributes:
        prototypes: Prototypes of all classes, `[K, J, d]`.

    Shape:
        - features: `[N, d]`, in the dtype of the prototypes, bfloat16 or float16, with or without autocast.
        - output: `[N, K]`, at most `log J`, in the dtype of the prototypes. If the prototypes are bfloat16 or float16,
          as after `model.bfloat16()`, computation and output are float32.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> from fastood.losses import PrototypeLoss
        >>> head, regulariser = PrototypeHead(2, 3), PrototypeLoss()
        >>> features = torch.tensor([[0.0, 2.0], [5.0, 5.0]], requires_grad=True)
        >>> targets = torch.tensor([0, 2])
        >>> loss = torch.nn.functional.cross_entropy(head(features), targets)
        >>> (loss + 0.01 * regulariser(features, head.prototypes, targets)).backward()
        >>> head.distances(features).shape
        torch.Size([2, 3, 1])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        per_class: int = 1,
        gamma: float = 1.0,
        init_scale: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        in_features, num_classes = check_size("in_features", in_features), check_size("num_classes", num_classes)
        per_class = check_size("per_class", per_class)
        self.gamma = as_real("gamma", gamma)
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be above 0 and finite, got {gamma}")
        init_scale = as_real("init_scale", init_scale)
        if not 0 <= init_scale < math.inf:
            raise ValueError(f"init_scale must be at least 0 and finite, got {init_scale}")
        self.prototypes = nn.Parameter(
            init_scale * torch.randn(num_classes, per_class, in_features, generator=generator)
        )

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        classes, per_class, width = self.prototypes.shape
        return f"in_features={width}, num_classes={classes}, per_class={per_class}, gamma={self.gamma}"

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters to exclude from weight decay, after the convention of timm."""
        return {"prototypes"}

    def distances(self, features: Tensor) -> Tensor:
        """Return the squared distances `[N, K, J]` of features `[N, d]` to every prototype."""
        flat = widened(self.prototypes.flatten(0, 1))
        # The op of the Mahalanobis head with unit scales: fused, and accurate for small distances.
        unit = flat.new_ones(flat.shape[1])
        return -mahalanobis_logits(features, flat, unit).view(-1, *self.prototypes.shape[:2])

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits `[N, K]` of features `[N, d]`."""
        # logsumexp scales by the largest term: exp(-γ d) alone underflows in float32 for γ d above 103.
        logits: Tensor = (-self.gamma * self.distances(features)).logsumexp(dim=2)
        return logits
