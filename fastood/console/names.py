"""Printable names from the disk and the command line, and expansion of the home folder."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Invisible characters that are kept, as Persian words and many emoji need them."""


def printable(name: str) -> str:
    r"""Return a name in a form that every terminal, figure, page and JSON file can contain.

    Bytes of a file name that are not UTF-8 (surrogates in Python), control codes, line ends and marks that change the
    direction of writing are escaped; all other characters are kept.

    Args:
        name: Name on the disk or the command line.

    Returns:
        The name in one line, with only characters that UTF-8 can encode.

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
    r"""Return a text of several lines with `printable` applied to each.

    Example:
        >>> print(printable_lines("missing:\nx\x1b[31m.png"))
        missing:
        x\x1b[31m.png
    """
    return "\n".join(map(printable, text.split("\n")))


def first_of(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names of many, printable and joined by commas.

    Example:
        >>> first_of(["a", "b", "c", "d"]), first_of(["a", "b"])
        ('a, b, c, …', 'a, b')
    """
    return ", ".join([*map(printable, names[:limit]), *(["…"] if len(names) > limit else [])])


def expanded(path: Path) -> Path:
    """Expand a leading ~ or ~user, which a shell does not expand inside a longer word.

    Example:
        >>> expanded(Path("~/pictures")) == Path.home() / "pictures", expanded(Path("pictures")).as_posix()
        (True, 'pictures')
    """
    try:
        return path.expanduser()
    except RuntimeError:  # There is no such user; a folder may have this name.
        return path
