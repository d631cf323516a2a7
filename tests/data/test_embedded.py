import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from fastood.common.seeding import named_generator
from fastood.data import DataConfig, DetectionTask, EmbeddedConfig, load_task
from fastood.data.embedded.image_sets import EMBEDDED_OOD, embedded_background, embedded_digits, embedded_ood
from fastood.data.embedded.scans import count_blocks, quantize, to_pixels
from fastood.data.images.noise import NOISES
from fastood.data.splits import stratified_split

SMALL = EmbeddedConfig(pool_size=600, near_fraction=0.1, ood_size=60)


def small_task(seed: int = 0, **options: object) -> DetectionTask:
    return load_task(DataConfig(embedded=SMALL, **options), seed=seed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def default_task() -> DetectionTask:
    return load_task(DataConfig(), seed=0)


def all_images(task: DetectionTask) -> dict[str, torch.Tensor]:
    sets = {"train": task.id_train, "test": task.id_test, "background": task.background} | task.ood
    return {name: images.images for name, images in sets.items()}


def test_default_task(default_task):
    assert default_task.num_classes == 8
    assert default_task.id_train.class_names == tuple("01234567")
    assert len(default_task.id_train) + len(default_task.id_test) == 1797 - 174 - 180
    assert len(default_task.background) == 50_000
    assert tuple(default_task.ood) == EMBEDDED_OOD
    for images in default_task.ood.values():
        assert len(images) >= 0.2 * len(default_task.id_test)
    for images in all_images(default_task).values():
        assert images.shape[1:] == (1, 16, 16)
        assert images.is_contiguous()


def test_two_per_cent_of_the_pool_are_letters(default_task):
    pool = default_task.background
    count = torch.bincount(pool.source, minlength=len(pool.source_names))
    near = torch.tensor([name.startswith("letters") for name in pool.source_names])
    assert len(pool.source_names) <= 12
    assert int(count[near].sum()) == 1000
    assert count[near].min() == count[near].max()
    assert count[~near].max() - count[~near].min() <= 1


def test_no_two_pool_images_are_the_same_picture(default_task):
    distinct = default_task.background.images.flatten(1).unique(dim=0)
    assert len(distinct) > 0.995 * len(default_task.background)


def test_no_test_image_is_in_the_pool(default_task):
    pool = {image.numpy().tobytes() for image in default_task.background.images}
    for name, images in default_task.ood.items():
        assert not any(image.numpy().tobytes() in pool for image in images.images), name


def test_digits_are_the_scans_with_every_class_split_alike(default_task):
    task = load_task(DataConfig(image_size=8, embedded=SMALL), seed=0)
    digits = load_digits()
    scans = to_pixels(torch.from_numpy(digits.images).to(torch.uint8))
    expected = {(int(digit), scan.numpy().tobytes()) for digit, scan in zip(digits.target, scans, strict=True)}
    found = {
        (int(label), image.numpy().tobytes())
        for part in (task.id_train, task.id_test)
        for label, image in zip(part.labels, part.images, strict=True)
    } | {
        (8 + int(source), image.numpy().tobytes())
        for source, image in zip(task.ood["held-out digits"].source, task.ood["held-out digits"].images, strict=True)
    }
    assert found == expected
    train, test = (torch.bincount(part.labels) for part in (task.id_train, task.id_test))
    assert torch.equal(test, ((train + test) / 3).round().long())


def test_held_out_digits_are_an_option():
    config = EmbeddedConfig(held_out_digits=(0, 3), ood_size=5)
    train, _ = embedded_digits(config, test_fraction=0.5, size=8, channels=1, seed=0)
    held_out = embedded_ood(config, size=8, channels=1, seed=0)["held-out digits"]
    assert train.class_names == ("1", "2", "4", "5", "6", "7", "8", "9")
    assert torch.bincount(train.labels).min() >= 87
    assert held_out.source_names == ("digit 0", "digit 3")
    assert torch.bincount(held_out.source).tolist() == [178, 183]
    assert "held-out digits" not in embedded_ood(
        EmbeddedConfig(held_out_digits=(), ood_size=5), size=8, channels=1, seed=0
    )


@pytest.mark.parametrize("near_fraction", [0.0, 1.0])
def test_pools_of_one_kind(near_fraction):
    config = EmbeddedConfig(pool_size=40, near_fraction=near_fraction)
    pool = embedded_background(config, size=16, channels=1, seed=0)
    letters = torch.tensor([name.startswith("letters") for name in pool.source_names])[pool.source]
    assert len(pool) == 40
    assert bool(letters.all()) if near_fraction else not bool(letters.any())


def test_same_seed_same_bits_other_seed_other_images():
    first, again, other = (all_images(small_task(seed)) for seed in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
        if name != "held-out digits":
            assert not torch.equal(first[name], other[name])


def test_one_option_leaves_the_other_parts_alone():
    task = small_task()
    larger = load_task(DataConfig(embedded=EmbeddedConfig(pool_size=700, near_fraction=0.1, ood_size=60)), seed=0)
    assert torch.equal(task.id_train.images, larger.id_train.images)
    for name in task.ood:
        assert torch.equal(task.ood[name].images, larger.ood[name].images)


def test_global_generators_are_untouched():
    state = torch.get_rng_state()
    small_task()
    assert torch.equal(torch.get_rng_state(), state)


def test_all_sets_have_the_17_grey_levels_of_the_scans():
    levels = set(to_pixels(torch.arange(17, dtype=torch.uint8).view(1, 1, 17)).flatten().tolist())
    for name, images in all_images(small_task(image_size=8)).items():
        assert set(images.unique().tolist()) <= levels, name


def test_colour_repeats_grey():
    grey, colour = small_task(), small_task(channels=3)
    for one, three in zip(all_images(grey).values(), all_images(colour).values(), strict=True):
        assert torch.equal(one.expand_as(three), three)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out_digits": (8, 8)}, "held_out_digits must be at most 8 different digits"),
        ({"held_out_digits": (10,)}, "held_out_digits"),
        ({"held_out_digits": tuple(range(9))}, "held_out_digits"),
        ({"pool_size": 0}, "pool_size must be 1 or larger, got 0"),
        ({"near_fraction": 1.5}, r"near_fraction must be in \[0, 1\], got 1.5"),
        ({"near_fraction": float("nan")}, "near_fraction"),
        ({"photo_scales": ()}, "photo_scales must be one or more"),
        ({"photo_scales": (14,)}, "photo_scales must be one or more of 1…13"),
        ({"ood_size": 0}, "ood_size must be 1 or larger"),
    ],
)
def test_embedded_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddedConfig(**options)


def test_count_blocks_counts():
    bitmap = torch.rand(5, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.3
    counted = count_blocks(bitmap)
    assert counted.dtype == torch.uint8
    assert torch.equal(counted[2, 3, 5], bitmap[2, 12:16, 20:24].sum().to(torch.uint8))
    assert torch.equal(counted.sum((1, 2)), bitmap.sum((1, 2)))


def test_quantize_rounds_to_the_nearest_level():
    intensity = torch.linspace(0, 1, 1000)
    assert (quantize(intensity).float() / 16 - intensity).abs().max() <= 1 / 32 + 1e-6


@pytest.mark.parametrize(("kind", "variance"), [("gaussian", 0.2302), ("uniform", 1 / 3), ("rademacher", 1)])
def test_noise_has_the_papers_spread_in_normalised_space(kind, variance):
    noise = (NOISES[kind]((200, 1, 32, 32), generator=torch.Generator().manual_seed(0)) - 0.5) / 0.25
    assert noise.abs().max() <= 1
    assert noise.mean().abs() < 0.01
    # N(0, ½²) clamped to ±1: variance ¼·[erf(√2) - 4φ(2)] + P(|z| > 1) = 0.2302; uniform on ±1: ⅓.
    assert noise.var().item() == pytest.approx(variance, abs=0.003)


@pytest.mark.parametrize(
    # N(½, ½²) clipped to 0…1, in units of ½: erf(1/√2) - 2φ(1) + P(|z| > 1) = 0.5161.
    ("kind", "variance"), [("gaussian", 0.5161), ("uniform", 1 / 3), ("rademacher", 1)]
)  # fmt: skip
def test_noise_in_pixel_space_is_over_all_intensities(kind, variance):
    noise = NOISES[kind]((200, 1, 32, 32), generator=torch.Generator().manual_seed(0), space="pixel")
    assert (noise.min() >= 0, noise.max() <= 1) == (True, True)
    assert (noise.min().item(), noise.max().item()) == pytest.approx((0, 1), abs=1e-4)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.005)
    assert 4 * noise.var().item() == pytest.approx(variance, abs=0.005)


def test_blobs_in_pixel_space_are_not_stretched():
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    normalized, pixel = (
        NOISES["blobs"]((4, 3, 32, 32), generator=generator, space=space)
        for generator, space in zip(generators, ("normalized", "pixel"), strict=True)
    )
    assert bool(((pixel == 0) | (pixel >= 0.75)).all())
    torch.testing.assert_close(normalized, 0.25 + 0.5 * pixel)


def test_noise_space_is_an_option():
    levels = {}
    for space in ("normalized", "pixel"):
        config = DataConfig(ood=("noise=rademacher",), noise_size=5, noise_space=space)
        levels[space] = load_task(config, seed=0).ood["noise"].images.unique().tolist()
    assert levels == {"normalized": [64, 191], "pixel": [0, 255]}
    with pytest.raises(ValueError, match="space must be one of normalized, pixel, got 'grey'"):
        NOISES["uniform"]((1, 1, 8, 8), generator=torch.Generator(), space="grey")


def test_blobs_are_what_the_papers_code_makes_of_the_same_pixels():
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.7
    blobs = (NOISES["blobs"]((4, 3, 32, 32), generator=torch.Generator().manual_seed(0)) - 0.5) / 0.25
    for i in range(4):
        # outlier-exposure, CIFAR/test.py: images of [H, W, C], each blurred along all three axes, edges repeated.
        image = pixels[i].permute(1, 2, 0).numpy().astype(np.float32)
        blurred = gaussian_filter(image, sigma=1.5, mode="nearest", truncate=4.0)
        blurred[blurred < 0.75] = 0.0
        np.testing.assert_allclose(blobs[i].permute(1, 2, 0).numpy(), 2 * blurred - 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"shape must be \[N, C, H, W\], got \[32, 32\]"):
        NOISES["blobs"]((32, 32), generator=torch.Generator())


def test_stratified_split_keeps_at_least_one_of_each_class_on_both_sides():
    labels = torch.tensor([0] * 2 + [1] * 100)
    rest, held_out = stratified_split(labels, 0.9, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(labels[rest]).tolist() == [1, 10]
    assert sorted(torch.cat([rest, held_out]).tolist()) == list(range(102))
    with pytest.raises(ValueError, match="class 1 has one image"):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got 1"):
        stratified_split(labels, 1, generator=torch.Generator())


def test_named_generators_are_separate_streams():
    draws = {
        torch.rand(1, generator=named_generator(seed, *names)).item()
        for seed in (0, 1, 2**40)
        for names in (("a",), ("a", "b"), ("b",))
    }
    assert len(draws) == 9
    with pytest.raises(ValueError, match="seed must be 0 or larger, got -1"):
        named_generator(-1, "a")
