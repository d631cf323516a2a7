"""The style check finds planted cases at their lines, and lets plain prose pass."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STYLE: dict[str, Any] = runpy.run_path(str(ROOT / ".ci/check_style.py"))

PLANTED = '''"""What a file holds."""

LIMIT = 3
"""As in `OTHER`."""


class Pool:
    """Weights of a pool.

    Args:
        size: Number of images.
        device: Likewise.
        names (list[str]): What they are called.
    """

    def save(self) -> None:
        """None."""

        def inner() -> str:
            """That of the file, beside it."""
            return "judged"
'''
CLEAN = '''"""Weights of a background pool, and what they do."""


def evaluate(rate: float) -> str:
    """Return the same besides: the rate as it is; what follows is a doctest.

    Args:
        rate: Learning rate, as in the paper.

    Example:
        >>> evaluate(0.1)  # judged beside: What
    """
    # What the paper judges.
    return "What"
'''


def findings(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    (tmp_path / "module.py").write_text(text)
    return [(found.line, found.phrase) for found in STYLE["check"](tmp_path / "module.py")]


def test_planted_cases_are_found(tmp_path: Path) -> None:
    assert sorted(findings(tmp_path, PLANTED)) == [
        (1, "What …"),
        (4, "As in …"),
        (12, "Likewise …"),
        (13, "What …"),
        (17, "None. …"),
        (20, "That of …"),
        (20, "beside"),
    ]


def test_plain_prose_code_and_comments_pass(tmp_path: Path) -> None:
    assert findings(tmp_path, CLEAN) == []


@pytest.mark.parametrize(
    "phrase",
    [
        "Judging takes long.",
        "A run goes on with its seed.",
        "The layer puts out features.",
        "Draw the values anew.",
        "Weights of the moment.",
        "The pool is told the loss.",
        "A score for networks of whatever size.",
        "A dict in place of a list.",
        "Rows of weight zero add nothing.",
        "The kernel wants float32.",
        "If `value` is no integer.",
        "It has a default of its own.",
        "It takes a minute or so.",
        "Ratios matter. So any scale is accepted.",
    ],
)
def test_idioms_are_found_anywhere_in_a_docstring(tmp_path: Path, phrase: str) -> None:
    found = findings(tmp_path, f'"""Title of the module.\n\n{phrase}\n"""\n')
    assert [line for line, _ in found] == [3]


def test_the_command_names_file_line_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('"""Title."""\n\nX = 1\n"""What it is."""\n')
    command = [sys.executable, str(ROOT / ".ci/check_style.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{tmp_path / 'one.py'}:4: 'What …': begin with a verb")
    assert done.stderr == "style: 1 to mend; the style guide is in CONTRIBUTING.md\n"
    (tmp_path / "one.py").write_text('"""Title."""\n')
    assert subprocess.run(command, timeout=60).returncode == 0
