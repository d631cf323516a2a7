"""The figure of a boundary in feature space: every kind of point is there, and far ones do not squeeze the rest."""

from collections.abc import Iterable

import pytest
import torch
from matplotlib.collections import PathCollection

from fastood.train.feature_map import FeatureMap
from fastood.train.methods.bal.boundary_map import _plane
from fastood.train.report.feature_figure import feature_figure


@pytest.fixture
def shown(generator: torch.Generator) -> FeatureMap:
    def points(count: int) -> torch.Tensor:
        return torch.randn(count, 2, generator=generator)

    far = torch.tensor([[1e4, -1e4]])
    return FeatureMap(
        id_plane=points(200),
        ood_plane={"letters": points(40) + 5, "a $ sign": points(30)},
        synthetic_plane={"trivial (REM)": points(20), "hard (RSM)": torch.cat([points(20), far])},
        id_odds=points(200) + 6,
        ood_odds={"letters": points(40), "a $ sign": points(30)},
    )


def counts(collections: Iterable[object]) -> list[int]:
    return [len(dots.get_offsets()) for dots in collections if isinstance(dots, PathCollection)]


def test_every_kind_of_point_is_drawn(shown: FeatureMap):
    figure = feature_figure(shown)
    plane, odds = figure.axes
    assert counts(plane.collections) == [200, 40, 30, 20, 21]
    assert counts(odds.collections) == [200, 40, 30]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["in-distribution", "letters", r"a \$ sign", "trivial (REM)", "hard (RSM)"]


def test_far_synthetic_features_lie_beyond_the_panel(shown: FeatureMap):
    plane = feature_figure(shown).axes[0]
    left, right = plane.get_xlim()
    assert -6 < left < -2
    assert 6 < right < 12


def test_plane_is_that_of_the_widest_spread(generator: torch.Generator):
    inside = torch.randn(500, 6, generator=generator) * torch.tensor([1.0, 1.0, 9.0, 1.0, 5.0, 1.0])
    there = _plane(inside)(inside)
    assert there.std(0).tolist() == pytest.approx([9, 5], rel=0.15)
    torch.testing.assert_close(there.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    line = _plane(inside[:, :1])(inside[:, :1])
    assert line.shape == (500, 2)
    assert (line[:, 1] == 0).all()
