"""Opening of parsed sources of every kind."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fastood.console.names import expanded
from fastood.data.images.image_source import ImageSource
from fastood.data.images.noise import NOISES
from fastood.data.packed.packed_pool import PackedPool, open_packed
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
    """Open a source: list and check its images without decoding them.

    Args:
        spec: The parsed source; not embedded images or noise, which are generated.
        field: Option of the source, named in errors.
        part: Part of a data set that has several.
        root: Folder of the named data sets.
        download: Whether torchvision fetches missing data sets.
        labelled: Whether the images of a folder need classes, which are given by their folders.
        list_root: Base folder of relative paths of a list if the first is not in the folder of the list; None for the
            working folder.

    Returns:
        The opened source, of at least one image.

    Raises:
        FileNotFoundError: If a path is missing, or a folder has no images.
        PermissionError: If a file or folder is not readable.
        TypeError: If an array has the wrong dtype.
        ValueError: If the set is empty, or its files are damaged; the message names the file.
    """
    if spec.kind in ("none", "embedded", *NOISES):
        raise ValueError(f"data.{field} must be read from files, {spec.kind!r} is generated")
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
    """Open a named set that torchvision does not have."""
    named = NAMED_SETS[name]
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.{field}: {name} needs data.root, but there is no folder {root}: give --data.root PATH"
        )
    try:
        if name == "notmnist":
            prefix = "train" if part == "train" else "t10k"
            folder = root / "notMNIST" / "raw"
            return open_idx(folder, prefix=prefix, name=name, class_names=tuple("ABCDEFGHIJ"), field=field)
        if name == "tiny-imagenet":
            return open_tiny_imagenet(root, part="train" if part == "train" else "val", field=field)
        tree = replace(open_folder(root / named.tree, field=field), name=name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {name}: {named.how}") from error
    return _inverted(tree) if named.inverted_grey else tree


def _inverted(source: ImageSource) -> ImageSource:
    def read(index: int) -> Tensor:
        return 255 - source.read(index)

    # Without `files`, which would be decoded without the inversion. The digest of the files stays valid.
    return replace(source, channels=1, read=read, files=None)
