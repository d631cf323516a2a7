"""docs/results.md is what the committed results say, and the examples run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_results_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch):
    # As `python experiments/results_page.py` finds the modules next to it.
    monkeypatch.syspath_prepend(ROOT / "experiments")
    assert (ROOT / "docs/results.md").read_text(encoding="utf-8") == load("experiments/results_page.py").page()


def test_the_toy_of_figure_3_shows_what_the_paper_says(tmp_path: Path):
    """Outlier exposure gathers outliers between the classes; ICE leaves them and tightens the classes."""
    example = load("examples/feature_shift.py")
    shifts = {shift.title: shift for shift in example.feature_shifts()}
    outliers = shifts["ICE"].labels < 0

    def between(points: torch.Tensor) -> float:
        return float(points[outliers, 0].abs().mean())

    def spread(shift: object) -> float:
        return float(torch.stack([shift.after[shift.labels == label].std(0).mean() for label in (0, 1)]).mean())

    start = shifts["Plain"].before
    assert between(shifts["Outlier exposure"].after) < 0.2 * between(start)
    assert between(shifts["Energy"].after) < 0.2 * between(start)
    assert between(shifts["ICE"].after) >= between(start)
    assert spread(shifts["ICE"]) < 0.3 * spread(shifts["Plain"])
    example.draw(list(shifts.values()), tmp_path / "shift.png")
    assert (tmp_path / "shift.png").stat().st_size > 10_000
