"""Checks and turns that every image goes through when Pillow decodes it, and what may go wrong on the way."""

import struct
import zlib

from PIL import ExifTags, Image

UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""Errors by which Pillow says that a file is damaged, too large, or of no kind that it knows."""
MOST_OBLONG = 1000
"""Largest ratio of edges: fitting an image's shorter edge to the size wanted stretches the longer one with it."""

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def require_decodable(image: Image.Image) -> None:
    """Refuse images whose content would be cut or whose size would fill the memory; an opened file is not decoded yet.

    Args:
        image: As opened.

    Raises:
        ValueError: It has more than 8 bits per channel, or one edge is more than 1,000 times the other.

    Example:
        >>> require_decodable(Image.new("I;16", (5, 4)))
        Traceback (most recent call last):
        ...
        ValueError: 8 bits per channel are wanted, got Pillow mode 'I;16'
        >>> require_decodable(Image.new("L", (1, 4000)))
        Traceback (most recent call last):
        ...
        ValueError: edges of a ratio of at most 1,000 are wanted, got 1×4000 pixels
    """
    if image.mode in _DEEP_MODES:
        raise ValueError(f"8 bits per channel are wanted, got Pillow mode {image.mode!r}")
    # Of colours with 16 bits Pillow keeps the upper 8; its mode does not tell, only what its decoder is asked for.
    for codec, _, _, asked in getattr(image, "tile", ()):
        arguments = asked if isinstance(asked, tuple) else (asked,)
        if any(isinstance(part, str) and ";16" in part for part in arguments) or (
            codec.startswith("ppm") and any(isinstance(part, int) and part > 255 for part in arguments)
        ):
            raise ValueError(f"8 bits per channel are wanted, got 16 in a file of mode {image.mode!r}")
    shorter, longer = sorted(image.size)
    if longer > MOST_OBLONG * shorter:
        raise ValueError(
            f"edges of a ratio of at most {MOST_OBLONG:,} are wanted, got {image.width}×{image.height} pixels"
        )


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says: cameras store what the sensor saw, however they were held.

    Args:
        image: Of any file; decoded by this.

    Returns:
        The turned image, or the image itself where nothing is to be turned or the EXIF data are damaged.

    Example:
        >>> from io import BytesIO
        >>> exif, file = Image.Exif(), BytesIO()
        >>> exif[ExifTags.Base.Orientation] = 6
        >>> Image.new("L", (5, 4)).save(file, "jpeg", exif=exif)
        >>> upright(Image.open(file)).size
        (4, 5)
    """
    # PNG files may hold EXIF data behind their pixels; TIFF files are turned here.
    image.load()
    data = image.info.get("exif")
    if image.format == "TIFF" or not isinstance(data, bytes):
        return image
    exif = Image.Exif()
    try:
        exif.load(data)
        turn = _TURNS.get(exif.get(ExifTags.Base.Orientation, 1))
    except UNREADABLE:
        return image
    return image if turn is None else image.transpose(turn)
