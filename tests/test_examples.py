"""The example on the plane shows what it says: confidence falls where there are no data, and stays where they are."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def test_boundary_closes_around_the_data(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("boundary_closing", ROOT / "examples/boundary_closing.py")
    example = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    closing = example.close_boundary(settings=replace(example.SETTINGS, steps=240))
    plane = example.grid()
    near = (torch.cdist(plane, example.MEANS).amin(1) < 0.5).view(closing.confidence.shape)
    far = (torch.cdist(plane, example.MEANS).amin(1) > 4).view(closing.confidence.shape)
    assert closing.confidence[far].mean() > 0.95
    assert closing.product[-1][far].mean() < 0.25
    assert closing.product[-1][near].mean() > 2 * closing.product[-1][far].mean()
    example.draw(closing, tmp_path / "closing.png")
    assert (tmp_path / "closing.png").stat().st_size > 10_000
