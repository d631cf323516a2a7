"""Typeset letters and symbols in the format of the embedded scans: near OOD for handwritten digits.

The scans are from NIST's form reader (NISTIR 5469, named in scikit-learn's description of the set), which normalised
each of the 1,797 bitmaps: the character fills all 32 rows, is at most about 20 columns wide and centred, and its
strokes are thickened or thinned until about 31 % of the pixels are ink. Glyphs are normalised to the same box and the
same ink; otherwise these features alone would separate them from the digits.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastood.data.embedded.scans import BITMAP_SIZE, count_blocks

FAMILIES: dict[str, tuple[str, ...]] = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    "Computer Modern": ("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10"),
}
"""Font families in matplotlib, each with the files of its styles."""

LATIN_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""All 52 letters, including those that resemble a digit (O, o, I, l, S, Z …)."""

GREEK_LETTERS = "ΓΔΛΞΠΣΦΨΩβδεζηλμξπςτφψω"
"""Greek letters except those shaped like a Latin letter (Α Β Ε … Χ; α γ ι κ ν ο ρ σ υ χ) or a zero (Θ θ)."""

SYMBOLS = "#$%&@*+=<>?{}§¶†‡€£¥±÷≠≤≥≈≡∞∂√∇∈∃∀⊕⊗←↑→↓↔↕⇐⇑⇒⇓⇔◊♠♣♥♦"
"""Punctuation, mathematics, arrows and suits; no single strokes or dots, and none shaped like a letter or digit."""

BOX_WIDTH = 20
"""Largest width of a scanned character, in pixels of its bitmap."""
INK_MEAN, INK_STD, INK_RANGE = 0.306, 0.035, (0.2, 0.42)
"""Fraction of ink pixels over the 1,797 scans: mean, standard deviation, and about the 0.1 and 99.9 percentiles."""

_FINE = 2  # An outline's pixels per bitmap pixel.
_MARGIN = 6 * _FINE  # Room for strokes to thicken.
_DIRECTIONS = 64


def font_path(font: str) -> Path:
    """Return the path of a font in matplotlib by its file stem."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"


def available_characters(font: str, characters: str) -> str:
    """Return those of `characters` that a font has a glyph for, other than the empty ".notdef" box.

    Example:
        >>> available_characters("cmr10", "AΩ♠")
        'A'
    """
    charmap = _charmap(font)
    return "".join(c for c in characters if charmap.get(ord(c), 0) != 0)


@cache
def _charmap(font: str) -> dict[int, int]:
    """Return glyph indices by code point; 0 is ".notdef"."""
    from matplotlib.ft2font import FT2Font

    charmap: dict[int, int] = dict(FT2Font(str(font_path(font))).get_charmap())
    return charmap


@cache
def glyph_outline(font: str, character: str) -> tuple[Tensor, Tensor]:
    """Return a glyph, scaled to the box of the scans, as a signed distance map.

    Args:
        font: A font of `FAMILIES`, by file stem.
        character: A character of the font.

    Returns:
        The signed distance to the outline, positive inside, float32 in bitmap pixels, on a grid of 1/2 pixel; and
        the ink's outermost points along 64 directions, float32 `[64, 2]` (x, y) in bitmap pixels from its centre.

    Raises:
        ValueError: If the font has no glyph for the character, or a blank one.
    """
    if not available_characters(font, character):
        raise ValueError(f"character: {font} has no glyph for {character!r}")
    face = ImageFont.truetype(str(font_path(font)), 4 * BITMAP_SIZE, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (12 * BITMAP_SIZE, 12 * BITMAP_SIZE))
    ImageDraw.Draw(canvas).text((3 * BITMAP_SIZE, 3 * BITMAP_SIZE), character, fill=255, font=face)
    ink = canvas.getbbox()
    if ink is None:
        raise ValueError(f"character: the glyph of {character!r} in {font} is blank")
    glyph = canvas.crop(ink)
    height = _FINE * BITMAP_SIZE
    width = min(_FINE * BOX_WIDTH, max(1, round(height * glyph.width / glyph.height)))
    box = np.asarray(glyph.resize((width, height), Image.Resampling.BOX)) > 127
    grid = np.zeros((height + 2 * _MARGIN, _FINE * BOX_WIDTH + 2 * _MARGIN), dtype=bool)
    left = (grid.shape[1] - width) // 2
    grid[_MARGIN : _MARGIN + height, left : left + width] = box
    from scipy.ndimage import distance_transform_edt

    distance = (distance_transform_edt(grid) - distance_transform_edt(~grid)) / _FINE
    centre = (np.array(grid.shape) - 1) / 2
    points = (np.argwhere(grid) - centre)[:, ::-1] / _FINE
    angle = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    outermost = (points @ np.stack([np.cos(angle), np.sin(angle)])).argmax(0)
    return torch.from_numpy(distance).float(), torch.from_numpy(points[outermost].copy()).float()


def glyph_scans(
    characters: str, count: int, *, families: Sequence[str], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw glyphs of several font families and scan them.

    Each family has an equal fraction of the images, and its styles and characters are equally likely. A glyph is
    slightly rotated, slanted and bent at random, stretched to the box of the scans, and its strokes get a random share
    of ink.

    Args:
        characters: Characters to draw; a font is used for those that it has.
        count: Number N of images.
        families: Names in `FAMILIES`.
        generator: RNG of all random choices.

    Returns:
        uint8 `[N, 8, 8]` grey levels 0…16, and int64 `[N]` the index of each image's family.

    Raises:
        ValueError: If a family has none of the characters.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> levels, family = glyph_scans("AB", 4, families=["DejaVu Sans", "STIX"], generator=generator)
        >>> levels.shape, family.tolist()
        (torch.Size([4, 8, 8]), [0, 0, 1, 1])
    """
    family = torch.arange(count) * len(families) // max(count, 1)
    outlines = []
    for index, name in enumerate(families):
        choices = [(font, c) for font in FAMILIES[name] for c in available_characters(font, characters)]
        if not choices:
            raise ValueError(f"characters: the fonts of {name!r} have none of {characters!r}")
        drawn = torch.randint(len(choices), (int((family == index).sum()),), generator=generator)
        outlines += [glyph_outline(*choices[i]) for i in drawn.tolist()]
    bitmaps = torch.empty(count, BITMAP_SIZE, BITMAP_SIZE, dtype=torch.bool)
    for start in range(0, count, 1024):
        distances, points = zip(*outlines[start : start + 1024], strict=True)
        bitmaps[start : start + 1024] = _draw(torch.stack(distances), torch.stack(points), generator)
    return count_blocks(bitmaps), family


def _draw(distance: Tensor, points: Tensor, generator: torch.Generator) -> Tensor:
    """Return bitmaps, bool `[N, 32, 32]`, from the maps `[N, H, W]` and points `[N, P, 2]` of `glyph_outline`."""
    n, height, width = distance.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, slant = uniform(-0.17, 0.17), uniform(-0.25, 0.25)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, cos * slant - sin, sin, sin * slant + cos], dim=1).view(n, 2, 2)
    turned = points @ turn.mT
    low, high = turned.amin(1), turned.amax(1)
    extent = (high - low).clamp(min=1)
    # As NIST's reader: all rows are used, at most the columns of the box, and narrow characters stay narrow.
    stretch_y = BITMAP_SIZE / extent[:, 1]
    stretch_x = (BOX_WIDTH / extent[:, 0]).minimum(stretch_y) * uniform(0.9, 1.1)
    stretch = torch.stack([stretch_x, stretch_y], dim=1)
    offset = torch.stack([uniform(-1, 1), torch.zeros(n)], dim=1)

    # Each bitmap pixel is mapped back to its position in the outline's distance map, which is sampled there.
    axis = torch.arange(BITMAP_SIZE) - (BITMAP_SIZE - 1) / 2
    pixel = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    bend = torch.randn(n, 2, 4, 4, generator=generator)
    bend = F.interpolate(bend, BITMAP_SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    position = (pixel - offset[:, None, None] + bend) / stretch[:, None, None]
    position = (position + (low + high)[:, None, None] / 2) @ torch.linalg.inv(turn).mT[:, None]
    grid = position * _FINE / torch.tensor([(width - 1) / 2, (height - 1) / 2])
    level = F.grid_sample(distance[:, None], grid, padding_mode="border", align_corners=True).flatten(1)

    # The threshold is the quantile of the levels that gives each glyph its drawn fraction of ink.
    ink = (INK_MEAN + INK_STD * torch.randn(n, generator=generator)).clamp(*INK_RANGE)
    rank = (ink * BITMAP_SIZE**2).long()
    threshold = level.sort(dim=1, descending=True).values.gather(1, rank[:, None])
    return (level > threshold).view(n, BITMAP_SIZE, BITMAP_SIZE)
