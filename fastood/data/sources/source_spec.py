"""Parsing of source specifications such as "cifar10", "folder:pictures" or "torchvision:USPS"."""

import re
from dataclasses import dataclass
from pathlib import Path

from fastood.console.names import expanded, printable
from fastood.data.images.noise import NOISES
from fastood.data.sources.file_names import is_image_name
from fastood.data.sources.named_sets import NAMED_SETS
from fastood.data.sources.torchvision_sets import TORCHVISION_SETS

_PATH_KINDS = {"folder": "folder:PATH", "list": "list:FILE", "packed": "packed:PATH"}
KNOWN_SPECS = ", ".join(
    ("embedded", *_PATH_KINDS.values(), "torchvision:NAME", "npy:IMAGES.npy[,LABELS.npy]", *NOISES, *NAMED_SETS)
)


@dataclass(frozen=True)
class SourceSpec:
    """A parsed source specification.

    Example:
        >>> parse_spec("torchvision:CIFAR10", field="in_dist")
        SourceSpec(kind='torchvision', argument='CIFAR10')
        >>> parse_spec("cifar10", field="in_dist"), parse_spec("isun", field="ood")
        (SourceSpec(kind='torchvision', argument='CIFAR10'), SourceSpec(kind='set', argument='isun'))
    """

    kind: str
    """Word before the colon; "set" for a named set that torchvision does not have, "none" for no images."""
    argument: str = ""
    """Text after the colon, or the name of the set; a leading ~ of a path is expanded."""

    @property
    def name(self) -> str:
        """Default name of the set in tables."""
        if self.kind in ("torchvision", "set"):
            return self.argument
        if self.kind in ("none", "embedded"):
            return self.kind
        return printable(Path(self.paths[0]).stem) if self.paths else f"{self.kind} noise"

    @property
    def has_test_part(self) -> bool:
        """Whether the source has a test part: true for data sets except trees of one part."""
        return self.kind == "torchvision" or (self.kind == "set" and not NAMED_SETS[self.argument].tree)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of a source in local files; empty for other kinds."""
        if self.kind in _PATH_KINDS:
            return (self.argument,)
        return tuple(self.argument.split(",")) if self.kind == "npy" else ()

    @property
    def published(self) -> str:
        """Published data set of the images of a named set; empty for other kinds."""
        if self.kind == "set":
            return NAMED_SETS[self.argument].part_of or self.argument
        return self.argument if self.kind == "torchvision" else ""

    def overlaps(self, other: "SourceSpec") -> bool:
        """Return whether two sources share images or one is a folder inside the other; embedded sets never overlap.

        Example:
            >>> parse_spec("folder:a", field="background").overlaps(parse_spec("folder:a/b", field="ood"))
            True
        """
        if self.published or other.published:
            return self.published == other.published
        if self.kind != other.kind or self.kind in ("embedded", "none"):
            return False
        if not self.paths:  # noise
            return True
        mine, theirs = Path(self.paths[0]).resolve(), Path(other.paths[0]).resolve()
        return mine.is_relative_to(theirs) or theirs.is_relative_to(mine)

    def __str__(self) -> str:
        """Return the source as options spell it, printable."""
        kind = "" if self.kind == "set" else f"{self.kind}:"
        return printable(f"{kind}{self.argument}" if self.argument else self.kind)


def parse_spec(text: str, *, field: str) -> SourceSpec:
    """Parse a source specification.

    Args:
        text: One of the forms in `KNOWN_SPECS`.
        field: Option of the source, named in errors.

    Returns:
        The parsed source; nothing is opened.

    Raises:
        ValueError: If the form or the name is unknown, or the argument is missing.
    """
    kind, _, argument = text.partition(":")
    if kind in ("embedded", "none", *NOISES) and not argument and ":" not in text:
        return SourceSpec(kind)
    if text in NAMED_SETS:
        torchvision_name = NAMED_SETS[text].torchvision
        return SourceSpec("torchvision", torchvision_name) if torchvision_name else SourceSpec("set", text)
    if kind not in (*_PATH_KINDS, "torchvision", "npy"):
        meant = meant_source(text)
        raise ValueError(
            f"data.{field}: unknown source {text!r}; "
            + (f"did you mean {meant}?" if meant else f"known: {KNOWN_SPECS}")
        )
    if kind != "torchvision":
        paths = argument.split(",") if kind == "npy" else [argument]
        argument = ",".join(str(expanded(Path(path))) if path.startswith("~") else path for path in paths)
    spec = SourceSpec(kind, argument)
    if kind == "torchvision" and argument not in TORCHVISION_SETS:
        raise ValueError(f"data.{field}: unknown torchvision set {argument!r}; known: {', '.join(TORCHVISION_SETS)}")
    if kind != "torchvision" and (not all(spec.paths) or len(spec.paths) > 2):
        form = _PATH_KINDS.get(kind, "npy:IMAGES.npy[,LABELS.npy]")
        raise ValueError(f"data.{field}: {text!r} must have the form {form}")
    return spec


def parse_named_spec(text: str, *, field: str) -> tuple[str, SourceSpec]:
    """Parse NAME=SOURCE of an OOD set, or a source without a name: noise, a named set, or "embedded" (several sets).

    Args:
        text: The specification.
        field: Option of the source, named in errors.

    Returns:
        The name, empty for "embedded", and the parsed source.

    Raises:
        ValueError: If the name is missing, or `parse_spec` raises an error for the source.

    Example:
        >>> parse_named_spec("SVHN=torchvision:SVHN", field="ood") == ("SVHN", parse_spec("svhn", field="ood"))
        True
        >>> parse_named_spec("svhn", field="ood")
        ('svhn', SourceSpec(kind='torchvision', argument='SVHN'))
    """
    if text == "embedded":
        return "", SourceSpec("embedded")
    if text in NAMED_SETS or text in NOISES:
        return text, parse_spec(text, field=field)
    name, separator, spec = text.partition("=")
    if not separator or not name or "/" in name or ":" in name:
        form = "NAME=SOURCE (no '/' or ':' in NAME), a data set's name, noise or embedded"
        meant = text if text.partition(":")[0] in (*_PATH_KINDS, "npy", "torchvision") else meant_source(text)
        meant = meant and f"; did you mean {_set_name(meant)}={meant}?"
        raise ValueError(f"data.{field}: {text!r} must have the form {form}{meant}")
    return printable(name), parse_spec(spec, field=field)


def meant_source(text: str) -> str:
    """Guess the source specification that is meant by a bare path.

    Args:
        text: Text of an option.

    Returns:
        The source specification, or an empty string if `text` is not a path.

    Example:
        >>> meant_source("./cats"), meant_source("cats.npy"), meant_source("digits")
        ('folder:./cats', 'npy:cats.npy', '')
    """
    if not text:
        return ""
    path = expanded(Path(text))
    first = expanded(Path(text.split(",")[0]))
    if first.suffix == ".npy":
        return f"npy:{text}"
    try:
        if path.is_dir():
            return f"packed:{text}" if (path / "pool.json").is_file() else f"folder:{text}"
        if path.is_file() and not is_image_name(text):
            return f"list:{text}"
    except (OSError, ValueError):  # Too long for a path, or with a zero byte.
        return ""
    if path.is_file():
        return f"folder:{path.parent}"
    is_path = text.startswith(("/", "./", "../", "~")) or "\\" in text or "/" in text
    return f"{'list' if path.suffix.lower() in ('.txt', '.lst', '.csv') else 'folder'}:{text}" if is_path else ""


def _set_name(source: str) -> str:
    """Return a name for an OOD set without a name."""
    place = source.partition(":")[2].split(",")[0].rstrip("/\\")
    return re.split(r"[/\\:=]", place)[-1].partition(".")[0] or "NAME"
