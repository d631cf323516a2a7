"""Names of files and folders: images, unread types, hidden and system entries."""

import os

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in any case; those of torchvision."""
UNREAD_SUFFIXES = (
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".gif", ".hdr", ".heic", ".heif",
    ".ico", ".icns", ".j2k", ".jfif", ".jp2", ".jpe", ".jpf", ".jpx", ".jxl", ".nef", ".npy", ".orf", ".pbm",
    ".pcx", ".pfm", ".pnm", ".psd", ".raf", ".raw", ".rw2", ".svg", ".svgz", ".tga", ".xbm", ".xcf",
)  # fmt: skip
"""Suffixes of image files that are not read."""
SYSTEM_FOLDERS = (
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "recycled", "system volume information", "lost+found", "found.000", "__pycache__", "thumbnails", "_thumbnails",
)  # fmt: skip
"""Names of folders that systems and programs create among a user's folders, in lower case."""


def is_left_out(name: str) -> bool:
    """Return whether a file or folder is hidden or belongs to the system, by its name.

    Example:
        >>> [is_left_out(name) for name in (".ipynb_checkpoints", "__MACOSX", "._x.jpg", "cat", "train")]
        [True, True, True, False, False]
    """
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def is_image_name(path: str) -> bool:
    """Return whether a file is an image, by its name.

    Example:
        >>> is_image_name("cat/1.JPG"), is_image_name("cat/._1.jpg"), is_image_name("cat/1.gif")
        (True, False, False)
    """
    name = os.path.basename(path)  # noqa: PTH119, for a million of files
    return not is_left_out(name) and name.lower().endswith(IMAGE_SUFFIXES)


def reason_left_out(name: str) -> str:
    """Return the reason why a file is left out, by its name.

    Example:
        >>> reason_left_out("._1.jpg"), reason_left_out("1.gif"), reason_left_out("labels.csv")
        ('hidden file', 'file of an unread type, .gif', 'other file')
    """
    if is_left_out(name):
        return "hidden file"
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122, for a million of files
    return f"file of an unread type, {suffix}" if suffix in UNREAD_SUFFIXES else "other file"
