"""Check docstrings for the style guide of CONTRIBUTING.md: `python .ci/check_style.py [PATH …]`.

Without arguments it reads fastood/. Prints `file:line: phrase: remedy` for each place and exits with 1 if there is any.
The rules hold what ruff's D401 (imperative first line) does not: openings that point at something else instead of
naming it, and phrases that the field does not use. They are few on purpose, so that none raises a false alarm.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

OPENINGS = {
    r"What\b": "begin with a verb (function) or a noun phrase (class, attribute)",
    r"That of\b": "repeat the noun that `that` stands for",
    r"The same\b": "say what it is; repeat the noun",
    r"Likewise\b": "say what it is; every entry stands on its own",
    r"As (?:in|for|above|below)\b": "say what it is; every entry stands on its own",
    r"None\.": "say what is returned or done, not only that there is nothing",
    r"Nothing\.": "say what is returned or done, not only that there is nothing",
}
"""Openings of a docstring and of an entry of its sections, and the remedy."""

PHRASES = {
    r"judg(?:e|es|ed|ing)": "evaluate, score",
    r"in earnest": "leave it out",
    r"put(?:s|ting)? out": "return, print, write",
    r"g(?:o|oes|oing) on (?:with|as|from|exactly)": "resume, continue",
    r"beside": "next to, alongside, with",
    r"(?:is|are|was|been) told": "receives, is passed",
    r"(?:is|are) said": "is documented, is reported",
    r"no business": "say what happens and why",
    r"nobody's concern": "say what happens and why",
    r"found out": "detected",
    r"know(?:s|n)? nothing of|know no other": "does not depend on, has no access to",
    r"anew": "again, from scratch",
    r"yet to be": "not yet …",
    r"of then": "at that time; name the time",
    r"of the moment": "current",
    r"what is to be": "say what it is",
    r"to be looked at": "to inspect",
    r"whatever": "any, regardless of, independent of",
    r"in place of": "instead of, that replaces",
    r"from time to time": "periodically, every N steps",
    r"once and for all": "once",
    r"at hand": "given, available",
    r"of its own(?=[.,;:]|$)": "separate, its",
    r"(?:add|cost|contribute|say|mean)s? nothing": "does not contribute, is 0, has no meaning",
    r"nothing is (?:added|counted|converted) then": "… is then unchanged",
    r"(?:go|goes|going) together|(?:go|goes) with(?= [`\w]+=)": "is compatible with, fits",
    r"lies? on different": "are on different",
    r"wants": "needs, requires",
    r"(?:is|are) no (?:integer|number|tensor|array|mapping|multiple|field|factor)(?! of its)": "is not a …",
    r"(?:minute|hour|second|day)s? or so": "about a minute",
    r"(?<=\. )So": "therefore; or begin with the consequence",
}
"""Phrases anywhere in a docstring, and what the field writes."""

_OPENING = re.compile("|".join(f"(?P<o{i}>{pattern})" for i, pattern in enumerate(OPENINGS)))
_PHRASE = re.compile("|".join(f"(?P<p{i}>\\b(?:{pattern})\\b)" for i, pattern in enumerate(PHRASES)), re.IGNORECASE)
_ENTRY = re.compile(r"^ *[*`\w.,()\[\] ]{1,40}: (?=[A-Z])")
"""An entry of Args, Returns or Shape: `name: Text`."""


class Finding(NamedTuple):
    """A place that breaks a rule."""

    path: Path
    line: int
    phrase: str
    remedy: str

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.phrase!r}: {self.remedy}"


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, those of attributes and constants included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text


def check(path: Path) -> list[Finding]:
    """Return the places of a file that break a rule, in the order of lines."""
    findings = []
    for first, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
        for number, line in enumerate(text.split("\n")):
            if line.lstrip().startswith((">>>", "...")):
                continue
            entry = _ENTRY.match(line)
            for start in ([0] if number == 0 else []) + ([entry.end()] if entry else []):
                if (match := _OPENING.match(line, start)) and match.lastgroup:
                    remedy = list(OPENINGS.values())[int(match.lastgroup[1:])]
                    findings.append(Finding(path, first + number, f"{match.group()} …", remedy))
            for match in _PHRASE.finditer(line):
                assert match.lastgroup
                remedy = list(PHRASES.values())[int(match.lastgroup[1:])]
                findings.append(Finding(path, first + number, match.group(), remedy))
    return findings


def files(paths: Iterable[Path]) -> list[Path]:
    """Return the Python files among the paths and in the folders among them."""
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def main() -> None:
    """Print the findings of the files and folders on the command line, and exit with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / "fastood"], metavar="PATH")
    findings = [finding for file in files(parser.parse_args().paths) for finding in check(file)]
    if findings:
        print(*findings, sep="\n")
        sys.exit(f"style: {len(findings)} to mend; the style guide is in CONTRIBUTING.md")


if __name__ == "__main__":
    main()
