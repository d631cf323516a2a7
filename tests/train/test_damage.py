"""Errors of a run about files that are damaged or of another run, and of values that are none."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from fastood.evaluate import cli as evaluate
from fastood.train import cli as train
from tests.support.tiny_run import contents, finished_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: [1], "must hold the state of a stage, got list"),
        (lambda state: {k: v for k, v in state.items() if k != "step"}, "KeyError: 'step'"),
        (lambda state: state | {"step": -100}, "step must be in 0 … 12, got -100"),
        (lambda state: state | {"step": 10**9}, "step must be in 0 … 12, got 1000000000"),
        (lambda state: state | {"step": float("nan")}, "step must be in 0 … 12, got nan"),
        (lambda state: state | {"model": {}}, "Missing key"),
        (lambda state: state | {"model": state["model"] | {"head.weight": torch.zeros(1, 1)}}, "size mismatch"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(
    finished: Path, no_report: None, capsys: pytest.CaptureFixture[str], damage: object, message: str
):
    path = finished / "checkpoints" / "finetune-full.pt"
    before = path.read_bytes()
    torch.save(damage(torch.load(path, weights_only=True)), path)
    try:
        assert train.main(["--name", "run", "--out", str(finished.parent), "--resume"]) == 1
    finally:
        path.write_bytes(before)
    said = capsys.readouterr().err
    assert f"{path} " in said
    assert message in said
    assert "weights_only" not in said


def test_a_flipped_bit_of_a_checkpoint_is_seen(finished: Path, capsys: pytest.CaptureFixture[str]):
    path = finished / "checkpoints" / "finetune-full.pt"
    before = path.read_bytes()
    weights = torch.load(path, weights_only=True)["model"]["head.weight"].numpy().tobytes()
    damaged = bytearray(before)
    damaged[before.index(weights) + 2] ^= 16
    path.write_bytes(damaged)
    results = contents(finished)["metrics.json"]
    try:
        assert train.main(["--name", "run", "--out", str(finished.parent), "--resume"]) == 1
    finally:
        path.write_bytes(before)
    assert "is damaged: the checksum of" in capsys.readouterr().err
    assert contents(finished)["metrics.json"] == results


def test_weights_of_another_network_are_named(finished: Path, capsys: pytest.CaptureFixture[str]):
    from safetensors.torch import load_file, save_file

    path = finished / "models" / "full.safetensors"
    before = path.read_bytes()
    save_file(load_file(path) | {"head.weight": torch.zeros(1, 1)}, path)
    try:
        for options in ([], ["--detectors", "msp"]):
            assert evaluate.main([str(finished), *options]) == 1
            assert f"error: {path} does not belong to this run, or is damaged: " in capsys.readouterr().err
    finally:
        path.write_bytes(before)


def test_a_configuration_of_wild_values_is_refused_shortly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    names = "abcdefgh"
    for previous, name in itertools.pairwise(names):
        bomb += f"{name}: &{name} [{', '.join([f'*{previous}'] * 10)}]\n"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: {name: oe}\nseed: " + "[" * 3000)
    assert train.main(["--config", str(recipe)]) == 1
    recipe.write_text(f"method: {{name: oe}}\nseed: {json.dumps([[1] * 500] * 500)}\n")
    assert train.main(["--config", str(recipe)]) == 1
    recipe.write_text(bomb + "method: {name: oe}\nseed: *h\n")
    assert train.main(["--config", str(recipe)]) == 1
    assert max(map(len, capsys.readouterr().err.splitlines())) < 400
    for value in ("1.5", "true", "'1'"):
        recipe.write_text(f"method: {{name: oe}}\nseed: {value}\n")
        assert train.main(["--config", str(recipe)]) == 1
        assert "seed must be int" in capsys.readouterr().err
