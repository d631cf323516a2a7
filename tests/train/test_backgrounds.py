"""Which methods want a background, how none is named, and what is said where one is missing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.sources.source_spec import meant_source, parse_named_spec, parse_spec
from fastood.train import cli as train
from fastood.train.config import PRESETS, RunConfig
from fastood.train.methods import METHODS
from fastood.train.methods.ice import ICEConfig
from fastood.train.methods.outlier_exposure import OEConfig
from fastood.train.methods.reject.method import RejectConfig
from fastood.train.requirements import check_config
from fastood.train.resolved_config import absolute_paths
from fastood.train.run import Run
from fastood.train.run_folder import fingerprint

OWN = {"in_dist": "mnist", "ood": ("svhn",)}


@pytest.mark.parametrize("name", METHODS)
def test_methods_without_background_do_not_ask_for_one(name: str):
    config = replace(PRESETS[name, "embedded"], data=DataConfig(**OWN))
    if name in ("msp", "bal", "gcpl", "godin", "aec", "deep-svdd"):
        assert not config.method.needs_background
        check_config(config)
    else:
        assert config.method.needs_background
        with pytest.raises(
            ValueError, match=rf"data.background must name the images that {name} trains with, got none"
        ):
            check_config(config)
        check_config(replace(config, data=DataConfig(**OWN, background="uniform")))
    # The embedded digits bring theirs.
    check_config(PRESETS[name, "embedded"])
    assert absolute_paths(DataConfig()).background == "embedded"


def test_arms_without_background_do_not_ask_for_one():
    assert not OEConfig(backgrounds=("none",)).needs_background
    assert not ICEConfig(arms=("plain",)).needs_background
    assert not RejectConfig(arms=("msp",)).needs_background
    assert RejectConfig(arms=("msp", "oe")).needs_background


def test_none_is_what_auto_stands_for_with_data_of_ones_own():
    assert DataConfig(**OWN).background_spec == DataConfig(**OWN, background="none").background_spec
    assert absolute_paths(DataConfig(**OWN)).background == "none"
    assert DataConfig().background_spec.kind == "embedded"
    assert DataConfig(background="none").background_spec.kind == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_dist": "none"}, "data.in_dist must name images, got none"),
        ({"in_dist_test": "none"}, "data.in_dist_test must name images, got none"),
        ({"ood": ("x=none",)}, "data.ood must name images, got none"),
        ({"blend": 0.1}, "data.blend must be None for data.background none, got 0.1"),
        ({"exclude_overlap": "stl10-vs-cifar10"}, "data.exclude_overlap needs a data.background .*, got 'none'"),
    ],
)
def test_none_is_for_the_background_alone(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        DataConfig(**(OWN | options))


def test_a_missing_background_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fastood.train.run.load_task", lambda *args, **kwargs: pytest.fail("loaded"))
    args = ["oe", "--data.in-dist", "folder:nowhere", "--data.ood", "gaussian", "--out", str(tmp_path)]
    assert train.main(args) == 1
    assert "data.background must name the images that oe trains with, got none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_background_is_known_again(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(256, size=(30, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.arange(30) % 3)
    config = DataConfig(in_dist=f"npy:{tmp_path}/x.npy,{tmp_path}/y.npy", ood=("uniform",), image_size=8, noise_size=5)
    task = load_task(config, seed=0)
    assert tuple(task.background.images.shape) == (0, 1, 8, 8)
    assert fingerprint(task) == fingerprint(load_task(config, seed=0))
    streamed = load_task(replace(config, image_size=12), seed=0)
    assert fingerprint(streamed)["background"] != fingerprint(task)["background"]


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path):
    config = DataConfig(
        in_dist=f"folder:{tmp_path}/a", background=f"list:{tmp_path}/b.txt", ood=(f"c=npy:{tmp_path}/c.npy", "uniform")
    )
    with pytest.raises(FileNotFoundError) as error:
        load_task(config, seed=0)
    assert str(error.value).splitlines() == [
        "3 of the 4 sources cannot be opened:",
        f"data.in_dist: there is no folder {tmp_path}/a",
        f"data.background: there is no file {tmp_path}/b.txt",
        f"data.ood 'c': there is no file {tmp_path}/c.npy",
    ]
    (tmp_path / "c.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"(?s)3 of the 4 sources .*c\.npy is not an \.npy array"):
        load_task(config, seed=0)


def test_a_bare_path_is_answered_with_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("cats", "pool"):
        Path(folder).mkdir()
    Path("pool/pool.json").touch()
    Path("some.txt").touch()
    Path("cats/1.png").touch()
    meant = {
        "cats": "folder:cats",
        str(tmp_path / "cats"): f"folder:{tmp_path / 'cats'}",
        "./cats": "folder:./cats",
        "pool": "packed:pool",
        "some.txt": "list:some.txt",
        "x.npy,y.npy": "npy:x.npy,y.npy",
        "cats/1.png": "folder:cats",
        "/no/where": "folder:/no/where",
        "C:\\images\\cats": "folder:C:\\images\\cats",
        "~/nowhere/at/all": "folder:~/nowhere/at/all",
    }
    for text, source in meant.items():
        assert meant_source(text) == source
        with pytest.raises(ValueError, match=r"^data\.background: unknown source ") as error:
            parse_spec(text, field="background")
        assert str(error.value) == f"data.background: unknown source {text!r}; did you mean {source}?"
    for text, source in (
        ("cats", "cats=folder:cats"),
        ("folder:a/dogs", "dogs=folder:a/dogs"),
        ("C:\\a", "a=folder:C:\\a"),
    ):
        with pytest.raises(ValueError, match=r"must have the form NAME=SOURCE") as error:
            parse_named_spec(text, field="ood")
        assert str(error.value).endswith(f"; did you mean {source}?")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_spec("folder:~/a,b", field="ood").paths == (f"{tmp_path}/a,b",)
    assert parse_spec("npy:~/a.npy,~/b.npy", field="ood").paths == (f"{tmp_path}/a.npy", f"{tmp_path}/b.npy")
    data = absolute_paths(DataConfig(in_dist="folder:~/id", ood=("x=list:~/x.txt",), root=Path("~/data")))
    assert (data.in_dist, data.ood, data.root) == (
        f"folder:{tmp_path}/id",
        (f"x=list:{tmp_path}/x.txt",),
        tmp_path / "data",
    )


def test_a_list_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative paths of a list that lies elsewhere count from where the run began."""
    rng = np.random.default_rng(0)
    for part in ("id/a", "id/b", "far"):
        (tmp_path / part).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(256, size=(8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "far.txt").write_text("".join(f"far/{number}.png\n" for number in range(12)))
    monkeypatch.chdir(tmp_path)
    data = DataConfig(in_dist="folder:id", ood=("far=list:lists/far.txt",), image_size=8)
    config = replace(PRESETS["msp", "embedded"], data=data, device="cpu")
    begun = Run.open(config, tmp_path / "run")
    begun.close()
    assert begun.config.data.list_root == tmp_path
    monkeypatch.chdir("/")
    moved = DataConfig(in_dist=f"folder:{tmp_path}/id", ood=(f"far=list:{tmp_path}/lists/far.txt",), image_size=8)
    again = Run.open(RunConfig(**(vars(config) | {"data": moved})), tmp_path / "run", resume=True)
    assert again.config == begun.config
    assert fingerprint(again.task) == fingerprint(begun.task)
