"""`fastood.train --device cuda` yields the metrics of `--device cpu`, for every method.

Marked needs_cuda, these tests run on a GPU too. The first runs in every test run, on the kernels of the CPU where no
emulated ones are loaded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastood.evaluate import cli as evaluate
from fastood.train import cli as train
from fastood.train.engine.image_stage import ImageStageRun
from fastood.train.methods import METHODS
from tests.emulation.device import emulated_cuda
from tests.support.tiny_methods import tiny_method_args

pytestmark = pytest.mark.usefixtures("one_thread", "no_report")

TOLERANCE = {
    "bal": 0.05,  # 400 steps of a GAN amplify the last bit of the loss, in which the CUDA kernel differs
}
"""Largest difference of a fraction, for methods in which it exceeds rounding."""


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Return every number of a document with its place."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _numbers(part, f"{path}.{name}")
    if isinstance(value, float | int):
        yield path, float(value)


def _metrics(folder: Path, name: str) -> dict[str, float]:
    return dict(_numbers(json.loads((folder / "runs" / name / "metrics.json").read_text())))


def _train(folder: Path, method: str, device: str) -> dict[str, float]:
    assert train.main(tiny_method_args(folder, method, device=device)) == 0
    return _metrics(folder, f"{method}-{device}")


def test_the_trainer_knows_a_device_that_is_not_the_cpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which the tests below run")
    with emulated_cuda():
        found = _train(tmp_path, "resample", "cuda")
    assert found == pytest.approx(_train(tmp_path, "resample", "cpu"), rel=1e-6, abs=1e-9)


@pytest.mark.needs_cuda
@pytest.mark.filterwarnings("error:The model passed to .Fabric.setup")
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_as_on_the_cpu(method: str, tmp_path: Path) -> None:
    found, want = (_train(tmp_path, method, device) for device in ("cuda", "cpu"))
    assert found == pytest.approx(want, rel=1e-6, abs=TOLERANCE.get(method, 1e-9))


@pytest.mark.needs_cuda
@pytest.mark.parametrize("method", ["resample", "ice"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tiny_method_args(tmp_path, method, device="cuda", name="stopped")
    args[args.index("--model.dropout") + 1] = "0.2"  # draws from the generator of the device
    want = [part if part != "stopped" else "whole" for part in args]
    assert train.main(want) == 0
    steps = 0

    def stop(run: ImageStageRun) -> float:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return train_step(run)

    train_step = ImageStageRun.train_step
    with monkeypatch.context() as patch:
        patch.setattr(ImageStageRun, "train_step", stop)
        assert train.main(args) == 130
    assert train.main([*args, "--resume"]) == 0
    assert _metrics(tmp_path, "stopped") == _metrics(tmp_path, "whole")


@pytest.mark.needs_cuda
def test_detectors_are_evaluated_as_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, "msp", "cuda")
    capsys.readouterr()
    tables = []
    for device in ("cuda", "cpu"):
        assert evaluate.main([str(tmp_path / "runs" / "msp-cuda"), "--device", device]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
