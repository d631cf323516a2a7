"""Listing of image folders: image files, class folders, and entries that are left out."""

import errno
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastood.console.names import first_of, printable
from fastood.console.wording import counted
from fastood.data.images.left_out import LeftOut
from fastood.data.sources.file_names import IMAGE_SUFFIXES, is_image_name, is_left_out, reason_left_out

_PART = re.compile(
    r"(?:(?:data|images?|imgs?|seg|set|split)[ _-]*)?"
    r"(?P<part>train(?:ing)?|test(?:ing)?|tst|val(?:id|idation)?|dev)"
    r"(?:[ _-]*(?:data|images?|imgs?|set|split))?(?:[ _-]*\d+)?",
    re.IGNORECASE,
)
_EXAMPLES = 3


def set_name(path: Path) -> str:
    """Return a name for the images of a folder: its own name, after that of its parent if it is train, test or similar.

    Example:
        >>> set_name(Path("pictures/birds")), set_name(Path("birds/train"))
        ('birds', 'birds/train')
    """
    name, parent = path.name, path.absolute().parent.name
    return printable(f"{parent}/{name}" if parent and _PART.fullmatch(name) else name)


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """Images of a folder in the order of torchvision's ImageFolder: class by class, sorted by path."""

    files: tuple[str, ...]
    """Path of each image."""
    labels: tuple[int, ...]
    """Index of each image into `class_names`; empty without class folders."""
    class_names: tuple[str, ...]
    """Printable names of the class folders, sorted; empty without class folders."""
    left_out: tuple[LeftOut, ...]
    """Entries that are not read."""


@dataclass
class _LeftOutPaths:
    """Paths that are left out while a folder is listed, by reason."""

    root: Path
    paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, path: str) -> None:
        self.paths[reason].append(path)

    def as_left_out(self) -> tuple[LeftOut, ...]:
        return tuple(
            LeftOut(
                reason,
                len(paths),
                tuple(printable(os.path.relpath(path, self.root)) for path in sorted(paths)[:_EXAMPLES]),
            )
            for reason, paths in sorted(self.paths.items())
        )


def list_folder(path: Path, *, option: str, labelled: bool) -> FolderListing:
    """List the images of a folder.

    Args:
        path: The folder; links in it are followed.
        option: Option of the folder, named in errors.
        labelled: Whether every image needs a class, given by its folder: PATH/CLASS/…/IMAGE. Otherwise images may also
            be in the folder itself; next to class folders they make a group with the folder's name.

    Returns:
        The listed images.

    Raises:
        FileNotFoundError: If the folder or an image in it is missing, or `labelled` and a class folder has no image.
        PermissionError: If the folder or one in it is not readable.
        ValueError: If `labelled` and the folders of `path` are parts of a data set instead of classes.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.{option}: there is no folder {path}")
    notes = _LeftOutPaths(path)
    root = path.stat()
    folders, alone = _children(path, option, notes)
    folders = [name for name in folders if not _leads_back(path / name, root, notes)]
    above = frozenset({(root.st_dev, root.st_ino)})
    of_folder = {name: _images_below(path / name, option, notes, above) for name in folders}
    filled = [name for name in folders if of_folder[name]]
    if labelled:
        require_classes(filled or folders, option=option, kind="folder", place=str(path))
        _require_images(path, option, folders, filled, alone, notes)
        for file in alone:
            notes.add("image outside of class folders", file)
        alone = []
    for name in folders:
        if name not in filled:
            notes.add("folder without images", str(path / name))
    if not alone and not filled:
        others = "".join(f"; it holds {what}" for what in notes.as_left_out()[:2])
        raise FileNotFoundError(f"data.{option}: {path} must hold images ({', '.join(IMAGE_SUFFIXES)}){others}")
    groups = [alone] * bool(alone and filled) + [of_folder[name] for name in filled]
    names = [path.name or str(path)] * bool(alone and filled) + filled
    return FolderListing(
        files=tuple(file for group in groups for file in group) if groups else tuple(alone),
        labels=tuple(label for label, group in enumerate(groups) for _ in group),
        class_names=tuple(map(printable, names)),
        left_out=notes.as_left_out(),
    )


def require_classes(names: Sequence[str], *, option: str, kind: str, place: str) -> None:
    """Check that class folders are not the parts of a data set: train, test, validation.

    Args:
        names: Names of the class folders.
        option: Option of the source, named in errors.
        kind: Kind of the source, "folder" or "packed".
        place: Path of the source.

    Raises:
        ValueError: If they are parts, or a single folder that holds the classes; the message names the right options.

    Example:
        >>> require_classes(["bus", "car", "train"], option="in_dist", kind="folder", place="data")
        >>> require_classes(["Test", "train"], option="in_dist", kind="folder", place="data")
        Traceback (most recent call last):
        ...
        ValueError: data.in_dist: the folders of data are parts of a data set and not classes (Test, train): use \
--data.in-dist folder:data/train --data.in-dist-test folder:data/Test
    """
    parts: dict[str, str] = {}
    for name in names:
        if (match := _PART.fullmatch(name.strip())) is not None:
            parts.setdefault({"tr": "train", "te": "test", "ts": "test"}.get(match["part"][:2].lower(), "val"), name)
    both = "train" in parts and len(parts) > 1
    if not both and not (names and all(_PART.fullmatch(name.strip()) for name in names)):
        if kind == "folder" and len(names) == 1:
            _require_no_nested_classes(Path(place) / names[0], option)
        return
    train, test = parts.get("train"), parts.get("test", parts.get("val"))
    if train is None:
        train, test = test, None
    problem = f"parts of a data set and not classes ({first_of(names)})"
    if kind == "packed":
        raise ValueError(f"data.{option}: the classes of packed:{place} are {problem}: pack each part separately")
    options = (
        {"in-dist": train, "in-dist-test": test} if option == "in_dist" else {option.replace("_", "-"): test or train}
    )
    words = [word for name, part in options.items() if part for word in (f"--data.{name}", f"folder:{place}/{part}")]
    raise ValueError(f"data.{option}: the folders of {place} are {problem}: use {shlex.join(words)}")


def _require_no_nested_classes(folder: Path, option: str) -> None:
    """Check that the only class folder of a tree holds images and not folders of images."""
    notes = _LeftOutPaths(folder)
    folders, alone = _children(folder, option, notes)
    if len(folders) > 1 and not alone:
        words = shlex.join([f"--data.{option.replace('_', '-')}", f"folder:{folder}"])
        raise ValueError(
            f"data.{option}: {folder.parent} has one class folder, {printable(folder.name)}, which holds folders "
            f"({first_of(folders)}): use {words} if these are the classes"
        )


def _require_images(
    path: Path, option: str, folders: list[str], filled: list[str], alone: list[str], notes: _LeftOutPaths
) -> None:
    if not folders:
        others = [counted(len(alone), "image")] if alone else []
        others += [str(what) for what in notes.as_left_out()[:2]]
        got = f", got {' and '.join(others)}" if others else ""
        raise FileNotFoundError(f"data.{option}: {path} must hold class folders with images, PATH/CLASS/IMAGE{got}")
    empty = [name for name in folders if name not in filled]
    if empty:
        raise FileNotFoundError(
            f"data.{option}: every class folder of {path} must hold an image ({', '.join(IMAGE_SUFFIXES)}), "
            f"{first_of(empty)} {'holds' if len(empty) == 1 else 'hold'} none: remove or fill "
            f"{'it' if len(empty) == 1 else 'them'}"
        )


def _children(path: Path, option: str, notes: _LeftOutPaths) -> tuple[list[str], list[str]]:
    """Return the names of a folder's folders and the paths of its images, both sorted."""
    folders, images = [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if _leads_in_a_circle(entry):
                    notes.add("link to itself", entry.path)
                elif entry.is_dir():
                    if is_left_out(entry.name):
                        notes.add("hidden or system folder", entry.path)
                    else:
                        folders.append(entry.name)
                elif is_image_name(entry.name) and not _is_special(entry):
                    images.append(entry.path)
                else:
                    notes.add(reason_left_out(entry.name), entry.path)
    except PermissionError as error:
        raise PermissionError(f"data.{option}: folder {path} must be readable") from error
    return sorted(folders), sorted(images)


def _images_below(folder: Path, option: str, notes: _LeftOutPaths, above: frozenset[tuple[int, int]]) -> list[str]:
    """Return the images of a folder and of all folders in it, sorted by folder and then by name.

    Args:
        folder: The folder.
        option: Option of the source, named in errors.
        notes: Collects the paths that are left out.
        above: Device and inode of the folders above, which links may lead back to.
    """
    images_of: list[tuple[str, list[str]]] = []

    def visit(place: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            status = place.stat()
        except PermissionError as error:
            raise PermissionError(f"data.{option}: folder {place} must be readable") from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            notes.add("link back to a folder above", str(place))
            return
        folders, images = _children(place, option, notes)
        images_of.append((str(place), images))
        for name in folders:
            visit(place / name, above | {identity})

    visit(folder, above)
    return [image for _, images in sorted(images_of) for image in images]


def _leads_back(folder: Path, root: os.stat_result, notes: _LeftOutPaths) -> bool:
    """Return whether a class folder is a link to the folder that holds it, which would repeat its images."""
    try:
        leads_back = os.path.samestat(folder.stat(), root)
    except OSError:  # Raised again where the folder is read.
        return False
    if leads_back:
        notes.add("link back to a folder above", str(folder))
    return leads_back


def _leads_in_a_circle(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link that leads to itself."""
    if not entry.is_symlink():
        return False
    try:
        entry.is_dir()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a pipe, a socket or a device, which may be endless; a broken link is not."""
    if entry.is_file():
        return False
    return not entry.is_symlink() or os.path.exists(entry.path)  # noqa: PTH110, for a million of files
