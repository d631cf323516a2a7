import string

import pytest
import torch
from sklearn.datasets import load_digits

from fastood.data.embedded.glyphs import (
    BOX_WIDTH,
    FAMILIES,
    GREEK_LETTERS,
    INK_MEAN,
    INK_RANGE,
    INK_STD,
    LATIN_LETTERS,
    SYMBOLS,
    available_characters,
    glyph_outline,
    glyph_scans,
)
from fastood.data.embedded.photographs import (
    PHOTOGRAPHS,
    TILE_COLUMNS,
    TILE_ROWS,
    crop_corners,
    crop_scans,
    is_held_out,
    load_grey,
    photograph_scans,
)

FONTS = [font for fonts in FAMILIES.values() for font in fonts]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("font", FONTS)
def test_every_glyph_drawn_is_there(font):
    assert available_characters(font, LATIN_LETTERS) == LATIN_LETTERS
    for character in available_characters(font, LATIN_LETTERS + GREEK_LETTERS + SYMBOLS):
        distance, points = glyph_outline(font, character)
        ink = distance > 0
        assert 0.02 < ink.float().mean() < 0.7, character
        assert points[:, 1].max() - points[:, 1].min() >= 29, character
        assert points[:, 0].max() - points[:, 0].min() <= BOX_WIDTH, character


def test_missing_glyphs_are_left_out():
    assert available_characters("STIXGeneralItalic", "a♠") == "a"
    assert available_characters("DejaVuSans", "a\ue000") == "a"
    with pytest.raises(ValueError, match="cmr10 has no glyph for '♠'"):
        glyph_outline("cmr10", "♠")
    with pytest.raises(ValueError, match="' ' in DejaVuSans is blank"):
        glyph_outline("DejaVuSans", " ")
    with pytest.raises(ValueError, match="the fonts of 'Computer Modern' have none of 'Ω'"):
        glyph_scans("Ω", 1, families=["Computer Modern"], generator=generator())


def test_character_sets_are_disjoint_and_hold_no_digit():
    characters = LATIN_LETTERS + GREEK_LETTERS + SYMBOLS
    assert len(set(characters)) == len(characters)
    assert not any(character.isdigit() for character in characters)


@pytest.mark.parametrize("font", [fonts[0] for family, fonts in FAMILIES.items() if family != "Computer Modern"])
def test_no_test_character_has_the_shape_of_a_letter_or_digit(font):
    def shapes(characters: str) -> tuple[str, torch.Tensor]:
        present = available_characters(font, characters)
        return present, torch.stack([glyph_outline(font, character)[0] > 0 for character in present]).flatten(1).float()

    letters, letter_shapes = shapes(LATIN_LETTERS + string.digits)
    others, other_shapes = shapes(GREEK_LETTERS + SYMBOLS)
    shared = other_shapes @ letter_shapes.T
    overlap = shared / (other_shapes.sum(1)[:, None] + letter_shapes.sum(1) - shared)
    worst = divmod(int(overlap.argmax()), len(letters))
    assert overlap.max() < 0.9, (others[worst[0]], letters[worst[1]])


def test_glyphs_bear_the_marks_of_the_scanner():
    """The box and the ink that every real scan has, or these alone would tell glyphs apart."""
    digits = torch.from_numpy(load_digits().images)
    glyphs, _ = glyph_scans(LATIN_LETTERS, 1000, families=tuple(FAMILIES), generator=generator())
    for scans in (digits, glyphs.double()):
        ink = scans.sum((1, 2)) / 1024
        assert ink.mean().item() == pytest.approx(INK_MEAN, abs=0.005)
        assert ink.std().item() == pytest.approx(INK_STD, abs=0.005)
        assert ((ink > INK_RANGE[0] - 0.02) & (ink < INK_RANGE[1] + 0.02)).all()
        assert (scans.amax(2) > 0).all()
        columns = (scans.amax(1) > 0).double().mean(0)
        assert columns[[0, 7]].max() < 0.15
        assert columns[2:6].min() > 0.99
        assert (scans.amax((1, 2)) >= 14).double().mean() > 0.97


def test_letters_are_told_from_each_other_after_scanning():
    """Scans of one letter look more like each other than like those of another letter."""
    scans = torch.stack(
        [
            glyph_scans(letter, 60, families=["DejaVu Sans"], generator=generator())[0].flatten(1).float()
            for letter in "AEHLOTXZ"
        ]
    )
    template = scans[:, :30].mean(1)
    nearest = torch.cdist(scans[:, 30:].flatten(0, 1), template).argmin(1)
    assert (nearest == torch.arange(8).repeat_interleave(30)).float().mean() > 0.9


def test_families_share_alike():
    levels, family = glyph_scans("AB", 10, families=["DejaVu Sans", "STIX", "DejaVu Serif"], generator=generator())
    assert levels.shape == (10, 8, 8)
    assert torch.bincount(family).tolist() == [4, 3, 3]
    assert glyph_scans("A", 0, families=["STIX"], generator=generator())[0].shape == (0, 8, 8)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_pool_and_test_crops_share_no_pixel(photograph):
    grey = load_grey(photograph)
    covered = []
    for held_out in (False, True):
        pixels = torch.zeros(grey.shape, dtype=torch.bool)
        for scale in (1, 2, 4, 13):
            corners = crop_corners(grey, scale, held_out=held_out)
            side = 8 * scale
            assert (corners.amax(0) + side <= torch.tensor(grey.shape)).all()
            # How many crops lie over each pixel, as the double sum of +1 and -1 at their four corners.
            change = torch.zeros(grey.shape[0] + 1, grey.shape[1] + 1, dtype=torch.int64)
            for down, right, sign in ((0, 0, 1), (side, 0, -1), (0, side, -1), (side, side, 1)):
                change[corners[:, 0] + down, corners[:, 1] + right] += sign
            pixels |= change.cumsum(0).cumsum(1)[:-1, :-1] > 0
        covered.append(pixels)
    pool, test = covered
    assert not (pool & test).any()
    assert pool.float().mean() > 0.3
    assert test.float().mean() > 0.08


def test_a_quarter_of_the_tiles_is_held_out():
    tiles = is_held_out(torch.arange(TILE_ROWS * TILE_COLUMNS)).view(TILE_ROWS, TILE_COLUMNS)
    assert tiles.sum().item() == 6
    assert tiles.any(0).all()
    assert tiles.any(1).all()


def test_crops_are_block_means_and_never_blank():
    grey = load_grey("china.jpg")
    corners = crop_corners(grey, 4, held_out=False)
    chosen = corners[torch.randperm(len(corners), generator=generator())[:50]]
    for (row, column), scan in zip(chosen.tolist(), crop_scans(grey, chosen, 4), strict=True):
        crop = grey[row : row + 32, column : column + 32].double().view(8, 4, 8, 4).mean((1, 3))
        assert ((crop * 16) - scan.double()).abs().max() <= 0.5 + 1e-4
        assert crop.max() - crop.min() >= 0.25 - 1e-6


def test_photographs_and_scales_share_alike_and_run_out():
    levels, source, names = photograph_scans(13, scales=[1, 4], held_out=True, generator=generator())
    assert levels.shape == (13, 8, 8)
    assert names == ("china.jpg ×1", "china.jpg ×4", "flower.jpg ×1", "flower.jpg ×4")
    assert torch.bincount(source).tolist() == [4, 3, 3, 3]
    assert photograph_scans(0, scales=[1], held_out=True, generator=generator())[0].shape == (0, 8, 8)
    with pytest.raises(ValueError, match=r"50000 crops take 25000 of china.jpg ×13, which has \d+: ask for fewer"):
        photograph_scans(50_000, scales=[13], held_out=False, generator=generator())
