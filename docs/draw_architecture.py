"""Draw the import graph into docs/architecture.md: `python docs/draw_architecture.py` after a change of imports.

A node (a room, in the code) is a package of fastood/, csrc/, or a folder of scripts. An arrow is an import of one node
by another anywhere in a file: at the top, in a function or under TYPE_CHECKING; as a statement, by `import_module("…")`
with a literal, or as an attribute of `fastood`, which imports its packages on first use. `fastood/__init__.py` is not a
node, because Python runs it before every other module. tests/test_architecture.py has the rules of the graph.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- drawn by docs/draw_architecture.py: begin -->", "<!-- end -->"
SCRIPTS = ("benchmarks", "experiments", "examples")
"""Folders of scripts, which import one another by file name."""

EXTENSION = "fastood._C"
"""Module that csrc/ is built into; a binary file."""

Graph = dict[str, set[str]]
"""Names of the rooms (or modules) that each room (or module) imports."""


class Import(NamedTuple):
    """An import of one of the repository's modules by another."""

    importer: str
    imported: str
    place: str
    """File and line, relative to the repository."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the file of every module, by dotted name: `fastood.ops.logit_scores`, `benchmarks.harness`."""
    paths = [path for folder in ("fastood", *SCRIPTS) for path in sorted((root / folder).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported_names(node: ast.AST, package: str, known: Container[str]) -> list[str]:
    """Return the absolute names of the modules that a node of a syntax tree imports.

    Args:
        node: Any node; an import statement, a call of `import_module` or `__import__`, or an attribute of `fastood`.
        package: Package of the module that holds the node, which relative names start from.
        known: Names of the repository's modules: `from package import name` imports a module or a name of it.
    """
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        return [name if name in known or name == EXTENSION else base for name in names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function, name = node.func, node.args[0].value
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
        if called in ("import_module", "__import__") and isinstance(name, str):
            return [resolve_name(name, package)]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastood":
        return [name for name in [f"fastood.{node.attr}"] if name in known]
    return []


def statements(root: Path = ROOT) -> Iterator[tuple[str, list[str], str]]:
    """Yield importer, imported names, and file and line of every import, of whatever package."""
    paths = modules(root)
    for importer, path in paths.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        named = [(getattr(node, "lineno", 0), imported_names(node, package, paths)) for node in nodes]
        for line, names in sorted(named):
            if names:
                yield importer, names, f"{path.relative_to(root)}:{line}"


def imports(root: Path = ROOT) -> list[Import]:
    """Return every import between modules of the repository, in the order of files and lines."""
    paths = modules(root)
    known = (
        {name: name for name in paths}
        | {EXTENSION: "csrc"}
        | {name.split(".")[1]: name for name in paths if not name.startswith("fasto")}
    )
    arrows = []
    for importer, names, place in statements(root):
        for name in dict.fromkeys(names):
            if (imported := known.get(name, name)) in (*paths, "csrc") and imported != importer:
                arrows.append(Import(importer, imported, place))
    return arrows


def room(module: str) -> str:
    """Return the room of a module: the package under fastood/, or the folder of a script; "" for fastood itself."""
    parts = module.split(".")
    return parts[0] if parts[0] != "fastood" else parts[1] if len(parts) > 1 else ""


def graph(arrows: Iterable[Import], of: Callable[[str], str] = room) -> Graph:
    """Return the rooms that each room imports; `of` maps a module to its room, or to "" if it has none."""
    below: Graph = {}
    for arrow in arrows:
        upper, lower = of(arrow.importer), of(arrow.imported)
        for name in filter(None, (upper, lower)):
            below.setdefault(name, set())
        if upper and lower and upper != lower:
            below[upper].add(lower)
    return below


def floors(below: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of every room: 0 if it imports no other, else one above the highest room that it imports.

    Raises:
        graphlib.CycleError: If rooms import one another in a circle.
    """
    level: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():
        level[name] = max((level[lower] + 1 for lower in below[name]), default=0)
    return level


def direct(below: Mapping[str, set[str]]) -> Graph:
    """Return the graph without the arrows that a longer way implies, which leaves a drawing that can be read."""

    def reached(name: str) -> set[str]:
        return below[name].union(*(reached(lower) for lower in below[name]))

    return {name: lower - set().union(*(reached(other) for other in lower)) for name, lower in below.items()}


def section(root: Path = ROOT) -> str:
    """Return the drawn part of the page, in Markdown."""
    below = graph(imports(root))
    level = floors(below)
    count = max(level.values()) + 1
    stories = [sorted(name for name in below if level[name] == floor) for floor in range(count)]
    arrows = sum(map(len, below.values()))
    lines = [
        f"{len(below)} packages and folders in {count} layers, {arrows} imports between them; none leads upward.",
        "The graph omits imports that a longer path implies; the table has all of them.",
        "",
        "```mermaid",
        "flowchart TB",
    ]
    for floor in reversed(range(count)):
        lines += [f'  subgraph layer{floor}["layer {floor}"]', *(f"    {name}" for name in stories[floor]), "  end"]
    lines += [f"  {name} --> {lower}" for name, lowers in sorted(direct(below).items()) for lower in sorted(lowers)]
    lines += ["```", "", "| layer | package | imports |", "|---|---|---|"]
    for floor in reversed(range(count)):
        for name in stories[floor]:
            lines.append(f"| {floor} | `{name}` | {', '.join(f'`{lower}`' for lower in sorted(below[name])) or '–'} |")
    return "\n".join(lines)


def drawn(page: str, root: Path = ROOT) -> str:
    """Return the page with the section between its markers drawn anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{section(root)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
