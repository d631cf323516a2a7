"""Summary of the images of a run, printed and recorded."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.summary import data_summary, summary_lines
from fastood.train import cli as train
from fastood.train.run_folder import RunFolder

SIZES = "c0 6, c1 3, c2 3, c3 3, c4 3, c5 3, …"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine classes of 3 images, the first of 6, with a GIF and a hidden folder; a test tree; a flat folder."""
    rng = np.random.default_rng(0)

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(path)

    for number in range(9):
        for image in range(3 if number else 6):
            write(tmp_path / "id" / f"c{number}" / f"{image}.png")
        write(tmp_path / "test" / f"c{number}" / "0.png")
    write(tmp_path / "id" / ".trash" / "0.png")
    Image.new("L", (8, 8)).save(tmp_path / "id" / "c1" / "x.gif")
    for image in range(12):
        write(tmp_path / "flat" / f"{image}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(**options: object) -> list[str]:
    config = DataConfig(noise_size=7, **options)
    return list(summary_lines(data_summary(config, load_task(config, seed=0))))


def test_lines_count_what_was_read(folder: Path):
    assert lines(in_dist="folder:id", background="folder:flat", ood=("blobs",)) == [
        f"in-distribution: folder:id, 30 images, 9 classes ({SIZES}), 10 held out for testing",
        "in-distribution, left out: 1 file of an unread type, .gif (c1/x.gif); 1 hidden or system folder (.trash)",
        "background: folder:flat, 12 images",
        "OOD blobs: blobs, 7 images",
    ]
    assert lines(in_dist="folder:test", in_dist_test="folder:id", ood=("far=folder:flat",))[:4] == [
        "in-distribution: folder:test, 9 images, 9 classes (c0 1, c1 1, c2 1, c3 1, c4 1, c5 1, …)",
        f"in-distribution test: folder:id, 30 images, 9 classes ({SIZES})",
        "in-distribution test, left out: 1 file of an unread type, .gif (c1/x.gif); 1 hidden or system folder (.trash)",
        "background: none",
    ]


def test_groups_of_the_background_are_named(folder: Path):
    (folder / "both").mkdir()
    for name in ("flat", "test"):
        (folder / name).rename(folder / "both" / name)
    found = lines(in_dist="folder:id", background="folder:both", ood=("blobs",))
    assert "background: folder:both, 21 images, 2 groups (flat 12, test 9)" in found


def test_a_run_prints_and_keeps_it(folder: Path, capsys: pytest.CaptureFixture[str]):
    args = ["msp", "--data.in-dist", "folder:id", "--data.ood", "far=folder:flat", "--data.image-size", "16"]
    assert train.main([*args, "--name", "run", "--method.training.epochs", "1", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    expected = (
        f"in-distribution: folder:{folder}/id, 30 images, 9 classes (c0 6, c1 3, c2 3, c3 3, c4 3, c5 3, …), 10 held"
    )
    assert expected in shown
    assert "\nbackground: none\n" in shown
    run = RunFolder(Path("runs/run"))
    kept = json.loads(run.data_summary.read_text())
    assert kept["in_distribution"]["images"] == 20
    assert kept["in_distribution_test"]["groups"]["c0"] == 2
    assert kept["in_distribution"]["left_out"][1] == {
        "reason": "hidden or system folder",
        "count": 1,
        "examples": [".trash"],
    }
    assert run.read_config().data.background == "none"
    assert json.loads(run.metrics.read_text())["arms"]["msp"]["background_size"] == 0
