"""Sites of device code that a mutant build can spoil, one at a time, at run time.

Kinds: `barrier`, `syncwarp` and `fence` are left out; `mask` is halved; `guard`, an `if` with a comparison, always
holds; `bound`, the end of a loop, is one too small, or half where the loop doubles; `sum`, a `+=` or an atomic
operation, stores instead of adding.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import features
from source_text import closing, code_of

_PATTERNS = {
    "barrier": re.compile(r"(?<![\w.])(?:__syncthreads\(\)|block\.barrier\(\));"),
    "barrier_reduction": re.compile(r"__syncthreads_(?:or|and|count)\((?P<inner>[^()]*)\)"),
    "syncwarp": re.compile(r"(?<!\w)__syncwarp\(\);"),
    "each": re.compile(r"(?<![\w.])warp\.each\("),
    "fence": re.compile(r"__threadfence\(\);"),
    "mask": re.compile(r"__(?:shfl(?:_xor|_up|_down)?|ballot|any|all)_sync\((?P<inner>[\w:]+),"),
    "sum": re.compile(r"(?:^|(?<=[{};]))(?P<lead>\s*)(?P<inner>[\w.\[\]()*>:\-+ ]+?) \+= (?=[^;]*;)", re.MULTILINE),
    "atomic": re.compile(r"(?<!\w)atomic(?P<inner>Add|Min|Max)\("),
}
_HEADER = re.compile(r"(?<!\w)(?P<word>if|for) \(")
_BOUND = re.compile(r" (?:<|>) ")


class Site(NamedTuple):
    """A place in device code, and its replacement."""

    start: int
    stop: int
    kind: str
    make: str
    """The replacement; `{k}` stands for the number of the site."""


def _statement_sites(code: str, begin: int, end: int) -> list[Site]:
    sites = []
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(code, begin, end):
            start, stop = match.span()
            whole = match[0]
            if kind in ("barrier", "syncwarp", "fence"):
                sites.append(Site(start, stop, kind, f"if (!::emulation::off({{k}})) {whole}"))
            elif kind == "barrier_reduction":
                sites.append(Site(start, stop, "barrier", f"(::emulation::off({{k}}) ? ({match['inner']}) : {whole})"))
            elif kind == "each":
                sites.append(Site(start, stop, "syncwarp", "(::emulation::each({k}), warp).each("))
            elif kind == "mask":
                inner = match.start("inner") - start
                made = f"{whole[:inner]}::emulation::mask({{k}}, {match['inner']}),"
                sites.append(Site(start, stop, "mask", made))
            elif kind == "sum":
                made = f"{match['lead']}::emulation::accumulator({{k}}, {match['inner']}) += "
                sites.append(Site(start, stop, "sum", made))
            else:
                sites.append(Site(start, stop, "sum", f"::emulation::Atomic{match['inner']}{{{{{{k}}}}}}("))
    return sites


def _header_sites(code: str, begin: int, end: int) -> tuple[list[Site], list[tuple[int, int]]]:
    """Return the sites in the heads of `if` and `for`, and the spans of the heads of `for`."""
    sites, loops = [], []
    for match in _HEADER.finditer(code, begin, end):
        start = match.end()
        stop = closing(code, match.end() - 1) - 1
        head = code[start:stop]
        if match["word"] == "if":
            if ";" not in head and re.search(r" (?:<|>|<=|>=) ", head):
                sites.append(Site(start, stop, "guard", f"::emulation::off({{k}}) || ({head})"))
            continue
        loops.append((start, stop))
        parts = head.split(";")
        if len(parts) != 3:
            continue
        comparisons = list(_BOUND.finditer(parts[1]))
        if not comparisons:
            continue
        comparison = comparisons[-1]
        left = start + len(parts[0]) + 1
        bound = re.match(r"[^&|]*?(?= && |$)", parts[1][comparison.end() :])
        assert bound is not None
        # One less than a power of two stops a loop that doubles at the same step: half of it does not.
        change = ">>" if "*=" in parts[2] else "-" if comparison[0] == " < " else "+"
        at = left + comparison.end()
        sites.append(Site(at, at + len(bound[0]), "bound", f"({bound[0]}) {change} ::emulation::one({{k}})"))
    return sites, loops


class Sites:
    """The numbered sites of all sources."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def number(self, text: str, name: str) -> str:
        """Return the text with its sites numbered; numbers continue those of earlier texts."""
        code = code_of(text)
        found: list[Site] = []
        for begin, end in features.device_bodies(code):
            headers, loops = _header_sites(code, begin, end)
            statements = _statement_sites(code, begin, end)
            # Steps of loops are no sums: a loop whose step is spoiled never ends.
            inside = [s for s in statements if s.kind != "sum" or not any(a <= s.stop <= b for a, b in loops)]
            found += headers + inside
        found.sort()
        pieces, at = [], 0
        for site in found:
            if site.start < at:
                continue  # within the previous site
            number = len(self._lines) + 1
            source = text[site.start : site.stop]
            line = code.count("\n", 0, site.start + len(source) - len(source.lstrip())) + 1
            self._lines.append(f"{number}\t{name}:{line}\t{site.kind}\t{' '.join(source.split())}")
            made = site.make.replace("{k}", str(number)) if "{{" not in site.make else site.make.format(k=number)
            lost = source.count("\n") - made.count("\n")
            pieces += [text[at : site.start], made, "\n" * lost]
            at = site.stop
        return "".join(pieces) + text[at:]

    def listing(self) -> str:
        """Return the lines `number, file:line, kind, original text`, separated by tabs."""
        return "".join(line + "\n" for line in self._lines)
