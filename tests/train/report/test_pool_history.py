"""The effective sample size over time: recorded at every step, kept through a resumption, drawn in the report."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastood.samplers import BackgroundPool
from fastood.train import cli as train
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.report.pool_history import MAX_POINTS, effective_sample_size_curve
from tests.support.tiny_run import STEPS, tiny_args


def test_a_run_records_and_draws_it(tmp_path: Path) -> None:
    train.main(tiny_args(tmp_path))
    run = tmp_path / "runs" / "run"
    pool = load_file(run / "pool.safetensors")
    assert pool["effective_sample_sizes"].shape == (STEPS,)
    last = BackgroundPool(len(pool["omega"]))
    last.load_state_dict(pool)
    assert float(pool["effective_sample_sizes"][-1]) == pytest.approx(last.effective_sample_size(), rel=1e-9)
    assert (run / "figures" / "effective_sample_size.png").stat().st_size > 1000
    assert "Effective sample size over time" in (run / "report.html").read_text()


def test_it_goes_on_where_it_was(generator: torch.Generator) -> None:
    def source() -> AdversarialBackground:
        return AdversarialBackground(BackgroundPool(50), batch_size=8, learning_rate=30.0, generator=torch.Generator())

    def steps(background: AdversarialBackground, count: int) -> None:
        for _ in range(count):
            index = background.draw().index
            background.observe(index, (index < 5).float())

    first, second = source(), source()
    steps(first, 4)
    second.load_state_dict(first.state_dict())
    for background in (first, second):
        steps(background, 3)
    assert len(first.effective_sample_sizes) == 7
    assert torch.equal(first.effective_sample_sizes, second.effective_sample_sizes)
    assert first.effective_sample_sizes[-1] < 50


def test_long_runs_are_drawn_with_few_points() -> None:
    sizes = torch.linspace(1e6, 1e5, 12_345)
    line = effective_sample_size_curve(sizes, 1_000_000).axes[0].lines[0]
    assert len(line.get_xdata()) == MAX_POINTS
    assert line.get_xdata()[-1] == 12_345
    assert 1e5 < line.get_ydata()[-1] < line.get_ydata()[0] < 1e6
