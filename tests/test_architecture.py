"""Imports lead downwards, between packages and inside data and train; docs/architecture.md shows them as they are."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable
from graphlib import CycleError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


draw = load("docs/draw_architecture.py")
IMPORTS = draw.imports(ROOT)

# Storeys from the ground up: a room imports rooms of lower storeys alone, not those beside it. In a package with single
# files (True), those that are not listed only have to keep out of circles.
STOREYS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "fastood": (
        False,
        (
            "common console",
            "ops",
            "losses samplers heads metrics scores",
            "detectors models data",
            "train",
            "evaluate",
        ),
    ),
    "fastood.data": (
        True,
        ("images splits", "packed embedded loaders", "sources", "config", "summary task", "commands", "__main__"),
    ),
    "fastood.train": (
        True,
        ("feature_map", "arm", "engine", "method", "methods results", "report", "run", "cli", "__main__"),
    ),
}
DROP_IN = {"common", "ops", "losses", "samplers", "heads", "metrics", "detectors", "scores"}
"""Work in a loop of the user's own, with torch and NumPy alone."""
OPTIONAL = {
    "fastood/common/files.py": {"safetensors"},
    "fastood/detectors/multi_layer.py": {"sklearn"},
    "fastood/detectors/storage.py": {"safetensors"},
    "fastood/heads/class_sums.py": {"safetensors"},
}
"""Other packages that a file of the drop-in layer imports, inside a function: what needs them is optional."""
REPORT_READS = {"fastood.train.engine", "fastood.train.methods"}
"""The report draws what a run has written, and imports neither."""


def rooms_of(package: str) -> set[str]:
    """Return the names of a package's modules and packages, one level down."""
    depth = package.count(".") + 1
    names = (name.split(".") for name in draw.modules(ROOT) if name.startswith(f"{package}."))
    return {parts[depth] for parts in names}


def room_in(package: str, module: str) -> str | None:
    """Return the room of `package` that holds `module`; None for the package's own `__init__` and what lies outside."""
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


@pytest.mark.parametrize("package", STOREYS)
def test_no_import_leads_upward(package: str) -> None:
    _, storeys = STOREYS[package]
    storey = {name: number for number, names in enumerate(storeys) for name in names.split()}
    for arrow in IMPORTS:
        upper, lower = room_in(package, arrow.importer), room_in(package, arrow.imported)
        if upper in storey and lower in storey and upper != lower:
            assert storey[lower] < storey[upper], (
                f"{arrow.place}: {arrow.importer} imports {arrow.imported}, but in {package} {upper} stands "
                f"{'beside' if storey[lower] == storey[upper] else 'below'} {lower} (STOREYS of {__file__})"
            )


@pytest.mark.parametrize("package", STOREYS)
def test_every_package_has_a_storey(package: str) -> None:
    files_too, storeys = STOREYS[package]
    named, there = set(" ".join(storeys).split()), rooms_of(package)
    assert named <= there, f"STOREYS of {__file__} names rooms that {package} no longer has: {sorted(named - there)}"
    folder = ROOT / package.replace(".", "/")
    unnamed = {name for name in there - named if not files_too or (folder / name).is_dir()}
    assert not unnamed, f"give these rooms of {package} a storey in STOREYS of {__file__}: {sorted(unnamed)}"


def test_the_drop_in_layer_imports_nothing_of_the_trainer() -> None:
    for arrow in IMPORTS:
        upper, lower = draw.room(arrow.importer), draw.room(arrow.imported)
        if upper in DROP_IN:
            assert lower in DROP_IN | {"csrc", ""}, (
                f"{arrow.place}: {arrow.importer} imports {arrow.imported}, but the drop-in layer "
                f"({', '.join(sorted(DROP_IN))}) imports nothing above it: use a Protocol, or move what you need down"
            )


def test_the_package_imports_no_script() -> None:
    for arrow in IMPORTS:
        if arrow.importer.startswith("fastood"):
            assert draw.room(arrow.imported) not in draw.SCRIPTS, f"{arrow.place}: imports {arrow.imported}, a script"


def outside(names: list[str]) -> set[str]:
    """Return the top-level packages among imported names that are neither Python's nor the repository's."""
    tops = {name.partition(".")[0] for name in names}
    return tops - sys.stdlib_module_names - {"fastood"}


def test_the_drop_in_layer_needs_torch_and_numpy_alone() -> None:
    """Wherever the import stands; tests/test_imports.py imports the modules without other packages."""
    for importer, names, place in draw.statements(ROOT):
        if draw.room(importer) in DROP_IN:
            path = place.rpartition(":")[0]
            others = outside(names) - {"torch", "numpy"} - OPTIONAL.get(path, set())
            assert not others, (
                f"{place}: {importer} imports {', '.join(sorted(others))}, but the drop-in layer needs torch and numpy "
                f"alone; an optional package goes into a function, and into OPTIONAL of {__file__}"
            )


def test_optional_packages_are_imported_in_functions() -> None:
    for path, packages in OPTIONAL.items():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for packages_of, nodes in (("top", tree.body), ("any", ast.walk(tree))):
            imported = set().union(*(outside(draw.imported_names(node, "", ())) for node in nodes))
            assert (packages <= imported) == (packages_of == "any"), f"{path} imports {packages}, see OPTIONAL"


def test_the_report_imports_neither_engine_nor_methods() -> None:
    for arrow in IMPORTS:
        if arrow.importer.startswith("fastood.train.report"):
            assert ".".join(arrow.imported.split(".")[:3]) not in REPORT_READS, (
                f"{arrow.place}: {arrow.importer} imports {arrow.imported}, but the report reads what a run has written"
            )


def circle(arrows: list[Any], of: Callable[[str], str]) -> str | None:
    """Return the imports by which rooms import one another in a circle, one of each room, or None."""
    try:
        draw.floors(draw.graph(arrows, of))
    except CycleError as error:
        steps = set(itertools.pairwise(reversed(error.args[1])))
        of_step = {(of(a.importer), of(a.imported)): f"{a.place}: {a.importer} imports {a.imported}" for a in arrows}
        return "\n".join(sorted(of_step[step] for step in steps))
    return None


def test_no_modules_import_one_another_in_a_circle() -> None:
    """`fastood/__init__.py` aside, which runs before every other module whether it is imported or not."""
    found = circle(IMPORTS, lambda module: "" if module == "fastood" else module)
    assert found is None, f"modules import one another in a circle, cut one of these:\n{found}"


@pytest.mark.parametrize("package", STOREYS)
def test_no_rooms_import_one_another_in_a_circle(package: str) -> None:
    found = circle(IMPORTS, lambda module: room_in(package, module) or "")
    assert found is None, f"rooms of {package} import one another in a circle, cut one of these:\n{found}"


def test_the_house_is_no_larger_than_one_can_keep_in_mind() -> None:
    level = draw.floors(draw.graph(IMPORTS))
    assert len(level) <= 18, f"at most 18 rooms at the top level, got {sorted(level)}"
    assert max(level.values()) + 1 <= 6, f"at most 6 floors, got {sorted(level.items(), key=lambda item: item[1])}"


def test_the_page_is_current() -> None:
    page = draw.PAGE.read_text(encoding="utf-8")
    assert page == draw.drawn(page), "an import between packages has changed: run python docs/draw_architecture.py"


def test_the_stops_of_the_walks_are_there() -> None:
    """A name in backquotes after a file, up to the next file, is one that the file holds."""
    walks = draw.PAGE.read_text(encoding="utf-8").partition("## Walk 1")[2]
    # Text, file, text, file, …, text: what follows a file belongs to it up to the end of the stop.
    _, *parts = re.split(r"`([^`\s]+/[^`\s]+)`", walks)
    assert len(parts) > 60
    for path, text in zip(parts[::2], parts[1::2], strict=True):
        assert (ROOT / path).is_file(), f"docs/architecture.md leads to {path}, which does not exist"
        for name in re.findall(r"`(\w+)`", re.split(r"\n\n|\n\d+\. ", text)[0]):
            holds = re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))
            assert holds, f"docs/architecture.md leads to {name} in {path}, which does not name it"


def test_the_files_that_the_map_names_are_there() -> None:
    """Check the guides, too; `<name>` stands for a file that is to be written."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = {path for path in re.findall(r"`([\w.]+/[\w./-]+)`", text)}
    gone = sorted(path for path in paths if not (ROOT / path).exists())
    assert not gone, f"CONTRIBUTING.md names files that do not exist: {gone}"


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    files = {
        "fastood/__init__.py": "",
        "fastood/low/__init__.py": "from fastood import _C\n",
        "fastood/low/one.py": "def f():\n    import fastood.high.two\n",
        "fastood/high/__init__.py": "",
        "fastood/high/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastood.low import one\n",
        "fastood/high/three.py": "import math\nfrom . import two\n",
        "fastood/high/four.py": "from .. import low\nfrom ..low.one import f\n",
        "fastood/low/five.py": (
            "import importlib\n"
            "importlib.import_module('fastood.high.two')\n"
            "importlib.import_module('.one', __package__)\n"
            "__import__('fastood.high')\n"
            "import fastood\n"
            "fastood.high.two\n"
            "importlib.import_module(f'fastood.{1}')\n"
            "from fastood._C import info\n"
        ),
        "benchmarks/harness.py": "",
        "benchmarks/test_speed.py": "from harness import run\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [tuple(arrow) for arrow in draw.imports(tmp_path)]
    assert found == [
        ("fastood.high.four", "fastood.low", "fastood/high/four.py:1"),
        ("fastood.high.four", "fastood.low.one", "fastood/high/four.py:2"),
        ("fastood.high.three", "fastood.high.two", "fastood/high/three.py:2"),
        ("fastood.high.two", "fastood.low.one", "fastood/high/two.py:3"),
        ("fastood.low", "csrc", "fastood/low/__init__.py:1"),
        ("fastood.low.five", "fastood.high.two", "fastood/low/five.py:2"),
        ("fastood.low.five", "fastood.low.one", "fastood/low/five.py:3"),
        ("fastood.low.five", "fastood.high", "fastood/low/five.py:4"),
        ("fastood.low.five", "fastood", "fastood/low/five.py:5"),
        ("fastood.low.five", "fastood.high", "fastood/low/five.py:6"),
        ("fastood.low.five", "csrc", "fastood/low/five.py:8"),
        ("fastood.low.one", "fastood.high.two", "fastood/low/one.py:2"),
        ("benchmarks.test_speed", "benchmarks.harness", "benchmarks/test_speed.py:1"),
    ]
    assert circle(draw.imports(tmp_path), draw.room) == (
        "fastood/high/two.py:3: fastood.high.two imports fastood.low.one\n"
        "fastood/low/one.py:2: fastood.low.one imports fastood.high.two"
    )
