"""Checks of image files before decoding, EXIF orientation, and the errors that Pillow raises."""

import struct
import zlib

from PIL import ExifTags, Image

UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""Errors that Pillow raises for files that are damaged, too large or of an unsupported format."""
MOST_OBLONG = 1000
"""Largest ratio of edges: resizing the shorter edge of a small image enlarges the longer edge with it."""

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
    """Check that an image has 8 bits per channel, and that resizing it would not exhaust the memory.

    Args:
        image: An opened image; it need not be decoded yet.

    Raises:
        ValueError: If it has more than 8 bits per channel, or one edge is more than 1,000 times the other.

    Example:
        >>> require_decodable(Image.new("I;16", (5, 4)))
        Traceback (most recent call last):
        ...
        ValueError: the image must have 8 bits per channel, got Pillow mode 'I;16'
        >>> require_decodable(Image.new("L", (1, 4000)))
        Traceback (most recent call last):
        ...
        ValueError: the ratio of the image's edges must be at most 1,000, got 1×4000 pixels
    """
    if image.mode in _DEEP_MODES:
        raise ValueError(f"the image must have 8 bits per channel, got Pillow mode {image.mode!r}")
    # Pillow keeps the upper 8 of 16 bits of colour images. The mode does not show it, only the decoder's arguments do.
    for codec, _, _, asked in getattr(image, "tile", ()):
        arguments = asked if isinstance(asked, tuple) else (asked,)
        if any(isinstance(part, str) and ";16" in part for part in arguments) or (
            codec.startswith("ppm") and any(isinstance(part, int) and part > 255 for part in arguments)
        ):
            raise ValueError(f"the image must have 8 bits per channel, got 16 in a file of mode {image.mode!r}")
    shorter, longer = sorted(image.size)
    if longer > MOST_OBLONG * shorter:
        raise ValueError(
            f"the ratio of the image's edges must be at most {MOST_OBLONG:,}, got {image.width}×{image.height} pixels"
        )


def upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF orientation.

    Args:
        image: An image; this decodes it.

    Returns:
        The turned image, or the image itself if it is upright or its EXIF data are damaged.

    Example:
        >>> from io import BytesIO
        >>> exif, file = Image.Exif(), BytesIO()
        >>> exif[ExifTags.Base.Orientation] = 6
        >>> Image.new("L", (5, 4)).save(file, "jpeg", exif=exif)
        >>> upright(Image.open(file)).size
        (4, 5)
    """
    # PNG files may hold EXIF data after their pixels; load() itself turns TIFF files.
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
