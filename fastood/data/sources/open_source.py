"""From a parsed source to an opened one, whatever its kind."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fastood.console.names import expanded
from fastood.data.images.image_source import ImageSource
from fastood.data.images.noise import NOISES
from fastood.data.packed.pool import PackedPool, open_packed
from fastood.data.sources.idx import open_idx
from fastood.data.sources.local_files import open_arrays, open_folder, open_list
from fastood.data.sources.named_sets import NAMED_SETS, Part
from fastood.data.sources.source_spec import SourceSpec
from fastood.data.sources.tiny_imagenet import open_tiny_imagenet
from fastood.data.sources.torchvision_sets import open_torchvision


def open_source(
    spec: SourceSpec,
    *,
    field: str,
    part: Part,
    root: Path,
    download: bool,
    labelled: bool = False,
    list_root: Path | None = None,
) -> ImageSource:
    """Open a source: count and check its images, decode none.

    Args:
        spec: What to open; not embedded or noise, which are made.
        field: The option it was given for, to name in errors.
        part: Which part of a data set that has several.
        root: Folder of the data sets that have a name.
        download: Let torchvision fetch what is missing there.
        labelled: Whether the images of a folder need classes, the folders that they lie in.
        list_root: Folder for relative paths of a list that are not found beside it; None for the working folder.

    Returns:
        The opened set, of at least one image.

    Raises:
        FileNotFoundError: A path is missing, or a folder that must hold images has none.
        PermissionError: A file or folder may not be read.
        TypeError: An array has the wrong dtype.
        ValueError: The set is empty, or its files are damaged; the message names the file.
    """
    if spec.kind in ("none", "embedded", *NOISES):
        raise ValueError(f"data.{field} must be read from somewhere, {spec.kind!r} is made on the spot")
    try:
        source = _open(spec, field, part, expanded(root), download, labelled, list_root)
    except PermissionError as error:
        if str(error).startswith("data."):
            raise
        raise PermissionError(
            f"data.{field}: {error.filename or spec.argument} must be readable: {error.strerror}"
        ) from error
    if len(source) == 0:
        raise ValueError(f"data.{field}: {spec.kind}:{spec.argument} has no images")
    return source


def _open(
    spec: SourceSpec, field: str, part: Part, root: Path, download: bool, labelled: bool, list_root: Path | None
) -> ImageSource:
    if spec.kind == "folder":
        return open_folder(Path(spec.argument), field=field, labelled=labelled)
    if spec.kind == "list":
        return open_list(Path(spec.argument), field=field, root=list_root)
    if spec.kind == "packed":
        return _open_pool(Path(spec.argument), field).as_source()
    if spec.kind == "npy":
        paths = [Path(path) for path in spec.paths]
        return open_arrays(paths[0], paths[1] if len(paths) > 1 else None, field=field)
    if spec.kind == "torchvision":
        return open_torchvision(spec.argument, part=part, root=root, download=download, field=field)
    return _open_set(spec.argument, field, part, root)


def _open_pool(path: Path, field: str) -> PackedPool:
    try:
        return open_packed(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"data.{field}: {error}") from error


def _open_set(name: str, field: str, part: Part, root: Path) -> ImageSource:
    """One of the named sets that torchvision does not have."""
    known = NAMED_SETS[name]
    if not root.is_dir():
        raise FileNotFoundError(f"data.{field}: {name} needs data.root, but there is no folder {root}")
    try:
        if name == "notmnist":
            prefix = "train" if part == "train" else "t10k"
            folder = root / "notMNIST" / "raw"
            return open_idx(folder, prefix=prefix, name=name, class_names=tuple("ABCDEFGHIJ"), field=field)
        if name == "tiny-imagenet":
            return open_tiny_imagenet(root, part="train" if part == "train" else "val", field=field)
        tree = replace(open_folder(root / known.tree, field=field), name=name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {name}: {known.how}") from error
    return _inverted(tree) if known.inverted_grey else tree


def _inverted(source: ImageSource) -> ImageSource:
    def read(index: int) -> Tensor:
        return 255 - source.read(index)

    # What the files hold is not what is read: whoever decodes them would miss the inversion. Their digest stays good.
    return replace(source, channels=1, read=read, files=None)
