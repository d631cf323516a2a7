"""Tiny ImageNet in the layout of its zip file, which torchvision does not read.

    tiny-imagenet-200/wnids.txt                      the 200 WordNet ids, one per line
    tiny-imagenet-200/words.txt                      WordNet id, tab, meaning (82,115 lines)
    tiny-imagenet-200/train/WNID/images/*.JPEG       500 images per class
    tiny-imagenet-200/val/images/*.JPEG              10,000 images of all classes in one folder
    tiny-imagenet-200/val/val_annotations.txt        file name, WordNet id and a box, separated by tabs

The labels of test/ were never published, so val is the test part, as in the papers.
"""

from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from fastood.data.images.digests import digest_of_files
from fastood.data.images.image_source import ImageSource, read_image
from fastood.data.sources.file_names import is_left_out

FOLDER = "tiny-imagenet-200"


def open_tiny_imagenet(root: Path, *, part: Literal["train", "val"], field: str) -> ImageSource:
    """Open the training or the validation part.

    Args:
        root: Folder that contains tiny-imagenet-200.
        part: "train" (100,000 images) or "val" (10,000).
        field: Option of the source, named in errors.

    Returns:
        The source, with classes in the order of their WordNet ids; nothing is decoded yet. `class_names` are the first
        words of words.txt, `class_ids` the WordNet ids.

    Raises:
        FileNotFoundError: If a file or folder of the layout is missing, or a class has no image.
        ValueError: If wnids.txt, words.txt or val_annotations.txt contradict each other; the message names the file.
    """
    folder = root / FOLDER
    wnids = sorted(_lines(folder / "wnids.txt", field))
    repeated = next((first for first, second in pairwise(wnids) if first == second), None)
    if repeated is not None:
        raise ValueError(f"data.{field}: {folder / 'wnids.txt'} names {repeated} twice")
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt", field) if "\t" in line)
    unexplained = next((wnid for wnid in wnids if wnid not in words), None)
    if unexplained is not None:
        raise ValueError(f"data.{field}: {folder / 'words.txt'} has no line for {unexplained} of wnids.txt")
    files, labels = (_train if part == "train" else _val)(folder, {wnid: i for i, wnid in enumerate(wnids)}, field)
    return ImageSource(
        name="Tiny ImageNet",
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(words[wnid].split(",")[0] for wnid in wnids),
        class_ids=tuple(wnids),
        channels=3,
        read=lambda index: read_image(files[index]),
        files=tuple(files),
        digest=digest_of_files(files),
    )


def _train(folder: Path, label_of: dict[str, int], field: str) -> tuple[list[str], list[int]]:
    files, labels = [], []
    for wnid, label in label_of.items():
        images = folder / "train" / wnid / "images"
        paths = sorted(str(path) for path in images.glob("*.JPEG") if not is_left_out(path.name))
        if not paths:
            raise FileNotFoundError(f"data.{field}: there is no image *.JPEG in {images}")
        files += paths
        labels += [label] * len(paths)
    return files, labels


def _val(folder: Path, label_of: dict[str, int], field: str) -> tuple[list[str], list[int]]:
    annotations = folder / "val" / "val_annotations.txt"
    # One listing of the folder instead of a look-up for each of its 10,000 files.
    present = {path.name for path in (folder / "val" / "images").glob("*")}
    label_of_file: dict[str, int] = {}
    for number, line in enumerate(_lines(annotations, field), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t", 1)[0]
        where = f"data.{field}: line {number} of {annotations}"
        if wnid not in label_of:
            raise ValueError(f"{where} must have the form NAME, tab, an id of wnids.txt, …, got {line!r}")
        if name in label_of_file:
            raise ValueError(f"{where} names {name} a second time")
        if name not in present:
            raise FileNotFoundError(f"{where}: there is no file {folder / 'val' / 'images' / name}")
        label_of_file[name] = label_of[wnid]
    return [str(folder / "val" / "images" / name) for name in label_of_file], list(label_of_file.values())


def _lines(path: Path, field: str) -> list[str]:
    """Return the non-empty lines of a text file."""
    if not path.is_file():
        raise FileNotFoundError(f"data.{field}: there is no file {path}")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
