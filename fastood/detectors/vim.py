"""Virtual-logit matching (Wang et al. 2022)."""

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
"""Share that the largest logit has at least, on average, of its height above the mean logit, in an ordinary network: it
is about 1 where cross-entropy, which does not move the mean logit, was minimised from weights around 0."""
MOST_SHARE = 10.0
"""Share that the largest logit has at most."""
FAR = 1e4
"""Share of the features' squares about their mean that those of the mean about the origin may be, for eigenvectors of
the sum of both to keep the digits of the first."""


class ViM(HeadDetector):
    r"""`α |R^T (z - o)| - logsumexp(W z + b)` of features z (Wang et al. 2022, eq. 6-8).

    The origin `o = -W^+ b` is where the head is blind to the bias, R spans what is beyond the D principal directions of
    the training features about it, and `α = Σ max_k v_k / Σ |R^T (z - o)|` brings the residual to the scale of logits.
    The score is the log of the paper's virtual probability over one minus it, which ranks alike and does not round.

    α takes logits to be around 0, as those of a network trained by softmax cross-entropy are, whose mean over the
    classes training does not move. Where the largest logits of training features are not above 0 by a quarter of what
    they are above the mean of their row, as in networks trained by binary cross-entropy, with negative distances as
    logits or a log-softmax in the head, α would be next to nothing or negative and the score turn round: a warning says
    so, and the means over the classes are subtracted from W and b, which the softmax does not see.

    Fitting adds up one d × d matrix in float64 and takes its eigenvectors (`eigh`: OpenOOD calls the eigenvalue routine
    of non-symmetric matrices, whose results may be complex). α takes a second pass over the data.

    Args:
        model: As `HeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there.
        principal: D, at least 0 and below d; None for the paper's choice, 1000 for d of at least 2048 and 512 for at
            least 768, and for d // 2 below that, where the paper says nothing.

    Raises:
        ValueError: `principal` is out of range.

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
        wanted = f"at least 0 and below {width}, the width of features"
        self.principal = as_integer("principal", principal, 0, width - 1, wanted=wanted)

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
                "logit of its row: by the paper's α the residual would count for next to nothing or the wrong way "
                "round. Logits are taken less their mean over the classes, which no softmax can tell apart. Networks "
                "trained with binary cross-entropy, negative distances as logits and a head that ends in log-softmax "
                "have such logits; subtract the means over the classes from the head's weight and bias to choose it",
                stacklevel=2,
            )
            state, _, _ = self._fitted_with(batches, centred=True)
        elif spread > 0 and largest > MOST_SHARE * spread:
            warnings.warn(
                f"ViM: the largest logit of training features is {largest:.3g} on average, but {spread:.3g} above the "
                "mean logit of its row: α, and with it the residual, is as large as what all logits have in common. "
                "Subtract the means over the classes from the head's weight and bias, which no softmax can tell apart",
                stacklevel=2,
            )
        return state

    def _fitted_with(self, batches: Batches, *, centred: bool) -> tuple[State, float, float]:
        """Return the state, the mean of the largest logits, and how far that is above the mean of all."""
        weight, bias = self._weights(centred)
        width, origin = self._width(), _origin(weight, bias)
        directions, span = _directions(batches, origin)
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
        if norms <= 1e-9 * lengths:
            raise ValueError(
                f"principal={self.principal} leaves no residual space: the training features span {span} of {width} "
                f"dimensions; pass a principal below {span}, or fit to more rows"
            )
        state = {"residual": residual, "alpha": largest / norms, "centred": torch.full_like(largest, centred)}
        return state, float(largest) / count, float(largest - everything) / count

    def _score(self, rows: Tensor) -> Tensor:
        centred = self._state.get("centred")  # files of earlier versions have none
        weight, bias = self._weights(centred is not None and bool(centred))
        residual = ((rows - _origin(weight, bias)) @ self._state["residual"]).norm(dim=1)
        score: Tensor = self._state["alpha"] * residual + energy_score(F.linear(rows, weight, bias))
        return score

    def _weights(self, centred: bool) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the head in float64, less their means over the classes where asked for."""
        weight = self.head.weight.detach().double()
        bias = None if self.head.bias is None else self.head.bias.detach().double()
        if centred:
            weight = weight - weight.mean(0)
            bias = None if bias is None else bias - bias.mean()
        return weight, bias


def _directions(batches: Batches, origin: Tensor) -> tuple[Tensor, int]:
    """Return the principal directions `[d, d]` of rows about the origin, those of least first, and how many they span.

    Squares of an offset that rows have in common, added to those of what they differ in, would leave nothing of these:
    they are summed about a point among the rows, and brought together with the offset only then.
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
    moment.addr_(total, total, alpha=-1 / count)
    offset = (anchor + total / count - origin) * math.sqrt(count)
    is_near = bool(offset.square().sum() <= FAR * moment.diagonal().sum())
    variances, axes = torch.linalg.eigh(moment.addr_(offset, offset) if is_near else moment)
    span = int((variances > variances[-1] * width * torch.finfo(torch.float64).eps).sum())
    if is_near:
        return axes, span
    factor = torch.cat([variances.clamp_min(0).sqrt()[:, None] * axes.mT, offset[None]])
    return torch.linalg.svd(factor).Vh.flip(0).mT, min(span + 1, width)


def _origin(weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return weight.new_zeros(weight.shape[1])
    origin: Tensor = -(torch.linalg.pinv(weight) @ bias)
    return origin
