"""Whatever a detector is given that it cannot read, the error names the argument, what it got and what it wants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastood.detectors import (
    SHE,
    Detector,
    LinearHeadModel,
    MahalanobisDetector,
    ReAct,
    build_detectors,
    detector_names,
)
from fastood.detectors.bal import BoundaryAwareDetector

KINDS: dict[str, Callable[[nn.Sequential, LinearHeadModel], Detector]] = {
    **{
        name: lambda model, split, name=name: build_detectors(split, [name])[name]
        for name in detector_names()
        if name != "odin"
    },
    "bal": lambda model, split: BoundaryAwareDetector(
        model, boundary={"steps": 3, "batch_size": 8, "hidden": 4, "noise_dim": 2}
    ),
    "per class": lambda model, split: MahalanobisDetector(model, "1", shrinkage="oas", covariance="per_class"),
    "function": lambda model, split: ReAct(split.features, lambda z: model[2](z)),
    "patterns": lambda model, split: SHE(split.features, model[2:]),
}

ROWS: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda rows: rows.numpy(), TypeError, "must be a torch.Tensor, got ndarray"),
    (lambda rows: rows.tolist(), TypeError, "must be a torch.Tensor, got list"),
    (lambda rows: None, TypeError, "must be a torch.Tensor, got NoneType"),
    (lambda rows: rows[0], ValueError, r"must be \[N, .*\], got shape \([35],\)"),
    (lambda rows: rows.sum(), ValueError, r"must be \[N, .*\], got shape \(\)"),
    (lambda rows: rows[:, :0], ValueError, r"must be \[N, .*\], got shape \(80, 0\)"),
    (lambda rows: rows.long(), TypeError, r"must be floating-point, got torch\.int64"),
    (lambda rows: rows > 0, TypeError, r"must be floating-point, got torch\.bool"),
    (lambda rows: rows.to(torch.complex64), TypeError, r"must be floating-point, got torch\.complex64"),
    (lambda rows: rows.to(torch.float8_e4m3fn), TypeError, r"must be float64, .*, got torch\.float8_e4m3fn"),
    (lambda rows: rows.to("meta"), ValueError, "must have values, got a tensor on the meta device"),
    (lambda rows: rows.to_sparse(), ValueError, r"must be dense, got torch\.sparse_coo"),
    (
        lambda rows: torch.nested.nested_tensor([rows[0], rows[1]]),
        ValueError,
        r"must be one tensor .*, got a nested",
    ),
]
LABELS: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda labels: labels.numpy(), TypeError, r"labels must be a torch\.Tensor, got ndarray"),
    (lambda labels: labels.tolist(), TypeError, r"labels must be a torch\.Tensor, got list"),
    (lambda labels: None, TypeError, r"labels must be a torch\.Tensor, got NoneType"),
    (lambda labels: labels.float(), TypeError, "labels must be int64, got torch.float32"),
    (lambda labels: labels[:3], ValueError, r"labels must have shape \(80,\)"),
    (lambda labels: labels[:, None], ValueError, r"labels must have shape \(80,\) .* got \(80, 1\)"),
    (lambda labels: labels.to("meta"), ValueError, "labels must have values, got a tensor on the meta device"),
    (lambda labels: labels - 9, ValueError, "at least one row with a label of 0 or above"),
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_every_detector(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    split = LinearHeadModel(model)
    x, labels = torch.randn(80, 6), torch.arange(80) % 3
    detector = KINDS[name](model, split)
    features, logits = (part.detach() for part in split(x))
    rows = logits if detector.reads == "logits" else features
    detector.fit_features(rows, labels)
    want = detector.predict_features(rows)
    for make, kind, message in ROWS:
        with pytest.raises(kind, match=f"{detector.reads} {message}"):
            detector.predict_features(make(rows))
        if detector.needs_fit:
            with pytest.raises(kind, match=f"{detector.reads} {message}"):
                detector.fit_features(make(rows), labels)
    if detector.needs_fit:
        for make, kind, message in LABELS:
            with pytest.raises(kind, match=message):
                detector.fit_features(rows, make(labels))
        for bad in (torch.nan, torch.inf):
            with pytest.raises(ValueError, match="must be finite, got NaN or infinity in 1 rows, the first is row 7"):
                detector.fit_features(rows.index_fill(0, torch.tensor([7]), bad), labels)
        with pytest.raises(ValueError, match=rf"must be .*, got shape \(80, {rows.shape[1] - 1}\)|features of shape"):
            detector.predict_features(rows[:, 1:])
        with pytest.raises(ValueError, match="at least one row with a label of 0 or above"):
            detector.fit_features(rows[:0], labels[:0])
    assert torch.equal(detector.predict_features(rows), want)
    assert detector.predict_features(rows[:0]).shape == (0,)
    spoilt = detector.predict_features(rows.index_fill(0, torch.tensor([7]), torch.nan))
    assert spoilt.isnan().tolist() == [i == 7 for i in range(80)]
    torch.testing.assert_close(detector.predict_features(rows.clone().requires_grad_()), want)
