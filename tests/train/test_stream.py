"""Runs whose images stay files: the same result as from memory, by every loader that can serve them."""

import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_folder
from fastood.evaluate import cli as evaluate
from fastood.train import cli as train
from tests.support.image_loaders import NEEDS_DALI
from tests.support.tiny_run import bars, tiny_args, train_until_killed

pytestmark = pytest.mark.usefixtures("one_thread")

FORKSERVER = multiprocessing.get_context("forkserver")


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A tree of JPEG files, one folder for each label."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"class {label}" / f"{number:03}.jpg", quality=95)


@pytest.fixture
def args(tmp_path: Path) -> list[str]:
    """The tiny run with its images in trees, its background in a pool of JPEG files; batches drawn one ahead."""
    write_images(tmp_path / "bars", *bars(128, classes=4, seed=0))
    noise = np.random.default_rng(1).integers(0, 256, (80, 8, 8)).astype(np.uint8)
    write_images(tmp_path / "noise", noise, np.arange(80) % 2)
    pack(open_folder(tmp_path / "noise", field="source"), tmp_path / "pool", origin="folder:noise", store="jpeg")
    stripes, labels = bars(40, classes=4, seed=2)
    write_images(tmp_path / "stripes", stripes.mT, labels)
    options = tiny_args(tmp_path)
    for option, value in (
        ("--data.in-dist", f"folder:{tmp_path / 'bars'}"),
        ("--data.background", f"packed:{tmp_path / 'pool'}"),
        ("--data.ood", f"stripes=folder:{tmp_path / 'stripes'}"),
    ):
        options[options.index(option) + 1] = value
    # Drawn as far ahead by both loaders, or the weights would be of other moments.
    return [*options, "--data.prefetch-depth", "1", "--data.channels", "1"]


def results(run: Path) -> dict[str, bytes]:
    """Every result file of a run."""
    files = [run / "metrics.json", run / "scores.safetensors", run / "pool.safetensors", *run.glob("models/*")]
    return {str(file.relative_to(run)): file.read_bytes() for file in [*files, run / "data.json"]}


def named(args: list[str], name: str) -> list[str]:
    """The command line of a run of another name."""
    return [name if before == "--name" else part for before, part in zip(["", *args[:-1]], args, strict=True)]


def run_as(args: list[str], name: str, *options: str) -> Path:
    """Train under another name; the run's folder."""
    assert train.main([*named(args, name), *options]) == 0
    return Path(args[args.index("--out") + 1]) / name


def test_files_decoded_on_use_give_the_result_of_memory(args, capsys: pytest.CaptureFixture[str]):
    """Even in a run that was killed with batches of workers under way."""
    in_memory = run_as(args, "memory", "--data.decode", "memory")
    assert "loader: resident, 1 batches ahead" in capsys.readouterr().out
    begun = [*named(args, "stream"), "--data.decode", "stream"]
    process = FORKSERVER.Process(target=train_until_killed, args=(begun, "reweight", 5, "between steps"))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    streamed = run_as(args, "stream", "--data.decode", "stream", "--resume")
    assert "loader: dataloader, 1 batches ahead (images are decoded as they are used" in capsys.readouterr().out
    assert results(streamed) == results(in_memory)
    # The contact sheets, too: they show pixels.
    for sheet in ("most_weighted", "least_weighted"):
        assert (streamed / "figures" / f"{sheet}.png").read_bytes() == (
            in_memory / "figures" / f"{sheet}.png"
        ).read_bytes()
    assert evaluate.main([str(streamed)]) == 0
    # How images are decoded decides no result: another way may go on.
    assert results(run_as(args, "stream", "--data.decode", "memory", "--resume")) == results(in_memory)


@NEEDS_DALI
def test_dali_serves_files_as_memory_does_where_none_is_resized(args, monkeypatch):
    """Colour, as DALI takes the brightness of a JPEG file for grey, where Pillow weighs its colours."""
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    args[args.index("--data.channels") + 1] = "3"
    in_memory = run_as(args, "memory", "--data.decode", "memory")
    streamed = run_as(args, "stream", "--data.decode", "stream", "--data.loader", "dali")
    assert results(streamed) == results(in_memory)


def test_an_image_damaged_under_way_ends_the_run_with_its_name(
    tmp_path: Path, args, capsys: pytest.CaptureFixture[str]
):
    for damaged in (tmp_path / "bars").glob("*/*.jpg"):
        damaged.write_bytes(b"no image")
    assert train.main([*args, "--data.decode", "stream"]) == 1
    assert f"error: unreadable image {tmp_path / 'bars'}" in capsys.readouterr().err


def test_what_is_decoded_on_use_cannot_be_resident(args, capsys: pytest.CaptureFixture[str]):
    assert train.main([*args, "--data.decode-budget-gb", "0", "--data.loader", "resident"]) == 1
    assert "choose data.decode memory, or data.loader dataloader" in capsys.readouterr().err
    assert not (Path(args[args.index("--out") + 1]) / "run").exists()
