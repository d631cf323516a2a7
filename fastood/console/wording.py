"""Text for counts and names: singular and plural, articles, and shortened lists."""

from collections.abc import Iterable

NAMED = 3
"""Number of items that `some` names."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun, in the singular for 1.

    Args:
        count: The number, printed with thousands separators.
        noun: The noun in the singular.
        plural: The noun in the plural; None adds an s.

    Example:
        >>> counted(1, "arm"), counted(2_000, "arm"), counted(0, "class", "classes")
        ('1 arm', '2,000 arms', '0 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def with_article(name: str) -> str:
    """Return a name after "a" or "an", chosen by its first letter.

    Example:
        >>> with_article("AutoencodingClassifier"), with_article("Linear")
        ('an AutoencodingClassifier', 'a Linear')
    """
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def joined(names: Iterable[str], *, word: str = "and") -> str:
    """Return names joined by commas, and the last by a word.

    Example:
        >>> joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def some(items: Iterable[object]) -> str:
    """Return the first three items, and the number of the others.

    Example:
        >>> some([4, 8]), some(range(100)), some([])
        ('4, 8', '0, 1, 2 and 97 more', 'none')
    """
    every = [str(item) for item in items]
    shown = ", ".join(every[:NAMED]) or "none"
    return f"{shown} and {len(every) - NAMED:,} more" if len(every) > NAMED else shown
