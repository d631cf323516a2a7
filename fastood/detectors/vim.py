"""Virtual-logit matching (Wang et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.detectors.feature_extractor import Model
from fastood.detectors.head_detector import HeadDetector, energy
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, State


class ViM(HeadDetector):
    r"""`α |R^T (z - o)| - logsumexp(W z + b)` of features z (Wang et al. 2022, eq. 6-8).

    The origin `o = -W^+ b` is where the head is blind to the bias, R spans what is beyond the D principal directions of
    the training features about it, and `α = Σ max_k v_k / Σ |R^T (z - o)|` brings the residual to the scale of logits.
    The score is the log of the paper's virtual probability over one minus it, which ranks alike and does not round.

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
        if not 0 <= principal < width:
            raise ValueError(f"principal must be at least 0 and below {width}, the width of features, got {principal}")
        self.principal = principal

    def _fitted(self, batches: Batches) -> State:
        width, origin = self._width(), self._origin()
        moment = origin.new_zeros(width, width)
        for rows, _ in batches():
            centred = rows - origin
            moment.addmm_(centred.mT, centred)
        # Eigenvalues ascend: the first directions are those that training features have least of.
        residual = torch.linalg.eigh(moment).eigenvectors[:, : width - self.principal].contiguous()
        logits, norms, lengths = (origin.new_zeros(()) for _ in range(3))
        for rows, _ in batches():
            logits += self._logits(rows).amax(1).sum()
            norms += ((rows - origin) @ residual).norm(dim=1).sum()
            lengths += (rows - origin).norm(dim=1).sum()
        if norms <= 1e-9 * lengths:
            span = int(torch.linalg.matrix_rank(moment, hermitian=True))
            raise ValueError(
                f"principal={self.principal} leaves no residual space: the training features span {span} of {width} "
                f"dimensions; pass a principal below {span}, or fit to more rows"
            )
        return {"residual": residual, "alpha": logits / norms}

    def _score(self, rows: Tensor) -> Tensor:
        residual = ((rows - self._origin()) @ self._state["residual"]).norm(dim=1)
        score: Tensor = self._state["alpha"] * residual + energy(self._logits(rows))
        return score

    def _origin(self) -> Tensor:
        weight = self.head.weight.detach().double()
        if self.head.bias is None:
            return weight.new_zeros(self._width())
        origin: Tensor = -(torch.linalg.pinv(weight) @ self.head.bias.detach().double())
        return origin
