"""ViM: virtual-logit matching (Wang et al. 2022, https://arxiv.org/abs/2203.10807)."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.model_calls import Model
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, State
from fastood.ops._arguments import as_integer
from fastood.scores import energy_score

__all__ = ["FAR", "LEAST_SHARE", "MOST_SHARE", "ViM"]

LEAST_SHARE = 0.25
"""Smallest ratio of the mean largest logit to its mean distance from the mean logit for which the paper's α is used.
The ratio is about 1 after training with cross-entropy, whose gradient does not change the mean logit, from weights
around 0."""
MOST_SHARE = 10.0
"""Largest such ratio without a warning."""
FAR = 1e4
"""Largest ratio of the squared offset of the mean from the origin to the variance of the features, up to which the
eigenvectors of the sum of both keep the digits of the variance."""


class ViM(HeadDetector):
    r"""Virtual-logit matching, `α |R^T (z - o)| - logsumexp(W z + b)` of features z (Wang et al. 2022, eq. 6-8).

    The origin is `o = -W^+ b`. R spans the directions outside of the D principal directions of the training features
    about o, and `α = Σ max_k v_k / Σ |R^T (z - o)|` scales the residual to the logits. The score is the log-odds of the
    paper's virtual probability, which has the same ranking and does not round to 1.

    α assumes logits around 0, which softmax cross-entropy yields because it does not change their mean over the
    classes. Other networks (binary cross-entropy, negative distances as logits, a log-softmax in the head) may have
    largest logits near or below 0; α would then be tiny, or negative and reverse the ranking. If the mean largest logit
    is below a quarter of its mean distance from the row mean, fitting warns and subtracts the means over the classes
    from W and b, to which the softmax is invariant.

    Fitting sums one d × d matrix in float64 and computes its eigenvectors by `eigh` (OpenOOD calls `eig` for
    non-symmetric matrices, whose results may be complex). α needs a second pass over the data.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: The `nn.Linear` from features to logits; None for the last one of `model`.
        principal: D, at least 0 and below d. None for the paper's choice, 1000 for d ≥ 2048 and 512 for d ≥ 768, and
            for d // 2 below that, which the paper leaves open.

    Raises:
        ValueError: If `principal` is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(3, 2, bias=False)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
        >>> features = torch.tensor([[4.0, 0, 0.1], [4.0, 0, -0.1], [0, 4.0, 0.1], [0, 4.0, -0.1]])
        >>> detector = ViM(head=head, principal=2).fit_features(features, torch.tensor([0, 0, 1, 1]))
        >>> detector.predict_features(torch.tensor([[4.0, 0, 0], [4.0, 0, 0.1]])).round(decimals=3)
        tensor([-4.0180, -0.0180], dtype=torch.float64)
    """

    needs_fit = True
    two_passes = True
    settings = ("principal",)

    @takes_pytorch_ood("d", "w", "b", d="principal")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: nn.Linear | None = None,
        principal: int | None = None,
    ) -> None:
        super().__init__(model, feature_layer, head=head)
        width = self._width()
        if principal is None:
            principal = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        allowed = f"at least 0 and below {width}, the width of features"
        self.principal = as_integer("principal", principal, 0, width - 1, wanted=allowed)

    def _fitted(self, batches: Batches) -> State:
        state, largest, spread = self._fitted_with(batches, centred=False)
        if not largest >= LEAST_SHARE * spread:
            if self.head.out_features == 1:
                raise ValueError(
                    f"ViM needs a logit that is above 0 on training features, got one of {largest:.3g} on average: a "
                    "head of one class must have its largest logits in-distribution"
                )
            warnings.warn(
                f"ViM: the largest logit of training features is {largest:.3g} on average, {spread:.3g} above the mean "
                "logit of its row: the paper's α would be near 0 or negative. The means over the classes are "
                "subtracted from the logits, to which the softmax is invariant. Networks trained with binary "
                "cross-entropy, negative distances as logits and a log-softmax in the head have such logits; subtract "
                "the means over the classes from the head's weight and bias to avoid this warning",
                stacklevel=2,
            )
            state, _, _ = self._fitted_with(batches, centred=True)
        elif spread > 0 and largest > MOST_SHARE * spread:
            warnings.warn(
                f"ViM: the largest logit of training features is {largest:.3g} on average, but {spread:.3g} above the "
                "mean logit of its row: α is dominated by the common offset of all logits. Subtract the means over the "
                "classes from the head's weight and bias, to which the softmax is invariant",
                stacklevel=2,
            )
        return state

    def _fitted_with(self, batches: Batches, *, centred: bool) -> tuple[State, float, float]:
        """Return the state, the mean of the largest logits, and its distance from the mean of all logits."""
        weight, bias = self._weights(centred)
        width, origin = self._width(), _origin(weight, bias)
        directions, span = _directions(batches, origin)
        # Eigenvectors ascend with their eigenvalues: the first columns have the least variance.
        residual = directions[:, : width - self.principal].contiguous()
        largest, everything, norms, lengths = (origin.new_zeros(()) for _ in range(4))
        count = 0
        for rows, _ in batches():
            logits, from_origin = F.linear(rows, weight, bias), rows - origin
            largest += logits.amax(1).sum()
            everything += logits.mean(1).sum()
            norms += (from_origin @ residual).norm(dim=1).sum()
            lengths += from_origin.norm(dim=1).sum()
            count += len(rows)
        # Residuals that are rounding errors of the features would make α arbitrarily large.
        if norms <= 1e-9 * lengths:
            raise ValueError(
                f"ViM: principal={self.principal} leaves no residual space, because the training features span {span} "
                f"of {width} dimensions; pass a principal below {span}, or fit to more rows"
            )
        # On the CPU, where `_score` reads it without waiting for a device.
        is_centred = torch.full((), centred, dtype=largest.dtype, device="cpu")
        state = {"residual": residual, "alpha": largest / norms, "centred": is_centred}
        return state, float(largest) / count, float(largest - everything) / count

    def _score(self, rows: Tensor) -> Tensor:
        centred = self._state.get("centred")  # files of earlier versions have none
        weight, bias = self._weights(centred is not None and bool(centred))
        residual = ((rows - _origin(weight, bias)) @ self._state["residual"]).norm(dim=1)
        score: Tensor = self._state["alpha"] * residual + energy_score(F.linear(rows, weight, bias))
        return score

    def _weights(self, centred: bool) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the head in float64, minus their means over the classes if `centred`."""
        weight = self.head.weight.detach().double()
        bias = None if self.head.bias is None else self.head.bias.detach().double()
        if centred:
            weight = weight - weight.mean(0)
            bias = None if bias is None else bias - bias.mean()
        return weight, bias


def _directions(batches: Batches, origin: Tensor) -> tuple[Tensor, int]:
    """Return the principal directions `[d, d]` of rows about the origin by ascending variance, and their rank.

    The squares of a large common offset of the rows would absorb the digits of their variance. Moments are therefore
    summed about a point among the rows, and combined with the offset at the end.
    """
    width, count = len(origin), 0
    anchor, total, moment = origin, origin.new_zeros(width), origin.new_zeros(width, width)
    for rows, _ in batches():
        if count == 0 and len(rows) > 0:
            anchor = rows.mean(0)
        away = rows - anchor
        moment.addmm_(away.mT, away)
        total += away.sum(0)
        count += len(rows)
    # Σ (x - a)(x - a)^T minus n times the outer product of the mean's offset from a: moments about the mean.
    moment.addr_(total, total, alpha=-1 / count)
    offset = (anchor + total / count - origin) * math.sqrt(count)
    # The paper's directions are about the origin of the logits: moments about the mean plus this outer product.
    is_near = bool(offset.square().sum() <= FAR * moment.diagonal().sum())
    variances, axes = torch.linalg.eigh(moment.addr_(offset, offset) if is_near else moment)
    # Eigenvalues below d · eps of the largest are rounding errors of 0.
    span = int((variances > variances[-1] * width * torch.finfo(torch.float64).eps).sum())
    # A far offset would round the variances away in the sum. The SVD of the square root with the offset as one more row
    # has the same right singular vectors and squares nothing.
    if is_near:
        return axes, span
    factor = torch.cat([variances.clamp_min(0).sqrt()[:, None] * axes.mT, offset[None]])
    # svd sorts in descending order, eigh in ascending.
    return torch.linalg.svd(factor).Vh.flip(0).mT, min(span + 1, width)


def _origin(weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return weight.new_zeros(weight.shape[1])
    origin: Tensor = -(torch.linalg.pinv(weight) @ bias)
    return origin
