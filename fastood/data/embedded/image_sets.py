"""Image sets of the embedded default task: scans of digits, and generated background and OOD sets; no download.

| part | content |
|---|---|
| in-distribution | scikit-learn's handwritten digits without the held-out classes |
| background | letters of five font families (near, a few percent) and crops of two photographs (far, the rest) |
| OOD | held-out digits, Greek letters, symbols, held-out parts of the photographs, Gaussian and uniform noise |

All are 8×8 images of 17 grey levels, resized in the same way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.data.embedded.glyphs import FAMILIES, GREEK_LETTERS, LATIN_LETTERS, SYMBOLS, glyph_scans
from fastood.data.embedded.photographs import TILE_SIZE, photograph_scans
from fastood.data.embedded.scans import SCAN_SIZE, quantize, to_pixels
from fastood.data.images.image_set import ImageSet
from fastood.data.images.noise import NOISES
from fastood.data.images.resize import fit_images
from fastood.data.images.row_values import constant_rows
from fastood.data.splits import stratified_split

# The files of Computer Modern have Greek letters and symbols at other code points than Unicode.
_UNICODE_FAMILIES = tuple(family for family in FAMILIES if family != "Computer Modern")

EMBEDDED_OOD = ("held-out digits", "Greek letters", "symbols", "photographs", "Gaussian noise", "uniform noise")
"""Names of the OOD test sets, from near to far."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig:
    """Options of the embedded default task.

    Raises:
        ValueError: If a value is out of range.
    """

    held_out_digits: tuple[int, ...] = (8, 9)
    """Digits that are the nearest OOD test set instead of classes. The default was fixed before any result."""
    pool_size: int = 50_000
    """Images in the background pool; the photographs have about 130,000 different crops."""
    near_fraction: float = 0.02
    """Fraction of letters in the background pool; the others are crops of photographs."""
    photo_scales: tuple[int, ...] = (1, 2, 4)
    """Pixels of a photograph per pixel of a crop."""
    ood_size: int = 1000
    """Images in each OOD test set except the held-out digits, of which there are about 180 per class."""

    def __post_init__(self) -> None:
        held_out = set(self.held_out_digits)
        if len(held_out) < len(self.held_out_digits) or not held_out <= set(range(10)) or len(held_out) > 8:
            raise ValueError(f"held_out_digits must be at most 8 different digits 0…9, got {self.held_out_digits}")
        if self.pool_size < 1:
            raise ValueError(f"pool_size must be 1 or larger, got {self.pool_size}")
        if not 0 <= self.near_fraction <= 1:
            raise ValueError(f"near_fraction must be in [0, 1], got {self.near_fraction}")
        largest = TILE_SIZE // SCAN_SIZE
        if not self.photo_scales or not all(1 <= scale <= largest for scale in self.photo_scales):
            raise ValueError(f"photo_scales must be one or more of 1…{largest}, got {self.photo_scales}")
        if self.ood_size < 1:
            raise ValueError(f"ood_size must be 1 or larger, got {self.ood_size}")


def embedded_digits(
    config: EmbeddedConfig, *, test_fraction: float, size: int, channels: int, seed: int
) -> tuple[ImageSet, ImageSet]:
    """Return the in-distribution training and test sets: all digits that are not held out.

    Args:
        config: Held-out digits.
        test_fraction: Fraction of each class for testing, in (0, 1).
        size: Rows and columns of the images.
        channels: 1 (grey) or 3 (RGB).
        seed: Seed of the split.

    Returns:
        The training and the test set.

    Example:
        >>> train, test = embedded_digits(EmbeddedConfig(), test_fraction=0.3, size=16, channels=1, seed=0)
        >>> train.class_names, tuple(train.images.shape[1:])
        (('0', '1', '2', '3', '4', '5', '6', '7'), (1, 16, 16))
    """
    levels, digits = _scanned_digits()
    kept = [digit for digit in range(10) if digit not in config.held_out_digits]
    chosen = torch.isin(digits, torch.tensor(kept))
    labels = torch.searchsorted(torch.tensor(kept), digits[chosen])
    scans = ImageSet(
        name="scikit-learn digits",
        images=fit_images(to_pixels(levels[chosen]), size=size, channels=channels),
        labels=labels,
        source=constant_rows(0, len(labels)),
        source_names=("scikit-learn digits",),
        class_names=tuple(map(str, kept)),
    )
    train, test = stratified_split(labels, test_fraction, generator=named_generator(seed, "digits"))
    return scans.subset(train), scans.subset(test)


def embedded_background(config: EmbeddedConfig, *, size: int, channels: int, seed: int) -> ImageSet:
    """Generate the background pool: Latin letters and crops of photographs.

    Args:
        config: Size and composition of the pool.
        size: Rows and columns of the images.
        channels: 1 (grey) or 3 (RGB).
        seed: Seed of all images.

    Returns:
        A set of `config.pool_size` images; its sources are font families, and photographs by scale.

    Example:
        >>> pool = embedded_background(EmbeddedConfig(pool_size=60, near_fraction=0.1), size=16, channels=1, seed=0)
        >>> len(pool), pool.source_names[:1], pool.source_names[-1:]
        (60, ('letters: DejaVu Sans',), ('flower.jpg ×4',))
    """
    near = round(config.near_fraction * config.pool_size)
    letters, family = glyph_scans(
        LATIN_LETTERS, near, families=tuple(FAMILIES), generator=named_generator(seed, "background", "letters")
    )
    crops, crop_source, crop_names = photograph_scans(
        config.pool_size - near,
        scales=config.photo_scales,
        held_out=False,
        generator=named_generator(seed, "background", "photographs"),
    )
    names = tuple(f"letters: {name}" for name in FAMILIES) + crop_names
    source = torch.cat([family, crop_source + len(FAMILIES)])
    return _unlabelled(
        "letters and photographs", torch.cat([letters, crops]), source, names, size=size, channels=channels
    )


def embedded_ood(config: EmbeddedConfig, *, size: int, channels: int, seed: int) -> dict[str, ImageSet]:
    """Generate the OOD test sets, from near to far; they share no character or photograph's pixel with the pool.

    Args:
        config: Held-out digits and size of the sets.
        size: Rows and columns of the images.
        channels: 1 (grey) or 3 (RGB).
        seed: Seed of all images except the held-out digits.

    Returns:
        The sets by name; without "held-out digits" if `config` holds none out.

    Example:
        >>> sets = embedded_ood(EmbeddedConfig(ood_size=10), size=16, channels=1, seed=0)
        >>> {name: len(images) for name, images in sets.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'held-out digits': 354, 'Greek letters': 10, 'symbols': 10, 'photographs': 10,
         'Gaussian noise': 10, 'uniform noise': 10}
    """
    sets: dict[str, tuple[Tensor, Tensor, tuple[str, ...]]] = {}
    if config.held_out_digits:
        levels, digits = _scanned_digits()
        held_out = sorted(config.held_out_digits)
        chosen = torch.isin(digits, torch.tensor(held_out))
        source = torch.searchsorted(torch.tensor(held_out), digits[chosen])
        sets["held-out digits"] = levels[chosen], source, tuple(f"digit {digit}" for digit in held_out)
    for name, characters in (("Greek letters", GREEK_LETTERS), ("symbols", SYMBOLS)):
        levels, source = glyph_scans(
            characters, config.ood_size, families=_UNICODE_FAMILIES, generator=named_generator(seed, "ood", name)
        )
        sets[name] = levels, source, tuple(f"{name}: {family}" for family in _UNICODE_FAMILIES)
    sets["photographs"] = photograph_scans(
        config.ood_size,
        scales=config.photo_scales,
        held_out=True,
        generator=named_generator(seed, "ood", "photographs"),
    )
    for noise, name in (("gaussian", "Gaussian noise"), ("uniform", "uniform noise")):
        generator = named_generator(seed, "ood", name)
        # Drawn before resizing, as a scan, so that noise is as smooth between pixels as the other sets.
        levels = quantize(NOISES[noise]((config.ood_size, SCAN_SIZE, SCAN_SIZE), generator=generator))
        sets[name] = levels, constant_rows(0, config.ood_size), (name,)
    return {name: _unlabelled(name, *parts, size=size, channels=channels) for name, parts in sets.items()}


def _scanned_digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 scans, uint8 `[N, 8, 8]` in 0…16, and their digits, int64 `[N]`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target).long()


def _unlabelled(
    name: str, levels: Tensor, source: Tensor, source_names: tuple[str, ...], *, size: int, channels: int
) -> ImageSet:
    return ImageSet(
        name=name,
        images=fit_images(to_pixels(levels), size=size, channels=channels),
        labels=constant_rows(-1, len(levels)),
        source=source,
        source_names=source_names,
    )
