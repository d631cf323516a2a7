"""Names from the disk and the command line, made fit for print; paths from the home folder."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Invisible, but without them Persian words and many emoji are others."""


def printable(name: str) -> str:
    r"""Write a name so that every terminal, figure, page and JSON file can hold it.

    Bytes of a file name that are no UTF-8 (which Python keeps as surrogates), control codes, line ends and marks that
    turn the direction of writing become escapes; everything else stays.

    Args:
        name: As the disk or the command line has it.

    Returns:
        The name in one line, without any character that cannot be encoded in UTF-8.

    Example:
        >>> print(printable("caf\udce9"), printable("two\nlines"), printable("größe 7 $x^{"))
        caf\xe9 two\nlines größe 7 $x^{
    """
    return "".join(_escape(letter) for letter in name)


def _escape(letter: str) -> str:
    if unicodedata.category(letter) not in _ESCAPED or letter in _JOINERS:
        return letter
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    r"""Write a text of several lines so that it can be printed anywhere: `printable` for each of them.

    Example:
        >>> print(printable_lines("missing:\nx\x1b[31m.png"))
        missing:
        x\x1b[31m.png
    """
    return "\n".join(map(printable, text.split("\n")))


def first_of(names: Sequence[str], limit: int = 3) -> str:
    """Write the first names of many, as they print.

    Example:
        >>> first_of(["a", "b", "c", "d"]), first_of(["a", "b"])
        ('a, b, c, …', 'a, b')
    """
    return ", ".join([*map(printable, names[:limit]), *(["…"] if len(names) > limit else [])])


def expanded(path: Path) -> Path:
    """Write out a leading ~ or ~user, which a shell leaves alone inside a longer word.

    Example:
        >>> expanded(Path("~/pictures")) == Path.home() / "pictures", expanded(Path("pictures")).as_posix()
        (True, 'pictures')
    """
    try:
        return path.expanduser()
    except RuntimeError:  # no such user: a folder may be called so
        return path
