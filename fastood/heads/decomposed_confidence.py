"""A head whose logits are a class score divided by a confidence (Hsu et al. 2020)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastood.ops._features import check_head_features, check_size
from fastood.ops._validation import compute_dtype, widened
from fastood.ops.mahalanobis_logits import mahalanobis_logits

Similarity = Literal["inner", "euclidean", "cosine"]


class DecomposedConfidenceHead(nn.Module):
    r"""Logits `f_k = h_k / g`: what speaks for a class, over what speaks for being in-distribution at all.

    The networks DeConf-I, -E and -C of Hsu et al. 2020:

        g(z) = σ(BN(w_g·z + b_g))        h_k(z) = w_k·z + b_k   ("inner")
                                               or -‖z - w_k‖²   ("euclidean")
                                               or cos(z, w_k)   ("cosine")

    Trained by cross-entropy of f like any head. Afterwards `max_k h_k` (of `class_scores`) or g (of `gate_logits`) is
    the confidence. The weights of h must not decay, which `no_weight_decay()` says.

    Args:
        in_features: Width d.
        num_classes: K.
        similarity: Which h.
        generator: Source of the initial values, on the CPU; None takes PyTorch's global one.

    Attributes:
        weight: w, `[K, d]`, initially He-normal.
        bias: b, `[K]`, for "inner"; else None.
        gate: w_g and b_g.
        norm: BN, over the batch in training mode, which so needs two rows or more.

    Shape:
        - features: `[N, d]`, in the dtype of the parameters, or bfloat16 or float16.
        - output: `[N, K]`, in the dtype of the parameters; float32 where those are bfloat16 or float16. Under autocast,
          too, it is computed in float32: in 16 bits confident rows have the same cosine.

    Raises:
        ValueError: A setting is out of range.

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
        # Made empty: a layer's own initial values would come from the global generator.
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
        """Names of the parameters of h."""
        return {"weight", "bias"}

    def class_scores(self, features: Tensor) -> Tensor:
        """h, `[N, K]`; its largest is the class, as g is the same for all.

        Raises:
            TypeError: `features` is of another dtype.
            ValueError: It has another shape or device.
        """
        check_head_features(features, self.weight)
        weight = widened(self.weight)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(weight.dtype)
            if self.similarity == "euclidean":
                return mahalanobis_logits(features, weight, weight.new_ones(weight.shape[1]))
            if self.similarity == "cosine":
                return F.linear(F.normalize(features), F.normalize(weight))
            return F.linear(features, weight, None if self.bias is None else widened(self.bias))

    def gate_logits(self, features: Tensor) -> Tensor:
        """Return what g is the sigmoid of, `[N]`: ranks alike, and keeps apart what the sigmoid rounds to 1.

        Raises:
            TypeError, ValueError: As in `class_scores`.
        """
        check_head_features(features, self.weight)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(compute_dtype(self.weight.dtype))
            if self.gate.weight.dtype == features.dtype:
                logits: Tensor = self.norm(self.gate(features))
            else:
                gated = F.linear(features, widened(self.gate.weight), widened(self.gate.bias))
                logits = self._normalized(gated)
            return logits.squeeze(1)

    def _normalized(self, gated: Tensor) -> Tensor:
        """`norm` of 16 bits, computed in float32."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = widened(norm.running_mean), widened(norm.running_var)
        weight, bias = widened(norm.weight), widened(norm.bias)
        found = F.batch_norm(gated, mean, variance, weight, bias, norm.training, norm.momentum or 0.0, norm.eps)
        if norm.training:
            with torch.no_grad():
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.add_(1)
        return found

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[N, K]` of features `[N, d]`."""
        return self.class_scores(features) / self.gate_logits(features).sigmoid()[:, None]
