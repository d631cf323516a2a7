import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.images.image_source import decode_images, image_to_tensor, read_image
from fastood.data.images.resize import fit_images
from fastood.data.sources.local_files import open_arrays, open_folder
from fastood.data.sources.torchvision_sets import open_torchvision


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes of 4, 5 and 6 images of different sizes and kinds; every image of class k is of grey 20·k."""
    for label, name in enumerate(["ant", "bee", "cat"]):
        folder = tmp_path / "tree" / name
        folder.mkdir(parents=True)
        for i in range(4 + label):
            image = Image.new("RGB", (40 + i, 50), (20 * label,) * 3)
            image.convert(["RGB", "L", "P", "RGBA"][i % 4], palette=Image.Palette.ADAPTIVE).save(folder / f"{i}.png")
    return tmp_path / "tree"


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, str]:
    """Sources of two classes: 30 images with labels, and others without."""
    np.save(tmp_path / "x.npy", random_pixels(30, 12, 12))
    np.save(tmp_path / "y.npy", np.arange(30) % 2)
    np.save(tmp_path / "pool.npy", random_pixels(20, 12, 12, 3, seed=1))
    np.save(tmp_path / "other.npy", random_pixels(10, 14, 10, seed=2))
    return {
        "in_dist": f"npy:{tmp_path}/x.npy,{tmp_path}/y.npy",
        "background": f"npy:{tmp_path}/pool.npy",
        "other": f"npy:{tmp_path}/other.npy",
    }


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def idx_root(tmp_path: Path) -> Path:
    for part, n in (("train", 40), ("t10k", 20)):
        write_idx(tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte", random_pixels(n, 28, 28))
        write_idx(tmp_path / f"MNIST/raw/{part}-labels-idx1-ubyte", np.arange(n) % 10)
    for part, n in (("train", 52), ("test", 26)):
        write_idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-images-idx3-ubyte", random_pixels(n, 28, 28, seed=1))
        write_idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-labels-idx1-ubyte", np.arange(n) % 26 + 1)
    return tmp_path


def test_fit_resizes_the_shorter_edge_and_crops_the_centre():
    images = torch.zeros(1, 1, 64, 128, dtype=torch.uint8)
    images[..., 32:96] = 200
    assert (fit_images(images, size=32, channels=1) >= 199).float().mean() > 0.9
    tall = fit_images(images.mT.contiguous(), size=32, channels=1)
    assert torch.equal(tall, fit_images(images, size=32, channels=1).mT)


def test_fit_leaves_what_fits_and_converts_colour():
    grey = torch.from_numpy(random_pixels(4, 1, 32, 32))
    colour = fit_images(grey, size=32, channels=3)
    assert torch.equal(colour, grey.expand(4, 3, 32, 32))
    assert torch.equal(fit_images(colour, size=32, channels=1), grey)
    pure = torch.tensor([255, 0, 0, 0, 255, 0, 0, 0, 255], dtype=torch.uint8).view(3, 3, 1, 1).expand(3, 3, 8, 8)
    assert fit_images(pure, size=8, channels=1)[:, 0, 0, 0].tolist() == [76, 150, 29]


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_fit_refuses_other_channel_counts(channels):
    with pytest.raises(ValueError, match=f"channels must be 1 or 3, got {channels}"):
        fit_images(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), size=8, channels=channels)
    with pytest.raises(ValueError, match=f"channels of images must be 1 or 3, got {channels}"):
        fit_images(torch.zeros(1, channels, 8, 8, dtype=torch.uint8), size=8, channels=1)


def test_one_image_fits_as_a_batch_does():
    images = torch.from_numpy(random_pixels(5, 3, 40, 50))
    together = fit_images(images, size=16, channels=1)
    assert all(torch.equal(fit_images(images[i : i + 1], size=16, channels=1)[0], together[i]) for i in range(5))


def test_folder_reads_every_kind_of_image(tree):
    source = open_folder(tree, field="background")
    assert source.class_names == ("ant", "bee", "cat")
    assert torch.bincount(source.labels).tolist() == [4, 5, 6]
    images = decode_images(source, torch.arange(len(source)), size=32, channels=3)
    assert torch.equal(images, (20 * source.labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32))


def test_decoding_many_chunks_keeps_the_order(tmp_path):
    pixels = random_pixels(500, 16, 16, 3)
    np.save(tmp_path / "x.npy", pixels)
    source = open_arrays(tmp_path / "x.npy", None, field="ood")
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:333]
    images = decode_images(source, index, size=16, channels=3)
    assert torch.equal(images, torch.from_numpy(pixels)[index].permute(0, 3, 1, 2))


def test_folder_problems_are_named(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.ood: there is no folder .*missing"):
        open_folder(tmp_path / "missing", field="ood")
    (tmp_path / "flat").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data.ood: .*flat must hold class folders"):
        open_folder(tmp_path / "flat", field="ood")
    (tree / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data.in_dist: .*dog"):
        open_folder(tree, field="in_dist")


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_image_is_named(tree, content):
    path = tree / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=r"unreadable image .*bee/2.png"):
        read_image(str(path))
    with pytest.raises(ValueError, match=r"unreadable image .*bee/2.png"):
        load_task(DataConfig(in_dist=f"folder:{tree}", background="gaussian", ood=("u=uniform",), noise_size=3), seed=0)


def test_deep_images_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png: the image must have 8 bits per channel, got Pillow mode 'I;16'"):
        read_image(str(tmp_path / "deep.png"))
    assert image_to_tensor(Image.new("1", (3, 2), 1)).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (np.zeros((2, 8, 8)), None, TypeError, "x.npy must be uint8, got float64"),
        (random_pixels(2, 8), None, ValueError, r"x.npy must have shape .* got \[2, 8\]"),
        (random_pixels(2, 8, 8, 4), None, ValueError, r"x.npy must have shape .* got \[2, 8, 8, 4\]"),
        (random_pixels(2, 0, 8), None, ValueError, r"got \[2, 0, 8\]"),
        (random_pixels(2, 8, 8), np.zeros(2), TypeError, "y.npy must hold integers, got float64"),
        (random_pixels(2, 8, 8), np.zeros(3, int), ValueError, r"y.npy must have shape \[2\] .* got \[3\]"),
        (random_pixels(2, 8, 8), np.array([0, -1]), ValueError, r"y.npy must hold labels 0…K-1, got -1"),
        (np.array([{}]), None, ValueError, "x.npy is not an .npy array"),
    ],
)
def test_array_problems_are_named(tmp_path, images, labels, error, message):
    np.save(tmp_path / "x.npy", images)
    if labels is not None:
        np.save(tmp_path / "y.npy", labels)
    with pytest.raises(error, match=f"data.in_dist: .*{message}"):
        open_arrays(tmp_path / "x.npy", None if labels is None else tmp_path / "y.npy", field="in_dist")


def test_files_that_are_no_arrays_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.ood: there is no file .*x.npy"):
        open_arrays(tmp_path / "x.npy", None, field="ood")
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.npy is not an .npy array"):
        open_arrays(tmp_path / "x.npy", None, field="ood")
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match=r"x.npz must be an .npy array, got NpzFile"):
        open_arrays(tmp_path / "x.npz", None, field="ood")


def test_torchvision_reads_both_parts(idx_root):
    train = open_torchvision("MNIST", part="train", root=idx_root, download=False, field="in_dist")
    test = open_torchvision("MNIST", part="test", root=idx_root, download=False, field="in_dist")
    assert (len(train), len(test), train.channels) == (40, 20, 1)
    assert train.class_names[:2] == ("0 - zero", "1 - one")
    pixels = torch.from_numpy(random_pixels(40, 28, 28))
    assert torch.equal(decode_images(train, torch.arange(40), size=28, channels=1)[:, 0], pixels)


def test_emnist_letters_are_turned_upright_and_counted_from_zero(idx_root):
    source = open_torchvision("EMNIST", part="train", root=idx_root, download=False, field="in_dist")
    assert torch.bincount(source.labels).tolist() == [2] * 26
    assert source.class_names == tuple("abcdefghijklmnopqrstuvwxyz")
    assert torch.equal(source.read(3)[0], torch.from_numpy(random_pixels(52, 28, 28, seed=1)[3].T.copy()))


def test_damaged_files_of_torchvision_are_named(idx_root):
    path = idx_root / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    wanted = (
        r"data.background: the files of torchvision:MNIST under .* damaged: .*train-images-idx3-ubyte must hold 31376"
    )
    with pytest.raises(ValueError, match=wanted):
        open_torchvision("MNIST", part="train", root=idx_root, download=False, field="background")


def test_textures_as_an_ood_set_are_all_three_parts(idx_root):
    """Li & Vasconcelos 2020, Table 1, count 5,640: train, val and test of 1,880 each."""
    folder = idx_root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    (folder / "images" / "dotted").mkdir(parents=True)
    for part in ("train", "val", "test"):
        (folder / "labels" / f"{part}1.txt").write_text(f"dotted/{part}.jpg\n")
        (folder / "images" / "dotted" / f"{part}.jpg").write_bytes(b"no image")
    source = open_torchvision("DTD", part="ood", root=idx_root, download=False, field="ood")
    assert source.labels.tolist() == [0, 0, 0]
    assert len(open_torchvision("DTD", part="test", root=idx_root, download=False, field="ood").labels) == 1
    with pytest.raises(ValueError, match=r"unreadable image .*dotted/test.jpg"):
        decode_images(source, torch.tensor([2]), size=8, channels=1)


def test_torchvision_never_downloads_unasked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.ood: torchvision:SVHN under .*data.download fetches it"):
        open_torchvision("SVHN", part="test", root=tmp_path, download=False, field="ood")
    with pytest.raises(FileNotFoundError, match=r"data.ood: .* needs data.root, but there is no folder .*nowhere"):
        open_torchvision("MNIST", part="test", root=tmp_path / "nowhere", download=False, field="ood")
    assert list(tmp_path.iterdir()) == []


def test_task_from_arrays(arrays):
    config = DataConfig(
        in_dist=arrays["in_dist"],
        background=arrays["background"],
        ood=(f"other={arrays['other']}", "noise=gaussian"),
        image_size=12,
        noise_size=50,
        test_fraction=0.2,
    )
    task = load_task(config, seed=0)
    assert (task.num_classes, len(task.id_train), len(task.id_test)) == (2, 24, 6)
    assert task.id_train.class_names == ("0", "1")
    assert (len(task.background), task.background.name, task.background.source_names) == (20, "pool", ("pool",))
    assert {name: tuple(images.images.shape) for name, images in task.ood.items()} == {
        "other": (10, 1, 12, 12),
        "noise": (50, 1, 12, 12),
    }
    assert 63 <= task.ood["noise"].images.min() <= task.ood["noise"].images.max() <= 192
    rows = {image.numpy().tobytes() for part in (task.id_train, task.id_test) for image in part.images}
    assert rows == {image.tobytes() for image in random_pixels(30, 12, 12)}
    again = load_task(config, seed=0)
    assert torch.equal(task.id_test.images, again.id_test.images)
    assert torch.equal(task.ood["noise"].images, again.ood["noise"].images)
    assert not torch.equal(task.id_test.images, load_task(config, seed=1).id_test.images)


def test_task_from_torchvision_and_folder(idx_root, tree):
    config = DataConfig(
        in_dist="torchvision:MNIST", background=f"folder:{tree}", ood=("letters=torchvision:EMNIST",), root=idx_root
    )
    task = load_task(config, seed=0)
    assert (len(task.id_train), len(task.id_test), task.num_classes) == (40, 20, 10)
    assert task.id_train.images.shape[1:] == (1, 32, 32)
    assert task.background.source_names == ("ant", "bee", "cat")
    assert torch.equal(task.background.images[:, 0, 0, 0].long(), 20 * task.background.source)
    assert len(task.ood["letters"]) == 26
    assert task.ood["letters"].labels.unique().tolist() == [-1]


def test_folder_task_is_in_colour_and_takes_its_own_test_set(tree, tmp_path):
    config = DataConfig(
        in_dist=f"folder:{tree}", in_dist_test=f"npy:{tmp_path}/x.npy,{tmp_path}/y.npy", background="gaussian",
        ood=("u=uniform",), noise_size=3,
    )  # fmt: skip
    np.save(tmp_path / "x.npy", random_pixels(4, 32, 32))
    np.save(tmp_path / "y.npy", np.array([0, 2, 2, 1]))
    task = load_task(config, seed=0)
    assert (len(task.id_train), task.id_test.labels.tolist()) == (15, [0, 2, 2, 1])
    assert task.id_test.images.shape == (4, 3, 32, 32)


def test_embedded_digits_with_a_pool_of_ones_own(arrays):
    config = DataConfig(background=arrays["background"], ood=(f"other={arrays['other']}",))
    task = load_task(config, seed=0)
    assert (task.num_classes, len(task.background), list(task.ood)) == (8, 20, ["other"])
    assert task.background.images.shape[1:] == (1, 16, 16)


@pytest.mark.parametrize(
    ("labels", "test_labels", "message"),
    [
        ([0, 0, 2, 2], None, r"data.in_dist: class '1' has 0 images, at least 2 are needed"),
        ([0, 0, 0, 1], None, r"data.in_dist: class '1' has 1 image, at least 2 are needed"),
        ([0, 0, 1, 1], [0, 2], r"data.in_dist_test must have labels 0…1, got 2"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, test_labels, message):
    np.save(tmp_path / "x.npy", random_pixels(4, 8, 8))
    np.save(tmp_path / "y.npy", np.array(labels))
    options = {"in_dist": f"npy:{tmp_path}/x.npy,{tmp_path}/y.npy", "background": "gaussian", "ood": ("u=uniform",)}
    if test_labels:
        np.save(tmp_path / "tx.npy", random_pixels(2, 8, 8))
        np.save(tmp_path / "ty.npy", np.array(test_labels))
        options["in_dist_test"] = f"npy:{tmp_path}/tx.npy,{tmp_path}/ty.npy"
    with pytest.raises(ValueError, match=message):
        load_task(DataConfig(**options), seed=0)


def test_a_test_tree_must_have_the_same_classes(tree, tmp_path):
    (tmp_path / "test" / "ant").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "test" / "ant" / "0.png")
    config = DataConfig(
        in_dist=f"folder:{tree}", in_dist_test=f"folder:{tmp_path / 'test'}", background="gaussian", ood=("u=uniform",)
    )
    with pytest.raises(ValueError, match=r"must have the classes of in_dist \('ant', 'bee', 'cat'\), got \('ant',\)"):
        load_task(config, seed=0)


@pytest.mark.parametrize("part", ["in_dist", "background", "ood"])
def test_empty_sets_are_refused_before_anything_is_decoded(arrays, tmp_path, part, monkeypatch):
    monkeypatch.setattr("fastood.data.decoding.decode_images", lambda *_, **__: pytest.fail("decoded"))
    np.save(tmp_path / "empty.npy", random_pixels(0, 8, 8))
    np.save(tmp_path / "none.npy", np.zeros(0, int))
    options = {"in_dist": arrays["in_dist"], "background": arrays["background"], "ood": ("u=uniform",)}
    empty = f"npy:{tmp_path}/empty.npy"
    options[part] = {"in_dist": f"{empty},{tmp_path}/none.npy", "background": empty, "ood": (f"x={empty}",)}[part]
    with pytest.raises(ValueError, match=f"data.{part}.*: npy:.*empty.npy.* has no images"):
        load_task(DataConfig(**options), seed=0)
