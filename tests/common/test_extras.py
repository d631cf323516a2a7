"""Without the packages of an extra: what needs none of them works, and what does says how to install it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fastood
from fastood.common import extras

ROOT = Path(__file__).resolve().parents[2]
# All that the trainer needs beside torch and numpy, and what comes with it.
BLOCKED = [extras._module(requirement) for requirement in extras.requirements("train")]

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without(names: list[str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python where these packages cannot be imported."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(names=names))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize(
    "command",
    [
        "fastood.train",
        "fastood.train ice --help",
        "fastood.evaluate runs/x",
        "fastood.evaluate --help",
        "fastood.data list",
        "fastood.data pack folder:x y",
        "fastood.data info x",
        "fastood.data verify x",
        "fastood.data --help",
    ],
)
def test_a_command_without_its_packages_says_how_to_install_them_all(command: str, tmp_path: Path) -> None:
    done = run_without(["tyro", "sklearn", "yaml"], tmp_path, "-m", *command.split())
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    said, _, install = line.partition(" not installed here: ")
    assert said == f"error: python -m {command.split()[0]} needs pyyaml, scikit-learn, tyro,"
    assert shlex.split(install) == [sys.executable, "-m", "pip", "install", "pyyaml", "scikit-learn>=1.5", "tyro>=0.9"]


@pytest.mark.parametrize("names", [["torch"], ["torch", "tyro"]])
def test_without_torch_a_command_says_how_to_get_it(names: list[str], tmp_path: Path) -> None:
    done = run_without(names, tmp_path, "-m", "fastood.train")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: fastood needs torch, which is not installed for {sys.executable}: ")
    assert re.search(r"(pip install 'torch>=2.11'|bin/activate)$", line)
    done = run_without(names, tmp_path, "-c", "import fastood.ops")
    assert done.stderr.splitlines()[-1].startswith("ImportError: fastood needs torch")


DROP_IN = """
import fastood
from fastood.common.extras import MissingPackageError
from fastood.detectors.storage import read_detector, write_detector
from fastood.heads import GaussianStatistics
from fastood.samplers import BackgroundPool

for name in ("detectors", "heads", "losses", "metrics", "models", "ops", "samplers", "scores"):
    getattr(fastood, name)
BackgroundPool(9).save("pool")
assert len(BackgroundPool.from_file("pool")) == 9
for call in (
    lambda: write_detector("x", {}, {}),
    lambda: read_detector("x"),
    lambda: GaussianStatistics(2).save("x"),
    lambda: GaussianStatistics.load("x"),
):
    try:
        call()
    except MissingPackageError as error:
        print(error)
"""


def test_the_drop_in_layer_needs_torch_and_numpy_alone(tmp_path: Path) -> None:
    done = run_without(BLOCKED, tmp_path, "-c", DROP_IN)
    assert done.returncode == 0, done.stderr
    said = [line.partition(": ") for line in done.stdout.splitlines()]
    calls = ["save", "load", "GaussianStatistics.save", "GaussianStatistics.load"]
    assert [needs for needs, _, _ in said] == [f"{call} needs safetensors, not installed here" for call in calls]
    assert all(
        shlex.split(install) == [sys.executable, *["-m", "pip", "install", "safetensors"]] for _, _, install in said
    )


def test_the_requirements_are_those_of_the_installed_package(tmp_path: Path) -> None:
    """Beside a source tree they are read from pyproject.toml, otherwise from the metadata of what is installed."""
    package = tmp_path / "fastood/common"
    package.mkdir(parents=True)
    (package / "extras.py").write_text((ROOT / "fastood/common/extras.py").read_text(encoding="utf-8"))
    metadata = tmp_path / "fastood-1.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(
        'Name: fastood\nVersion: 1\nRequires-Dist: torch\nRequires-Dist: tyro>=0.9; extra == "train"\n'
        'Requires-Dist: dali; extra == "dali"\n'
    )
    program = "import runpy; print(runpy.run_path('fastood/common/extras.py')['requirements']('train'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout == "['tyro>=0.9']\n", done.stderr


def test_only_missing_packages_of_fastood_are_explained() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'") as caught, extras.needed_for("save"):
        import nowhere  # noqa: F401
    assert type(caught.value) is ModuleNotFoundError


def test_subpackages_are_there_when_they_are_asked_for() -> None:
    program = "import sys, fastood; print('fastood.metrics' in sys.modules, fastood.metrics.detection_metrics)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("False <function detection_metrics"), done.stderr
    public = {name for name in dir(fastood) if not name.startswith("__")}
    assert public == set(fastood.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="module 'fastood' has no attribute 'loses'"):
        _ = fastood.loses
