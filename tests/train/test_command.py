"""The command line of `python -m fastood.train`: options that are refused before any work, and help."""

from pathlib import Path

import pytest
import torch

from fastood.train import cli as train
from fastood.train.command import parse_command
from tests.support.tiny_run import tiny_args


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "seed must be 0 or larger, got -1"),
        (["--name", "../run"], "name must be a plain folder name inside --out, got '../run'"),
        (["--name", ".."], "name must be a plain folder name"),
        (["--name", ""], "name must be a plain folder name"),
        (["--preset", "paper", "--data.in-dist", "embedded", "--data.background", "embedded"], "preset paper needs"),
        (["--method.sample-rate", "0.01"], "of 80 background images is less than one image"),
        (["--data.noise-size", "5"], "OOD set 'noise' must have the 6 images"),
        (["--data.background", "npy:absent.npy"], "absent.npy"),
        pytest.param(
            ["--device", "cuda"],
            "device is cuda, but this PyTorch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input_is_refused_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    assert train.main([*tiny_args(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--method.sample-rate", "1.5"],
        ["--method.pretrain.epochs", "0"],
        ["--checkpoint-every", "0"],
        ["--model.dropout", "1"],
    ],
)
def test_values_out_of_range_are_refused_while_parsing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
):
    with pytest.raises(SystemExit):
        train.main([*tiny_args(tmp_path), *options])
    assert "must be" in capsys.readouterr().err


def test_resume_wants_a_name(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--resume"]) == 1
    assert "resume needs the name of a run" in capsys.readouterr().err


def test_help_explains_the_options(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    for words in ("--method.sample-rate", "Sample rate γ", "--data.background", "--resume", "--preset"):
        assert words in text
    for hidden in ("--method.reweight.momentum", "--protocol", "--channels-last"):
        assert hidden not in text
    with pytest.raises(SystemExit):
        train.main(["--help-all"])
    text_of_all = capsys.readouterr().out
    for words in ("--method.sample-rate", "--protocol.repeats", "--channels-last", "--method.reweight.optimizer"):
        assert words in text_of_all
    assert text_of_all.count("\n") > 2 * text.count("\n")
    assert parse_command(["--data.noise-size", "40"]).config.data.noise_size == 40, "hidden, not gone"
