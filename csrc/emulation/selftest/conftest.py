"""Option of the self-test: where the variants were built."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --builds."""
    parser.addoption(
        "--builds", type=Path, default=ROOT / "build/emulated", help="folder with a build folder for each variant"
    )


@pytest.fixture
def builds(request: pytest.FixtureRequest) -> Path:
    """Folder with a build folder for each variant."""
    folder: Path = request.config.getoption("--builds")
    return folder
