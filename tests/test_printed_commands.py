"""Every command that the texts print can be given: modules, files, targets, extras and options exist."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import tyro

from fastood.data import __main__ as data
from fastood.evaluate import cli as evaluate
from fastood.train.command import parse_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += [
    ROOT / "fastood/train/recipes/README.md",
    ROOT / "benchmarks/results/README.md",
    ROOT / "experiments/README.md",
]
SOURCES = [
    *sorted(ROOT.glob("benchmarks/*.py")),
    *sorted(ROOT.glob("experiments/*.py")),
    *sorted(ROOT.glob("examples/*.py")),
]
PROGRAMS = "python|pip|make|torchrun|pytest|cmake|ctest"


def commands_of(path: Path) -> list[str]:
    """Return the commands of a text, or of a program's docstring: lines of code blocks, and code within lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    text = text.replace("\\\n", " ")
    lines = re.findall(rf"^(?:    )?((?:{PROGRAMS}) .*)$", text, re.MULTILINE)
    # A command within a line may go on in the next.
    spans = [" ".join(span.split()) for span in re.findall(rf"`((?:{PROGRAMS}) [^`]*)`", text)]
    commands = [line for line in lines if "`" not in line] + spans
    return [re.split(r"\s{2,}#|\s&&\s", command)[0].strip() for command in commands]


COMMANDS = sorted({(path.relative_to(ROOT).as_posix(), c) for path in [*PAGES, *SOURCES] for c in commands_of(path)})
PLACEHOLDERS = {"METHOD": "oe", "NAME": "oe", "FILE": "runs/x/config.yaml", "OLD": "old.json", "NEW": "new.json"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def check_module(module: str, args: list[str]) -> None:
    """Parse the options of a module of fastood, as far as they are no placeholders."""
    if module == "fastood.train":
        given = [PLACEHOLDERS.get(arg, arg) for arg in args if arg != "…"]
        if "--help" in given:
            given.remove("--help")
        parse_command(given)
    elif module == "fastood.evaluate":
        tyro.cli(evaluate.Command, args=[arg.replace("NAME", "x") for arg in args])
    elif module == "fastood.data":
        for subcommand in args if "|" in args else args[:1]:
            assert subcommand in ("|", "list", "pack", "info", "verify")
        if "|" not in args and len(args) > 1:
            tyro.cli(data.Command, args=args)
    else:
        assert find_spec(module.rstrip(",")) is not None, module


def check(command: str) -> None:
    """Fail if a command cannot be given as it is printed."""
    words = shlex.split(command)
    program, args = words[0], words[1:]
    if program == "torchrun":
        first = next(place for place, arg in enumerate(args) if arg == "-m" or arg.endswith(".py"))
        assert [arg for arg in args[:first] if arg != "--standalone"] in (["--nproc-per-node", n] for n in "N2")
        if args[first] == "-m":
            check_module(args[first + 1], args[first + 2 :])
        else:
            assert (ROOT / args[first]).exists(), args[first]
    elif program == "python" and args[0] == "-m":
        check_module(args[1], args[2:])
    elif program in ("python", "pytest"):
        for script in [args[0], *(arg for arg in args if arg.startswith(("benchmarks/", "experiments/")))]:
            assert (ROOT / script).exists(), script
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert args[0] in targets
    elif program == "pip":
        assert args[0] == "install"
        for arg in args[1:]:
            assert not arg.startswith("fastood"), "it is on no index: pip install '.[train]'"
            if match := re.fullmatch(r"\.\[(.*)\]", arg):
                assert set(match[1].split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_printed_command_can_be_given(page: str, command: str) -> None:
    try:
        check(command)
    except SystemExit as stopped:
        raise AssertionError(f"{page}: {command}") from stopped


def test_commands_are_found() -> None:
    pages = {page for page, _ in COMMANDS}
    assert {"README.md", "fastood/train/recipes/README.md", "docs/results.md", "benchmarks/results/README.md"} <= pages
    assert "experiments/README.md" in pages
    assert ("README.md", "pip install '.[train]'") in COMMANDS
    assert ("README.md", "torchrun --nproc-per-node N -m fastood.train …") in COMMANDS
    assert sum("fastood.train" in command for _, command in COMMANDS) >= 5


@pytest.mark.parametrize("script", sorted({c.split()[1] for _, c in COMMANDS if re.match(r"python \w+/", c)}))
def test_a_script_says_how_it_is_called_and_does_nothing_else(script: str, tmp_path: Path) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    assert re.search(r"^def main\(.*?parse_(known_)?args\(", text, re.MULTILINE | re.DOTALL)
    assert re.search(r'^if __name__ == "__main__":\n    (sys.exit\()?main\(\)\)?\n\Z', text, re.MULTILINE)
    if re.search("^(import|from) (torch|fastood)", text, re.MULTILINE):
        return  # Importing these takes seconds.
    page = ROOT / "docs/results.md"
    before = page.stat().st_mtime_ns
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {Path(script).name}")
    assert not list(tmp_path.iterdir())
    assert page.stat().st_mtime_ns == before


def test_the_environment_is_entered_before_the_first_command_that_needs_it() -> None:
    """`make` builds .venv without entering it: nothing after that would be found."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    entered = readme.index("    . .venv/bin/activate")
    assert re.search(r"^    (pip|python|torchrun) ", readme, re.MULTILINE).start() > entered
    assert "next:  . $(BIN)/activate" in (ROOT / "Makefile").read_text(encoding="utf-8")
