"""Files as cameras, programs and other systems leave them: turned, of 16 bits, of odd names, the same in every path."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms.v2 import functional as transforms

from fastood.data.images.encoded import EncodedImages
from fastood.data.images.image_source import decode_images, read_image
from fastood.data.images.resize import fit_images
from fastood.data.packed import writer as packing
from fastood.data.packed.packed_pool import open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_folder
from tests.support.image_loaders import AUGMENT, NEEDS_DALI, draw_batch, open_named

LOADERS = pytest.mark.parametrize("name", ["dataloader", pytest.param("dali", marks=NEEDS_DALI)])


def corners() -> Image.Image:
    """Blocks of 8×8 pixels, all different: a turn to another side shows."""
    blocks = np.random.default_rng(0).integers(256, size=(3, 5, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8)))


def write_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {}
    corners().save(path, exif=exif, quality=95, **options)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_as_cameras_say(tmp_path: Path, suffix: str, orientation: int):
    path = tmp_path / f"turned{suffix}"
    write_turned(path, orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    assert np.array_equal(read_image(str(path)).permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(read_image("memory", path.read_bytes()).permute(1, 2, 0).numpy(), expected)


def test_the_turn_is_that_of_the_camera(tmp_path: Path):
    """6: the camera was held upright, turned by a quarter to the left; the first column becomes the top row."""
    write_turned(tmp_path / "turned.png", 6)
    pixels = torch.from_numpy(np.asarray(corners()).copy()).permute(2, 0, 1)
    assert torch.equal(read_image(str(tmp_path / "turned.png")), pixels.rot90(-1, (1, 2)))


def test_damaged_exif_data_turn_nothing(tmp_path: Path):
    corners().save(tmp_path / "a.png", exif=b"Exif\0\0no tags at all")
    assert read_image(str(tmp_path / "a.png")).shape == (3, 24, 40)


@LOADERS
def test_loaders_and_packed_pools_give_the_same_turned_pixels(tmp_path: Path, name: str):
    (tmp_path / "tree" / "cat").mkdir(parents=True)
    for orientation in range(1, 9):
        write_turned(tmp_path / "tree" / "cat" / f"{orientation}.png", orientation)
    source = open_folder(tmp_path / "tree", field="source")
    encoded = EncodedImages(files=source.files, size=24, channels=3)
    pixels = encoded.decode(torch.arange(8))
    assert len({image.numpy().tobytes() for image in pixels}) == 8
    pool = pack(source, tmp_path / "pool", origin="folder:tree", size=24)
    assert torch.equal(open_packed(tmp_path / "pool").images, pixels)
    assert len(pool) == 8
    index, draws = draw_batch(12, torch.Generator().manual_seed(1), count=8, height=24)
    loader = open_named(name, encoded)
    loader.submit(index, draws)
    served = loader.collect()
    loader.close()
    assert torch.equal(served, AUGMENT.apply(pixels, index, draws))


def deep_png(channels: int) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + bytes(2 * 16 * channels) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@LOADERS
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_of_16_bits_are_refused_by_name_in_every_path(tmp_path: Path, name: str, channels: int):
    path = tmp_path / "tree" / "cat" / "deep.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(deep_png(channels))
    with pytest.raises(ValueError, match=r"unreadable image .*deep\.png: the image must have 8 bits per channel"):
        read_image(str(path))
    corners().save(path.parent / "good.png")
    pool = pack(open_folder(tmp_path / "tree", field="source"), tmp_path / "pool", origin="folder:tree")
    assert len(pool) == 1
    assert "deep.png: the image must have 8 bits per channel" in pool.skipped[0].reason
    loader = open_named(name, EncodedImages(files=[str(path)], size=16, channels=3))
    loader.submit(*draw_batch(2, torch.Generator(), count=1))
    with pytest.raises(ValueError, match=r"unreadable image .*deep\.png: the image must have 8 bits per channel"):
        loader.collect()
    loader.close()


def test_a_netpbm_file_of_16_bits_is_refused(tmp_path: Path):
    (tmp_path / "deep.ppm").write_bytes(b"P6 4 4 65535\n" + bytes(4 * 4 * 6))
    with pytest.raises(ValueError, match=r"deep\.ppm: the image must have 8 bits per channel"):
        read_image(str(tmp_path / "deep.ppm"))


@NEEDS_DALI
def test_dali_says_which_file_it_cannot_decode(tmp_path: Path):
    corners().save(tmp_path / "moving.jpg", "gif")
    images = EncodedImages(files=[str(tmp_path / "moving.jpg")], size=16, channels=3)
    assert images.decode(torch.tensor([0])).shape == (1, 3, 16, 16)
    loader = open_named("dali", images)
    loader.submit(*draw_batch(1, torch.Generator(), count=1))
    with pytest.raises(ValueError, match=r"moving\.jpg: DALI does not decode GIF: choose data.loader dataloader"):
        loader.collect()
    loader.close()


@LOADERS
def test_names_that_are_no_utf8_are_read(tmp_path: Path, name: str):
    folder = tmp_path / "tree" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    content = BytesIO()
    corners().save(content, "png")
    for number in range(2):
        (folder / os.fsdecode(b"\xff%d.png" % number)).write_bytes(content.getvalue())
    source = open_folder(tmp_path / "tree", field="source")
    assert source.class_names == (r"caf\xe9",)
    images = EncodedImages(files=source.files, size=24, channels=3)
    index, draws = draw_batch(3, torch.Generator().manual_seed(1), count=2, height=24)
    loader = open_named(name, images)
    loader.submit(index, draws)
    served = loader.collect()
    loader.close()
    assert torch.equal(served, AUGMENT.apply(images.decode(torch.arange(2)), index, draws))
    assert len(source.digest()) == 64


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path):
    Image.new("1", (1, 100_000)).save(tmp_path / "thread.png")
    with pytest.raises(
        ValueError, match=r"thread\.png: the ratio of the image's edges must be at most 1,000, got 1×100000"
    ):
        read_image(str(tmp_path / "thread.png"))


def test_the_reason_of_a_skipped_file_is_the_same_each_time(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^unreadable image 3 of pool: its format is unknown to Pillow$"):
        read_image("3 of pool", b"no image")


def test_photographs_are_fitted_one_at_a_time_and_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """64 photographs of 12 megapixels at once would take 9 GB in each thread."""
    (tmp_path / "tree" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        shape = (400, 300, 3) if number % 3 else (30, 40, 3)
        Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8)).save(tmp_path / "tree" / "a" / f"{number}.png")
    source = open_folder(tmp_path / "tree", field="source")
    one_by_one = torch.stack([fit_images(read_image(file)[None], size=16, channels=1)[0] for file in source.files])
    sizes = []
    resize = transforms.resize
    monkeypatch.setattr(
        "torchvision.transforms.v2.functional.resize",
        lambda images, *args, **options: sizes.append(images.numel()) or resize(images, *args, **options),
    )
    assert torch.equal(decode_images(source, torch.arange(6), size=16, channels=1), one_by_one)
    pool = pack(source, tmp_path / "pool", origin="folder:tree", size=16, channels=1)
    assert torch.equal(pool.images, one_by_one)
    assert max(sizes) == 400 * 300


def test_want_of_memory_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (400, 300)).save(tmp_path / "tree" / "a" / f"{number}.png")
    fits = iter([False, True, True])

    def fit(*args: object, **options: object) -> torch.Tensor:
        if next(fits):
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nsomewhere")

    monkeypatch.setattr(packing, "fit_images", fit)
    pool = pack(open_folder(tmp_path / "tree", field="source"), tmp_path / "pool", origin="folder:tree", threads=1)
    assert len(pool) == 2
    assert pool.skipped[0].reason.endswith("a/0.png: DefaultCPUAllocator: can't allocate memory")
