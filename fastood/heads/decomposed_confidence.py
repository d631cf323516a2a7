"""Head with decomposed confidence: class scores divided by a gate (generalized ODIN, Hsu et al. 2020)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastood.ops._features import check_head_features, check_size
from fastood.ops._validation import compute_dtype, widened
from fastood.ops.mahalanobis_logits import mahalanobis_logits

__all__ = ["DecomposedConfidenceHead", "Similarity"]

Similarity = Literal["inner", "euclidean", "cosine"]
"""Similarity of features and class weights that h measures."""


class DecomposedConfidenceHead(nn.Module):
    r"""Logits `f_k = h_k / g`: class scores h divided by a gate g, which models the in-distribution probability.

    The variants DeConf-I, -E and -C of Hsu et al. 2020 (https://arxiv.org/abs/2002.11297):

        g(z) = σ(BN(w_g·z + b_g))        h_k(z) = w_k·z + b_k   ("inner")
                                               or -‖z - w_k‖²   ("euclidean")
                                               or cos(z, w_k)   ("cosine")

    Train it with the cross-entropy of f. The confidence of a trained head is `max_k h_k` (`class_scores`) or g
    (`gate_logits`). The paper applies no weight decay to h; `no_weight_decay()` names its parameters.

    Args:
        in_features: Width d of the features.
        num_classes: Number of classes K.
        similarity: Form of h: "inner", "euclidean" or "cosine".
        generator: Source of the initial values, on the CPU; None for PyTorch's global generator.

    Attributes:
        weight: w, `[K, d]`, initially He-normal.
        bias: b, `[K]`, for "inner"; else None.
        gate: Linear layer with w_g and b_g.
        norm: BN, a `BatchNorm1d` over the batch; in training mode it needs at least two rows.

    Shape:
        - features: `[N, d]`, in the dtype of the parameters, bfloat16 or float16.
        - output: `[N, K]`, in the dtype of the parameters; float32 if they are bfloat16 or float16. Computation is in
          float32 under autocast, too: in 16 bits confident rows have equal cosines.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> head = DecomposedConfidenceHead(8, 3, similarity="cosine")
        >>> features, targets = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        >>> torch.nn.functional.cross_entropy(head(features), targets).backward()
        >>> head.class_scores(features).amax(dim=1).shape, head.gate_logits(features).shape
        (torch.Size([4]), torch.Size([4]))
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        similarity: Similarity = "cosine",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        in_features, num_classes = check_size("in_features", in_features), check_size("num_classes", num_classes)
        if similarity not in get_args(Similarity):
            raise ValueError(f"similarity must be one of {', '.join(get_args(Similarity))}, got {similarity!r}")
        self.similarity: Similarity = similarity
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.bias = nn.Parameter(torch.zeros(num_classes)) if similarity == "inner" else None
        # Without initialisation, which would draw from the global generator.
        self.gate = nn.utils.skip_init(nn.Linear, in_features, 1)  # type: ignore[no-untyped-call]
        self.norm = nn.BatchNorm1d(1)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu", generator=generator)
        nn.init.xavier_uniform_(self.gate.weight, generator=generator)
        nn.init.zeros_(self.gate.bias)

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        classes, width = self.weight.shape
        return f"in_features={width}, num_classes={classes}, similarity={self.similarity!r}"

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters of h, to exclude from weight decay."""
        return {"weight", "bias"}

    def class_scores(self, features: Tensor) -> Tensor:
        """Return h, `[N, K]`; its argmax is the predicted class, because g is common to all classes.

        Raises:
            TypeError: If `features` has another dtype.
            ValueError: If `features` has another shape or device.
        """
        check_head_features(features, self.weight)
        weight = widened(self.weight)
        with torch.autocast(features.device.type, enabled=False):
            # autocast is off, because cosines of confident rows differ by less than 16 bits resolve.
            features = features.to(weight.dtype)
            if self.similarity == "euclidean":
                return mahalanobis_logits(features, weight, weight.new_ones(weight.shape[1]))
            if self.similarity == "cosine":
                return F.linear(F.normalize(features), F.normalize(weight))
            return F.linear(features, weight, None if self.bias is None else widened(self.bias))

    def gate_logits(self, features: Tensor) -> Tensor:
        """Return the logits of the gate g, `[N]`: the ranking of g, without ties where the sigmoid rounds to 1.

        Raises:
            TypeError: If `features` has another dtype.
            ValueError: If `features` has another shape or device.
        """
        check_head_features(features, self.weight)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(compute_dtype(self.weight.dtype))
            if self.gate.weight.dtype == features.dtype:
                logits: Tensor = self.norm(self.gate(features))
            else:
                # Layers in 16 bits are evaluated by their functional forms, with parameters cast to float32.
                gated = F.linear(features, widened(self.gate.weight), widened(self.gate.bias))
                logits = self._normalized(gated)
            return logits.squeeze(1)

    def _normalized(self, gated: Tensor) -> Tensor:
        """Return the batch-normalised gate, computed in float32 for a `norm` in 16 bits."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = widened(norm.running_mean), widened(norm.running_var)
        weight, bias = widened(norm.weight), widened(norm.bias)
        normalized = F.batch_norm(gated, mean, variance, weight, bias, norm.training, norm.momentum or 0.0, norm.eps)
        if norm.training:
            # F.batch_norm has updated the float32 copies of the running statistics.
            with torch.no_grad():
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.add_(1)
        return normalized

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits `[N, K]` of features `[N, d]`."""
        return self.class_scores(features) / self.gate_logits(features).sigmoid()[:, None]
