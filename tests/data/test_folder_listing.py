"""Images and classes of a folder, and entries that are left out and said."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from fastood.data import DataConfig, load_task
from fastood.data.__main__ import main
from fastood.data.packed.packed_pool import open_packed
from fastood.data.sources.file_names import SYSTEM_FOLDERS
from fastood.data.sources.folder_listing import list_folder
from fastood.data.sources.local_files import open_folder


def image(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path, "png")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Classes cat (4 images, two of them deeper) and dog (3)."""
    for name in ("cat/1.png", "cat/0.PNG", "cat/b c/0.png", "cat/b/1.png", "dog/0.png", "dog/1.png", "dog/2.png"):
        image(tmp_path / "tree" / name)
    return tmp_path / "tree"


def test_files_and_classes_are_those_of_torchvision(tree: Path):
    (tree / "cat" / "far").symlink_to(tree / "dog")
    expected, found = ImageFolder(str(tree)), list_folder(tree, option="in_dist", labelled=True)
    assert list(found.files) == [file for file, _ in expected.samples]
    assert list(found.labels) == expected.targets
    assert list(found.class_names) == expected.classes
    assert found.left_out == ()


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "__MACOSX", "Thumbnails", *SYSTEM_FOLDERS])
@pytest.mark.parametrize("labelled", [True, False])
def test_hidden_and_system_folders_are_no_classes(tree: Path, name: str, labelled: bool):
    for place in (tree / name, tree / "dog" / name):
        image(place / "0.png")
    found = list_folder(tree, option="in_dist", labelled=labelled)
    assert found.class_names == ("cat", "dog")
    assert len(found.files) == 7
    examples = ", ".join(sorted([name, f"dog/{name}"]))
    assert [str(what) for what in found.left_out] == [f"2 hidden or system folders ({examples})"]


def test_what_is_left_out_is_counted_with_its_reason(tree: Path):
    for name in ("cat/._0.png", "cat/.DS_Store", "dog/Thumbs.db", "dog/a.gif", "dog/b.GIF", "dog/c.heic", "labels.csv"):
        (tree / name).write_bytes(b"")
    image(tree / "stray.png")
    found = list_folder(tree, option="in_dist", labelled=True)
    assert len(found.files) == 7
    assert [str(what) for what in found.left_out] == [
        "2 files of an unread type, .gif (dog/a.gif, dog/b.GIF)",
        "1 file of an unread type, .heic (dog/c.heic)",
        "2 hidden files (cat/.DS_Store, cat/._0.png)",
        "1 image outside of class folders (stray.png)",
        "2 other files (dog/Thumbs.db, labels.csv)",
    ]


def test_images_without_class_folders_are_a_background_and_an_ood_set(tree: Path, tmp_path: Path):
    for number in range(5):
        image(tmp_path / "flat" / f"{number}.png", 40 * number)
    source = open_folder(tmp_path / "flat", field="background", labelled=False)
    assert (len(source), source.labels, source.class_names) == (5, None, ())
    config = DataConfig(
        in_dist=f"folder:{tree}", background=f"folder:{tmp_path / 'flat'}", ood=(f"x=folder:{tmp_path / 'flat2'}",)
    )
    (tmp_path / "flat2").symlink_to(tmp_path / "other")
    image(tmp_path / "other" / "deep" / "deeper" / "0.png", 7)
    image(tmp_path / "other" / "1.png", 9)
    (tmp_path / "other" / "empty").mkdir()
    task = load_task(config, seed=0)
    assert task.background.images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160]
    assert task.background.source_names == ("flat",)
    assert task.ood["x"].images[:, 0, 0, 0].tolist() == [9, 7]
    assert task.ood["x"].source_names == ("flat2", "deep")
    assert [str(what) for what in task.ood["x"].left_out] == ["1 folder without images (empty)"]


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        (("train", "test"), "--data.in-dist folder:{0}/train --data.in-dist-test folder:{0}/test"),
        (("Training", "Testing"), "--data.in-dist folder:{0}/Training --data.in-dist-test folder:{0}/Testing"),
        (("train", "val", "test"), "--data.in-dist folder:{0}/train --data.in-dist-test folder:{0}/test"),
        (("train", "valid"), "--data.in-dist folder:{0}/train --data.in-dist-test folder:{0}/valid"),
        (("train", "validation", "more"), "--data.in-dist folder:{0}/train --data.in-dist-test folder:{0}/validation"),
        (("seg_train", "seg_test"), "--data.in-dist folder:{0}/seg_train --data.in-dist-test folder:{0}/seg_test"),
        (("train2017", "val2017"), "--data.in-dist folder:{0}/train2017 --data.in-dist-test folder:{0}/val2017"),
        (("train",), "--data.in-dist folder:{0}/train"),
        (("test",), "--data.in-dist folder:{0}/test"),
        (("images",), "--data.in-dist folder:{0}/images if these are the classes"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: tuple[str, ...], remedy: str):
    for part in parts:
        for name in ("cat", "dog"):
            image(tmp_path / "data" / part / name / "0.png")
    with pytest.raises(ValueError, match=r"^data\.in_dist: ") as error:
        list_folder(tmp_path / "data", option="in_dist", labelled=True)
    assert str(error.value).endswith(remedy.format(tmp_path / "data"))
    assert len(list_folder(tmp_path / "data", option="background", labelled=False).files) == 2 * len(parts)


def test_a_class_may_be_called_train(tmp_path: Path):
    for name in ("bus", "train", "car"):
        image(tmp_path / name / "0.png")
    assert list_folder(tmp_path, option="in_dist", labelled=True).class_names == ("bus", "car", "train")


def test_parts_that_were_packed_are_no_classes_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for part in ("train", "test"):
        for number in range(4):
            image(tmp_path / "data" / part / "cat" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "folder:data", "pool"]) == 0
    assert "read: folder:data, 8 images, 2 classes (test, train)\n" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"the classes of packed:pool are parts of a data set .*pack each part separately"
    ):
        load_task(DataConfig(in_dist="packed:pool", ood=("gaussian",), noise_size=9), seed=0)


def test_a_pool_remembers_what_was_left_out(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    image(tree / ".ipynb_checkpoints" / "0.png")
    (tree / "dog" / "a.gif").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "folder:tree", "pool"]) == 0
    expected = "1 file of an unread type, .gif (dog/a.gif); 1 hidden or system folder (.ipynb_checkpoints)"
    assert f"left out: {expected}\n" in capsys.readouterr().out
    pool = open_packed(Path("pool"))
    assert (len(pool), pool.class_names, "; ".join(map(str, pool.left_out))) == (7, ("cat", "dog"), expected)
    assert pool.image_set().left_out == pool.as_source().left_out == pool.left_out
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["info", "pool"]) == 0
    assert "1 hidden or system folder (.ipynb_checkpoints)" in capsys.readouterr().out


def test_names_like_markup_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    image(tmp_path / "a[bold]b[/x]" / "[red]" / "0.png")
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "folder:a[bold]b[/x]", "pool"]) == 0
    assert main(["info", "pool"]) == 0
    shown = capsys.readouterr().out
    assert "folder:a[bold]b[/x]" in shown
    assert "1 ([red])" in shown


def test_empty_class_folders_are_all_named(tree: Path):
    for name in ("ant", "bee"):
        (tree / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"every class folder of .*, ant, bee hold none: remove or fill them"):
        list_folder(tree, option="in_dist", labelled=True)
    assert list_folder(tree, option="background", labelled=False).class_names == ("cat", "dog")


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    for number in range(4):
        (tmp_path / "clips" / f"{number}.gif").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"clips must hold images .*; it holds 4 files of an unread type"):
        list_folder(tmp_path / "clips", option="background", labelled=False)
    image(tmp_path / "flat" / "0.png")
    with pytest.raises(FileNotFoundError, match=r"flat must hold class folders with images, .*, got 1 image$"):
        list_folder(tmp_path / "flat", option="in_dist", labelled=True)


def test_links_in_a_circle_end(tree: Path):
    (tree / "cat" / "again").symlink_to(tree / "cat")
    found = list_folder(tree, option="in_dist", labelled=True)
    assert len(found.files) == 7
    assert [str(what) for what in found.left_out] == ["1 link back to a folder above (cat/again)"]


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("all", ".", "1 link back to a folder above (all)"),
        ("cat/up", "..", "1 link back to a folder above (cat/up)"),
        ("self", "self", "1 link to itself (self)"),
        ("dog/self.png", "self.png", "1 link to itself (dog/self.png)"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_a_link_to_what_holds_it_adds_no_class_and_no_copies(
    tree: Path, link: str, target: str, said: str, labelled: bool
):
    (tree / link).symlink_to(target)
    found = list_folder(tree, option="in_dist", labelled=labelled)
    assert found.class_names == ("cat", "dog")
    assert [found.labels.count(label) for label in (0, 1)] == [4, 3]
    assert [str(what) for what in found.left_out] == [said]


def test_a_pipe_with_the_name_of_an_image_is_not_waited_for(tree: Path):
    os.mkfifo(tree / "cat" / "2.png")
    found = list_folder(tree, option="in_dist", labelled=True)
    assert len(found.files) == 7
    assert [str(what) for what in found.left_out] == ["1 other file (cat/2.png)"]


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read everything")
def test_a_folder_that_may_not_be_read_is_named(tree: Path):
    (tree / "cat" / "b").chmod(0)
    with pytest.raises(PermissionError, match=r"data.in_dist: folder .*cat/b must be readable"):
        list_folder(tree, option="in_dist", labelled=True)
    (tree / "cat" / "b").chmod(0o755)


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_of_one_image_is_said_in_the_singular(tmp_path: Path, count: int):
    for name, images in (("cat", count), ("dog", 4)):
        for number in range(images):
            image(tmp_path / "tree" / name / f"{number}.png")
    config = DataConfig(in_dist=f"folder:{tmp_path / 'tree'}", ood=("gaussian",), noise_size=9)
    if count == 2:
        assert torch.bincount(load_task(config, seed=0).id_train.labels).tolist() == [1, 3]
        return
    with pytest.raises(ValueError, match=r"class 'cat' has 1 image, at least 2 are needed, one to train on and one to"):
        load_task(config, seed=0)
