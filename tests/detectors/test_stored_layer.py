"""A saved detector keeps the name of the layer that its features come from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fastood.detectors import KNN, RMD, MahalanobisDetector, ReAct, ViM


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # The layer is as wide as the output: a detector of the wrong one of both would score without an error.
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: MahalanobisDetector(model, "1", shrinkage="oas"),
        lambda model: RMD(model, "1", shrinkage="oas"),
        lambda model: KNN(model, "1", k=3),
        lambda model: ViM(model, "1", principal=2),
        lambda model: ReAct(model, "1"),
    ],
)
def test_the_layer_is_that_of_the_file(make, tmp_path: Path) -> None:
    model = network()
    x, labels = torch.randn(60, 6), torch.arange(60) % 4
    detector = make(model).fit([(x, labels)])
    detector.save(tmp_path / "detector")
    loaded = type(detector).load(tmp_path / "detector", model)
    assert loaded.feature_layer == "1"
    assert torch.equal(loaded.predict(x), detector.predict(x))
    # Another name wins, as for a model whose layers were renamed.
    assert type(detector).load(tmp_path / "detector", model, "0").feature_layer == "0"
    type(detector).load(tmp_path / "detector").predict_features(model[:2](x))
