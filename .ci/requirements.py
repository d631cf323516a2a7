"""Prints what `make` installs beside the package itself: its dependencies and those of its extras."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["train"] + extras["examples"] + extras["dev"]
if sys.platform == "linux":  # DALI has no other wheels.
    wanted += extras["dali"]
print(" ".join(requirement for requirement in wanted if not requirement.startswith("fastood[")))
