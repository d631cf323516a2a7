"""KNN: distance to the k-th nearest training feature (Sun et al. 2022, https://arxiv.org/abs/2204.06507)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.model_calls import Model
from fastood.detectors.neighbours import NeighbourSearch
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, RowDetector, State
from fastood.ops._arguments import as_flag
from fastood.ops._features import check_size

__all__ = ["KNN"]


class KNN(RowDetector):
    """Distance of a feature to its k-th nearest training feature, both of length 1 (Sun et al. 2022, eq. 3).

    Distances are correct to ten digits, also for features with a common offset, in a narrow cone or with duplicates,
    and do not depend on autocast; see `fastood.detectors.neighbours`. Training features are stored without loss, in
    float32 if that represents them exactly (always for bfloat16, float16 and float32 features) and else in float64.
    They are compared by tiles, so that memory is never rows times training rows. faiss, used by the paper's code and
    OpenOOD, returns squared distances in float32; OpenOOD adds 1e-10 to the length that it divides by.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the output of `model`.
        k: Rank of the neighbour, at least 1; in the paper 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet.
        normalize: Whether to divide features by their length; rows of zeros stay zeros.

    Raises:
        TypeError: If `k` is not an integer, or `normalize` not a bool.
        ValueError: If `k` is below 1.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> detector = KNN(k=2, normalize=False).fit_features(features, labels)
        >>> detector.predict_features(torch.tensor([[0.0], [3.0]]))
        tensor([1., 2.], dtype=torch.float64)
    """

    reads = "features"
    needs_fit = True
    settings = ("k", "normalize")

    @takes_pytorch_ood("k", "normalize")
    def __init__(
        self, model: Model | None = None, feature_layer: str | None = None, *, k: int = 50, normalize: bool = True
    ) -> None:
        if model is None and feature_layer is not None:
            raise ValueError(f"feature_layer needs a model, got {feature_layer!r} without one")
        layers = None if feature_layer is None else [feature_layer]
        super().__init__(None if model is None else FeatureExtractor(model, layers).single)
        self.feature_layer = feature_layer
        self.k = check_size("k", k)
        self.normalize = as_flag("normalize", normalize)
        self._search: NeighbourSearch | None = None

    def _fitted(self, batches: Batches) -> State:
        # cat promotes all rows to float64 if float32 would round those of one chunk.
        bank = torch.cat([_narrowed(rows) for rows, _ in batches()])
        if len(bank) < self.k:
            raise ValueError(
                f"k must be at most the number of rows with a label of 0 or above, {len(bank)}, got {self.k}"
            )
        return {"bank": bank}

    def _score(self, rows: Tensor) -> Tensor:
        rows = F.normalize(rows) if self.normalize else rows
        finite = rows.isfinite().all(1)
        if bool(finite.all()):
            return self._neighbours().kth_distances(rows, self.k)
        # An infinite row is infinitely far from the bank, a row with NaN has no distance. The bounds of the search hold
        # for finite rows only.
        distances = torch.where(rows.isinf().any(1), torch.inf, torch.nan).double()
        distances[finite] = self._neighbours().kth_distances(rows[finite], self.k)
        return distances

    def _neighbours(self) -> NeighbourSearch:
        """Return the search over the current bank, whose lengths and norms are computed at the first score."""
        bank = self._state["bank"]
        if self._search is None or self._search.bank is not bank:
            self._search = NeighbourSearch(bank, normalize=self.normalize)
        return self._search

    def _width(self) -> int | None:
        return self._state["bank"].shape[1] if self._state else None


def _narrowed(rows: Tensor) -> Tensor:
    """Return rows in float32 if that changes none of them, else in float64."""
    narrow = rows.float()
    return narrow if torch.equal(narrow.double(), rows) else rows
