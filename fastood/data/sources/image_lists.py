"""Text files that list image files, one path per line."""

import os
from itertools import chain
from pathlib import Path

from fastood.console.names import printable

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_BLANKS = " \t\r"


def read_list(path: Path, *, option: str, root: Path | None = None) -> tuple[str, ...]:
    r"""Read a list of files.

    Lines end in a line feed, with or without a carriage return; every other character may be part of a name, also bytes
    that are not UTF-8. Empty lines are skipped, and lines that begin with # unless such a file exists. Blanks around a
    path are stripped unless a file has them in its name. Relative paths are relative to the folder of the list if the
    first of them exists there, otherwise to `root`.

    Args:
        path: The list.
        option: Option of the list, named in errors.
        root: Base folder of relative paths if the first is not in the folder of the list; None for the working folder.

    Returns:
        The paths, in the order of the list.

    Raises:
        FileNotFoundError: If the list is missing.
        ValueError: If the list is UTF-16 or not text, or a path that is not UTF-8 leads to no file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.png").write_bytes(b"")
        >>> _ = (folder / "some.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n\r\nb.png")
        >>> [Path(file).relative_to(folder).as_posix() for file in read_list(folder / "some.txt", option="ood")]
        ['a.png', 'b.png']
    """
    if not path.is_file():
        raise FileNotFoundError(f"data.{option}: there is no file {printable(str(path))}")
    content = path.read_bytes().removeprefix(_UTF8_MARK)
    if content.startswith(_UTF16):
        raise ValueError(f"data.{option}: {path} must list one path per line in UTF-8, got UTF-16: save it as UTF-8")
    if b"\0" in content:
        raise ValueError(f"data.{option}: {path} must list one path per line in UTF-8, got a file with zero bytes")
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    files = _resolved([line.removesuffix("\r") for line in lines], path.parent, root)
    foreign = next((file for file in files if not file.isprintable() and _is_lost(file)), None)
    if foreign is not None:
        raise ValueError(
            f"data.{option}: {path} must list one path per line in UTF-8, got {printable(foreign)}, where no file is"
        )
    return files


def _is_lost(file: str) -> bool:
    """Return whether a path holds bytes that are not UTF-8 and leads to no file, so that its encoding is another."""
    return any("\udc80" <= letter <= "\udcff" for letter in file) and not os.path.exists(file)  # noqa: PTH110


def _resolved(lines: list[str], folder: Path, root: Path | None) -> tuple[str, ...]:
    """Return the paths of the files that lines name."""
    lines = [line for line in lines if line.strip(_BLANKS)]
    bases = [str(folder), "" if root is None else str(root)]

    def exists(line: str) -> bool:
        return any(os.path.exists(os.path.join(base, line)) for base in bases)  # noqa: PTH110, PTH118

    def cleaned(line: str) -> str:
        bare = line.strip(_BLANKS)
        if bare == line and not bare.startswith("#"):
            return line  # Without disk access, for lists of a million lines.
        if exists(line):
            return line
        return "" if bare.startswith("#") and not exists(bare) else bare

    names = [name for name in map(cleaned, lines) if name]
    first = next((name for name in names if not os.path.isabs(name)), None)  # noqa: PTH117
    if first is None:
        return tuple(names)
    existing = (base for base in bases if os.path.exists(os.path.join(base, first)))  # noqa: PTH110, PTH118
    base = next(chain(existing, bases))
    return tuple(os.path.join(base, name) for name in names)  # noqa: PTH118
