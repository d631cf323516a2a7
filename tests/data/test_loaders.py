"""Image loaders: the same pixels from each, what they refuse, and which is chosen."""

import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastood.data.loaders import EncodedImages, LoaderPlan, choice, open_loader, plan_loader
from fastood.data.loaders.dataloader import WorkerLoader
from tests.support.image_loaders import AUGMENT, CPU, EVERY_LOADER, NEEDS_DALI, draw_batch, open_named, random_images


@EVERY_LOADER
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 24)])
def test_batches_are_those_of_augment_bit_for_bit(name, depth, shape):
    images, generator = random_images(50, *shape), torch.Generator().manual_seed(1)
    batches = [draw_batch(size, generator) for size in (16, 5, 0, 7, 16, 1)]
    loader = open_named(name, images, depth=depth)
    served = []
    for begin, batch in enumerate(batches):
        loader.submit(*batch)
        if begin >= depth:
            served.append(loader.collect())
    served += [loader.collect() for _ in range(depth)]
    loader.close()
    for (index, draws), batch in zip(batches, served, strict=True):
        assert batch.dtype == torch.float32
        assert torch.equal(batch, AUGMENT.apply(images, index, draws))


@EVERY_LOADER
def test_images_mapped_from_a_file(name, tmp_path: Path):
    images = random_images()
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    batch = draw_batch(16, torch.Generator().manual_seed(1))
    loader = open_named(name, mapped)
    loader.submit(*batch)
    assert torch.equal(loader.collect(), AUGMENT.apply(images, *batch))
    loader.close()


@EVERY_LOADER
def test_batches_belong_to_the_caller(name):
    """A later batch may not be written over an earlier one."""
    generator = torch.Generator().manual_seed(1)
    loader, first = open_named(name, random_images()), draw_batch(16, generator)
    loader.submit(*first)
    held = loader.collect()
    for _ in range(3):
        loader.submit(*draw_batch(16, generator))
        loader.collect()
    loader.close()
    assert torch.equal(held, AUGMENT.apply(random_images(), *first))


@EVERY_LOADER
def test_the_global_generator_is_untouched(name):
    state = torch.get_rng_state()
    loader = open_named(name, random_images())
    loader.submit(*draw_batch(16, torch.Generator()))
    loader.collect()
    loader.close()
    assert torch.equal(torch.get_rng_state(), state)


@EVERY_LOADER
def test_what_cannot_be_served_is_refused_and_changes_nothing(name):
    generator = torch.Generator().manual_seed(1)
    loader, batch = open_named(name, random_images(), depth=1), draw_batch(4, generator)
    index, draws = batch
    with pytest.raises(RuntimeError, match="call submit first"):
        loader.collect()
    with pytest.raises(ValueError, match=r"index must be in 0…49, got 50"):
        loader.submit(torch.tensor([0, 1, 50, 2]), draws)
    with pytest.raises(ValueError, match=r"draws.rows must have shape \[2\] as index, got \[4\]"):
        loader.submit(index[:2], draws)
    with pytest.raises(TypeError, match=r"index must be int64, got torch.int32"):
        loader.submit(index.int(), draws)
    with pytest.raises(ValueError, match=r"draws.rows must be in 0…4, got"):
        loader.submit(index, AUGMENT.draw(4, height=4096, generator=generator))
    for _ in range(2):
        loader.submit(*batch)
    with pytest.raises(RuntimeError, match="2 batches wait to be collected, as many as prefetch_depth 1 allows"):
        loader.submit(*batch)
    for _ in range(2):
        assert torch.equal(loader.collect(), AUGMENT.apply(random_images(), *batch))
    loader.close()


@NEEDS_DALI
def test_dali_refuses_a_batch_larger_than_announced():
    loader = open_named("dali", random_images(), batch_size=8)
    with pytest.raises(ValueError, match="at most batch_size 8 images, got 9"):
        loader.submit(*draw_batch(9, torch.Generator()))
    loader.close()


def smooth_image(number: int, height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (9 + number) + k) + np.cos(columns / (11 + number) - k) for k in range(3)]
    return Image.fromarray(np.uint8(127 + 60 * np.stack(waves, axis=2)))


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["dataloader", pytest.param("dali", marks=NEEDS_DALI)])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("as_paths", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_those_decoded_by_pillow(name, kind, as_paths, channels, tmp_path: Path):
    shapes = [(16, 16), (64, 64), (48, 80), (80, 45), (33, 40), (40, 37)]
    contents = [encode(smooth_image(number, *shape), kind) for number, shape in enumerate(shapes)]
    paths = [tmp_path / f"größe {number}.{kind}" for number in range(len(shapes))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    images = EncodedImages(files=[str(path) for path in paths] if as_paths else contents, size=16, channels=channels)
    index, draws = draw_batch(12, torch.Generator().manual_seed(1), count=len(shapes))
    loader = open_named(name, images)
    loader.submit(index, draws)
    served = loader.collect()
    loader.close()
    expected = AUGMENT.apply(images.decode(torch.arange(len(shapes))), index, draws)
    if name == "dataloader" or (kind, channels) == ("png", 3):
        untouched = index == 0 if name == "dali" else index >= 0
        assert untouched.any()
        assert torch.equal(served[untouched], expected[untouched])
    # One of 255 grey levels is 4 / 255.
    levels = (served - expected).abs() * 255 / 4
    assert levels.mean() < 0.5
    assert levels.max() < 4


@pytest.mark.parametrize("name", ["dataloader", pytest.param("dali", marks=NEEDS_DALI)])
def test_an_unreadable_image_is_named(name, tmp_path: Path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    loader = open_named(name, EncodedImages(files=[str(path)], size=16, channels=3))
    loader.submit(*draw_batch(1, torch.Generator(), count=1))
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        loader.collect()
    loader.close()
    with pytest.raises(ValueError, match="unreadable image 0 of 1 in memory"):
        EncodedImages(files=[b"no image"], size=16, channels=3).decode(torch.tensor([0]))


def test_encoded_images_refuse():
    with pytest.raises(TypeError, match=r"files must be all str .* or all bytes .*, got bytes, str"):
        EncodedImages(files=["a", b"b"], size=16, channels=3)
    with pytest.raises(ValueError, match="size must be 1 or larger, got 0"):
        EncodedImages(files=[], size=0, channels=3)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        EncodedImages(files=[], size=16, channels=4)


def test_closing_ends_the_workers():
    before = set(multiprocessing.active_children())
    loader = WorkerLoader(random_images(), AUGMENT, device=CPU, prefetch_depth=1, workers=2)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    loader.submit(*draw_batch(4, torch.Generator()))
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_the_choice_goes_by_size_and_by_what_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "_memory_bytes", lambda device: 8 * 10**9)
    small = plan_loader("auto", None, image_bytes=4 * 10**9, device=CPU)
    assert (small.name, small.prefetch_depth) == ("resident", 0)
    assert str(small) == "loader: resident, 0 batches ahead (4.00 GB of images, up to half of the 8.0 GB of cpu memory)"
    for installed, name in ((True, "dali"), (False, "dataloader")):
        monkeypatch.setattr(choice, "dali_installed", lambda installed=installed: installed)
        large = plan_loader("auto", None, image_bytes=4 * 10**9 + 1, device=CPU)
        assert (large.name, large.prefetch_depth) == (name, 2)
        assert f"DALI is {'' if installed else 'not '}installed" in large.reason
    asked = plan_loader("dataloader", 5, image_bytes=1, device=CPU)
    assert (asked.name, asked.prefetch_depth) == ("dataloader", 5)
    with pytest.raises(ValueError, match=r"DALI is not installed: .* -m pip install 'nvidia-dali"):
        plan_loader("dali", None, image_bytes=1, device=CPU)
    with pytest.raises(ValueError, match=r"data.prefetch_depth must be 0 or larger, got -1"):
        plan_loader("auto", -1, image_bytes=1, device=CPU)
    with pytest.raises(ValueError, match=r"data.loader must be one of auto, resident, dataloader, dali, got 'fast'"):
        plan_loader("fast", None, image_bytes=1, device=CPU)


def test_encoded_images_cannot_be_resident():
    plan = LoaderPlan(name="resident", prefetch_depth=0, reason="asked for")
    with pytest.raises(ValueError, match="images must be decoded"):
        open_loader(plan, EncodedImages(files=[], size=16, channels=3), AUGMENT, batch_size=1, device=CPU)
