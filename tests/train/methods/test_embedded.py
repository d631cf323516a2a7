"""Every method from the command line's defaults on the embedded digits, shortened: it learns and beats chance."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch

from fastood.data import DataConfig, EmbeddedConfig
from fastood.train.config import PRESETS
from fastood.train.engine.schedule import Schedule
from fastood.train.methods import METHODS, MethodConfig
from fastood.train.run import Run

DATA = DataConfig(embedded=EmbeddedConfig(pool_size=2000, ood_size=200))


def shortened(method: MethodConfig, factor: int) -> MethodConfig:
    """The same with schedules a factor shorter."""
    parts = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    shorter = {
        name: replace(part, epochs=max(1, part.epochs // factor))
        for name, part in parts.items()
        if is_dataclass(part) and isinstance(part, Schedule)
    }
    return replace(method, **shorter)


@pytest.mark.parametrize("name", METHODS)
def test_it_beats_chance(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    preset = PRESETS[name, "embedded"]
    config = replace(preset, method=shortened(preset.method, 3), data=DATA, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Run.open(config, tmp_path / "run") as run:
        run.train()
        metrics = run.evaluate().metrics
    torch.set_num_threads(threads)
    assert metrics["method"] == name
    baseline = metrics["bootstrap"]["baseline"]
    for arm, result in metrics["arms"].items():
        assert result["accuracy"] > 0.8, f"{arm}: chance is 0.125"
        # What a method is compared with may call noise confidently a digit.
        assert result["mean"]["auroc"] > 0.5 or arm == baseline, f"{arm}: chance"
    assert max(result["mean"]["auroc"] for result in metrics["arms"].values()) > 0.65
