"""Data sets by name: tiny files in each set's real format, and what is said when they are damaged."""

import gzip
import io
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.images.image_source import ImageSource, decode_images
from fastood.data.sources.named_sets import NAMED_SETS
from fastood.data.sources.open_source import open_source
from fastood.data.sources.source_spec import parse_spec


def open_named(name: str, root: Path, part: str = "train") -> ImageSource:
    return open_source(parse_spec(name, field="ood"), field="ood", part=part, root=root, download=False)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def any_checksum(monkeypatch):
    """Let torchvision take tiny files for the published ones, whose checksums it knows."""
    for module in ("cifar", "svhn", "stl10", "omniglot", "places365"):
        of_module = getattr(torchvision.datasets, module)
        monkeypatch.setattr(of_module, "check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.fixture
def notmnist(tmp_path: Path) -> Path:
    raw = tmp_path / "notMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(pixels(20, 28, 28)))
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(20) % 10)))
    return tmp_path


def test_notmnist_reads_plain_and_packed_idx_files(notmnist):
    source = open_named("notmnist", notmnist, "ood")
    assert (len(source), source.channels, source.class_names[0]) == (20, 1, "A")
    assert torch.equal(source.read(7)[0], torch.from_numpy(pixels(20, 28, 28)[7]))
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte .*notMNIST-to-MNIST on GitHub"):
        open_named("notmnist", notmnist, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", idx(pixels(20, 28, 28))[:1000], r"must hold 15696 bytes by its header .*, got 1000"),
        ("images-idx3", idx(pixels(20, 28, 28)) + b"x", r"must hold 15696 bytes by its header .*, got 15697"),
        ("images-idx3", b"", "is not an idx file of unsigned bytes, it begins with nothing"),
        ("images-idx3", b"\x00\x00\x0d\x03", "is not an idx file of unsigned bytes, it begins with 00 00 0d 03"),
        ("images-idx3", idx(pixels(20)), "must have 3 dimensions, got 1"),
        ("labels-idx1", idx(np.arange(19) % 10), "must hold a label for each of 20 images, got 19"),
        ("labels-idx1", idx(np.arange(20)), "must have labels 0…9, got 19"),
    ],
)
def test_damaged_idx_files_are_named(notmnist, name, content, message):
    (notmnist / "notMNIST" / "raw" / f"t10k-{name}-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data.ood: .*t10k-.*{message}"):
        open_named("notmnist", notmnist, "ood")


def test_a_truncated_gzip_file_is_named(notmnist):
    path = notmnist / "notMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is not a complete gzip file"):
        open_named("notmnist", notmnist, "ood")


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    """Three classes of four training and two validation images, in the order of no alphabet."""
    folder = tmp_path / "tiny-imagenet-200"
    folder.mkdir()
    words = {"n02124075": "Egyptian cat", "n01443537": "goldfish, Carassius auratus", "n07873807": "pizza, pizza pie"}
    (folder / "wnids.txt").write_text("\n".join(words) + "\n")
    (folder / "words.txt").write_text("".join(f"{key}\t{value}\n" for key, value in {**words, "n1": "x"}.items()))
    lines = []
    for k, wnid in enumerate(words):
        for i in range(4):
            save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", np.full((64, 64, 3), 50 * k, np.uint8))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for i in range(2):
            save(folder / "val" / "images" / f"val_{3 * i + k}.JPEG", np.full((64, 64), 50 * k, np.uint8))
            lines.append(f"val_{3 * i + k}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet_reads_its_real_layout(tiny_imagenet):
    (tiny_imagenet / "tiny-imagenet-200/train/n02124075/images/._n02124075_1.JPEG").write_bytes(b"")
    train, val = (open_named("tiny-imagenet", tiny_imagenet, part) for part in ("train", "test"))
    assert train.class_ids == val.class_ids == ("n01443537", "n02124075", "n07873807")
    assert train.class_names == ("goldfish", "Egyptian cat", "pizza")
    assert (torch.bincount(train.labels).tolist(), torch.bincount(val.labels).tolist()) == ([4, 4, 4], [2, 2, 2])
    grey_of_class = torch.tensor([50, 0, 100])
    for source in (train, val):
        read = torch.stack([source.read(i)[0, 0, 0] for i in range(len(source))])
        assert torch.equal(read.long(), grey_of_class[source.labels])
    assert train.read(0).shape == (3, 64, 64)
    few = val.subset(torch.tensor([5, 0]))
    assert (few.labels.tolist(), few.files) == (val.labels[[5, 0]].tolist(), (val.files[5], val.files[0]))
    assert torch.equal(few.read(0), val.read(5))


def test_tiny_imagenet_trains_and_is_judged_on_val(tiny_imagenet):
    config = DataConfig(in_dist="tiny-imagenet", background="uniform", ood=("blobs",), root=tiny_imagenet, noise_size=5)
    task = load_task(config, seed=0)
    assert (len(task.id_train), len(task.id_test), task.num_classes) == (12, 6, 3)
    assert task.id_train.images.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("wnids.txt", None, FileNotFoundError, "there is no file .*wnids.txt; tiny-imagenet: http://cs231n"),
        ("wnids.txt", "n02124075\nn02124075\n", ValueError, "wnids.txt names n02124075 twice"),
        ("words.txt", "n02124075\tcat\n", ValueError, "words.txt has no line for n01443537 of wnids.txt"),
        ("val/val_annotations.txt", None, FileNotFoundError, "there is no file .*val_annotations.txt"),
        (
            "val/val_annotations.txt",
            "val_0.JPEG n02124075\n",
            ValueError,
            "line 1 of .*val_annotations.txt must have the form",
        ),
        (
            "val/val_annotations.txt",
            "val_0.JPEG\tn1\t0\n",
            ValueError,
            "line 1 of .*val_annotations.txt must have the form",
        ),
        (
            "val/val_annotations.txt",
            "val_0.JPEG\tn02124075\n" * 2,
            ValueError,
            "line 2 of .* names val_0.JPEG a second",
        ),
        ("val/images/val_5.JPEG", None, FileNotFoundError, "line 6 of .*: there is no file .*images/val_5.JPEG"),
    ],
)
def test_damage_to_tiny_imagenet_is_named(tiny_imagenet, file, content, error, message):
    path = tiny_imagenet / "tiny-imagenet-200" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=f"data.ood: .*{message}"):
        open_named("tiny-imagenet", tiny_imagenet, "ood")


def test_a_truncated_jpeg_is_named(tiny_imagenet):
    path = tiny_imagenet / "tiny-imagenet-200/train/n02124075/images/n02124075_1.JPEG"
    path.write_bytes(path.read_bytes()[:-100])
    source = open_named("tiny-imagenet", tiny_imagenet)
    with pytest.raises(ValueError, match=rf"unreadable image {path}: "):
        decode_images(source, torch.arange(len(source)), size=32, channels=3)


def test_an_empty_class_of_tiny_imagenet_is_named(tiny_imagenet):
    for path in (tiny_imagenet / "tiny-imagenet-200/train/n07873807/images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image \*.JPEG in .*train/n07873807/images"):
        open_named("tiny-imagenet", tiny_imagenet)


def test_trees_of_one_part(tmp_path):
    save(tmp_path / "iSUN" / "iSUN_patches" / "1.jpeg", pixels(32, 32, 3))
    isun = open_named("isun", tmp_path, "ood")
    assert (len(isun), isun.name, isun.channels, isun.class_names) == (1, "isun", 3, ("iSUN_patches",))
    strokes = np.zeros((105, 105), bool)
    strokes[:50] = True
    save(tmp_path / "omniglot/images_background_small1/Greek/character01/0394_01.png", strokes)
    omniglot = open_named("omniglot-small1", tmp_path, "ood")
    assert (omniglot.class_names, omniglot.files) == (("Greek",), None)
    assert (omniglot.read(0)[:, 0, 0].tolist(), omniglot.read(0)[:, 99, 0].tolist()) == ([0], [255])
    with pytest.raises(FileNotFoundError, match=r"data.ood: there is no folder .*LSUN_resize; lsun-resize: .*GitHub"):
        open_named("lsun-resize", tmp_path, "ood")


def test_cifar(tmp_path, any_checksum):
    for folder, files, key, label in (
        ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], "labels", "label_names"),
        ("cifar-100-python", ["train", "test"], "fine_labels", "fine_label_names"),
    ):
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).write_bytes(pickle.dumps({"data": pixels(4, 3072), key: [0, 1, 2, 3]}))
        meta = pickle.dumps({label: ["a", "b", "c", "d"]})
        (tmp_path / folder / ("meta" if "100" in folder else "batches.meta")).write_bytes(meta)
    cifar10, cifar100 = open_named("cifar10", tmp_path), open_named("cifar100", tmp_path)
    assert (len(cifar10), len(cifar100), cifar10.class_names) == (20, 4, ("a", "b", "c", "d"))
    assert torch.equal(cifar10.read(1), torch.from_numpy(pixels(4, 3072)[1].reshape(3, 32, 32)))
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"data.ood: the files of torchvision:CIFAR100 under .* are damaged"):
        open_named("cifar100", tmp_path)


def test_svhn_and_stl10(tmp_path, any_checksum):
    scipy.io.savemat(
        tmp_path / "test_32x32.mat", {"X": pixels(32, 32, 3, 5), "y": np.array([[1], [2], [10], [10], [3]])}
    )
    svhn = open_named("svhn", tmp_path, "test")
    assert svhn.labels.tolist() == [1, 2, 0, 0, 3]
    assert torch.equal(svhn.read(2), torch.from_numpy(pixels(32, 32, 3, 5)[..., 2]).permute(2, 0, 1))
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}_X.bin").write_bytes(pixels(3, 3, 96, 96).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes([1, 10, 3]))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    stl10 = open_named("stl10", tmp_path)
    assert (stl10.labels.tolist(), stl10.class_names[9]) == ([0, 9, 2], "j")
    assert torch.equal(stl10.read(0), torch.from_numpy(pixels(3, 3, 96, 96)[0]).mT)


def test_omniglot_is_inverted(tmp_path, any_checksum):
    (tmp_path / "omniglot-py").mkdir()
    (tmp_path / "omniglot-py" / "images_background.zip").write_bytes(b"")
    for alphabet in ("Greek", "Latin"):
        for character in ("character01", "character02"):
            save(tmp_path / "omniglot-py/images_background" / alphabet / character / "1.png", np.ones((105, 105), bool))
    for left_out in ("__MACOSX/character01/1.png", "Greek/.hidden/1.png", "Greek/character01/._1.png"):
        save(tmp_path / "omniglot-py/images_background" / left_out, np.ones((8, 8), bool))
    source = open_named("omniglot", tmp_path)
    assert source.class_names[3] == "Latin/character02"
    assert (source.labels.tolist(), source.read(0).unique().tolist()) == ([0, 1, 2, 3], [0])


def test_places365(tmp_path, any_checksum):
    root = tmp_path / "places365"
    root.mkdir()
    # Its real list is not quite in the order of the alphabet: numbers decide.
    (root / "categories_places365.txt").write_text("/b/bar 0\n/a/airfield 1\n")
    (root / "places365_val.txt").write_text("Places365_val_1.jpg 1\nPlaces365_val_2.jpg 0\n")
    with pytest.raises(FileNotFoundError, match=r"data.ood: torchvision:Places365 .* there is no folder .*val_256"):
        open_named("places365", tmp_path, "ood")
    for i in (1, 2):
        save(root / "val_256" / f"Places365_val_{i}.jpg", pixels(256, 256, 3))
    source = open_named("places365", tmp_path, "ood")
    assert (source.labels.tolist(), source.class_names) == ([1, 0], ("/b/bar", "/a/airfield"))
    assert source.read(1).shape == (3, 256, 256)
    # Of files, which can be decoded on use.
    assert [Path(file).name for file in source.files] == ["Places365_val_1.jpg", "Places365_val_2.jpg"]


def test_imagenet(tmp_path):
    root = tmp_path / "imagenet"
    for wnid in ("n01440764", "n01443537"):
        save(root / "val" / wnid / "1.JPEG", pixels(80, 60, 3))
    torch.save(({"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}, ["n01440764"]), root / "meta.bin")
    for left_out in ("n01440764/._1.JPEG", ".ipynb_checkpoints/1.JPEG", "n01443537/.thumbnails/1.JPEG"):
        save(root / "val" / left_out, pixels(8, 8, 3))
    source = open_named("imagenet", tmp_path, "ood")
    assert (source.class_names, source.class_ids) == (("tench, Tinca tinca", "goldfish"), ("n01440764", "n01443537"))
    assert [Path(file).parent.name for file in source.files] == ["n01440764", "n01443537"]
    with pytest.raises(
        FileNotFoundError, match=r"ImageNet under .*imagenet: .*ILSVRC2012_img_train.tar is not present"
    ):
        open_named("imagenet", tmp_path, "train")


def test_lsun_names_the_package_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"data.ood: torchvision:LSUN needs the package lmdb"):
        open_named("lsun", tmp_path, "ood")


def test_lsun(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb")
    monkeypatch.chdir(tmp_path)  # torchvision leaves lists of keys where it runs.
    with pytest.raises(FileNotFoundError, match=r"data.ood: torchvision:LSUN under .*lsun: .*test_lmdb: No such file"):
        open_named("lsun", tmp_path, "ood")
    (tmp_path / "lsun").mkdir()
    encoded = io.BytesIO()
    Image.fromarray(pixels(40, 60, 3)).save(encoded, "webp", lossless=True)
    with lmdb.open(str(tmp_path / "lsun" / "test_lmdb")) as database, database.begin(write=True) as transaction:
        for key in (b"0a", b"1b"):
            transaction.put(key, encoded.getvalue())
    source = open_named("lsun", tmp_path, "ood")
    assert source.labels.tolist() == [0, 0]
    assert torch.equal(source.read(1), torch.from_numpy(pixels(40, 60, 3)).permute(2, 0, 1))


@pytest.mark.parametrize("name", NAMED_SETS)
def test_every_set_that_is_missing_is_answered_with_a_file_or_folder(name, tmp_path):
    if name == "lsun":
        pytest.importorskip("lmdb")
    with pytest.raises(FileNotFoundError, match=r"data.ood: "):
        open_named(name, tmp_path, "ood")
    with pytest.raises(FileNotFoundError, match=r"data.ood: .* needs data.root, but there is no folder .*nowhere"):
        open_named(name, tmp_path / "nowhere", "ood")
    assert NAMED_SETS[name].present(tmp_path) == ()


def test_what_may_not_be_read_is_named(notmnist, monkeypatch):
    path = notmnist / "notMNIST" / "raw" / "t10k-images-idx3-ubyte"

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    # chmod would not stop a superuser, as whom containers run tests.
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=rf"data.ood: {path} must be readable"):
        open_named("notmnist", notmnist, "ood")


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read everything")
@pytest.mark.parametrize(
    ("spec", "locked"),
    [
        ("folder:{}/iSUN", "iSUN"),
        ("folder:{}/iSUN", "iSUN/iSUN_patches"),
        ("npy:{}/x.npy", "x.npy"),
        ("isun", "."),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
    ],
)
def test_locked_files_and_folders_are_named(tmp_path, spec, locked):
    save(tmp_path / "iSUN" / "iSUN_patches" / "1.png", pixels(32, 32, 3))
    np.save(tmp_path / "x.npy", pixels(2, 8, 8))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", pixels(2, 28, 28)), ("labels-idx1", np.arange(2))):
            (tmp_path / "MNIST" / "raw" / f"{part}-{name}-ubyte").write_bytes(idx(array))
    path = tmp_path / locked
    path.chmod(0)
    try:
        with pytest.raises(PermissionError, match=rf"data.ood: .*{path.name}.* must be readable"):
            open_named(spec.format(tmp_path), tmp_path, "ood")
    finally:
        path.chmod(0o755)


def test_images_smaller_than_wanted_are_enlarged_and_oblong_ones_cropped(tmp_path):
    picture = np.zeros((5, 15, 3), np.uint8)
    picture[:, 5:10] = 77
    save(tmp_path / "iSUN" / "iSUN_patches" / "1.png", picture)
    images = decode_images(open_named("isun", tmp_path, "ood"), torch.tensor([0]), size=32, channels=3)
    assert images.shape == (1, 3, 32, 32)
    assert images[..., 8:24].unique().tolist() == [77]
