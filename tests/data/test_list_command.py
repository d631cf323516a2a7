"""`python -m fastood.data list`."""

import pytest

from fastood.data.__main__ import main
from fastood.data.commands.list import status
from fastood.data.sources.named_sets import NAMED_SETS


@pytest.fixture
def root(tmp_path):
    """All of MNIST, the test part of notMNIST, no more."""
    for name, parts in (("MNIST", ("train", "t10k")), ("notMNIST", ("t10k",))):
        (tmp_path / name / "raw").mkdir(parents=True)
        for part in parts:
            for kind in ("images-idx3", "labels-idx1"):
                (tmp_path / name / "raw" / f"{part}-{kind}-ubyte").touch()
    return tmp_path


def test_status(root):
    found = {name: status(known, root) for name, known in NAMED_SETS.items()}
    assert (found["mnist"], found["notmnist"], found["cifar10"]) == ("present", "present: test", "downloadable")
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    assert status(NAMED_SETS["mnist"], root) == "present: test"
    assert all(NAMED_SETS[name].how for name, state in found.items() if state == "by hand")
    assert {name for name, state in found.items() if state == "by hand"} >= {"tiny-imagenet", "imagenet", "isun"}


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_has_a_row_for_every_set_in_a_terminal_of_any_width(root, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["list", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "tiny-imagenet-vs-cifar10" in out
    assert lines[0] == f"Data sets under {root}"
    rows = {name: next(line for line in lines if line.split()[:1] == [name]) for name in NAMED_SETS}
    assert rows["mnist"].split()[-3:] == ["60,000", "10,000", "present"]
    assert rows["isun"].split()[-2:] == ["by", "hand"]
    assert any(line.startswith("notmnist: davidflanagan/notMNIST-to-MNIST") for line in lines)
    assert any(line.startswith("tiny-imagenet: http://cs231n.stanford.edu/tiny-imagenet-200.zip") for line in lines)


def test_a_root_that_does_not_exist_is_said(tmp_path, capsys):
    assert main(["list", "--root", str(tmp_path / "nowhere")]) == 0
    assert "nowhere, which does not exist" in capsys.readouterr().out
