"""The parts that go into a loop of one's own need PyTorch and NumPy alone."""

import subprocess
import sys

PARTS = ("common", "losses", "ops", "samplers", "heads", "metrics", "detectors")

SCRIPT = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions, requires

def closure(names):
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                needs = requires(name) or []
            except ModuleNotFoundError:
                continue
            bare = [need.split(";")[0] for need in needs if "extra ==" not in need]
            waiting += ["".join(c if c.isalnum() or c in "-_." else " " for c in need).split()[0] for need in bare]
    return found

# PyTorch takes optree where its metadata are there.
allowed = closure(["torch", "numpy", "optree"]) | {"fastood"}
blocked = {
    top for top, owners in packages_distributions().items()
    if not any(owner.lower().replace("_", "-") in allowed for owner in owners)
} - {"fastood"}
assert {"torchvision", "sklearn", "safetensors", "lightning_fabric", "PIL", "yaml"} <= blocked

class WithoutBlocked:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(WithoutBlocked, sys.meta_path)
names = ["fastood.scores"]
for part in sys.argv[1:]:
    package = importlib.import_module(f"fastood.{part}")
    names += [found.name for found in pkgutil.walk_packages(package.__path__, f"fastood.{part}.")]
for name in names:
    importlib.import_module(name)

import torch
from fastood.detectors.bal import BoundaryAwareDetector
from fastood.detectors import DetectorSuite, LinearHeadModel, build_detectors
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
x, y = torch.randn(80, 4), torch.arange(80) % 2
split = LinearHeadModel(model)
assert DetectorSuite(split, build_detectors(split)).fit([(x, y)]).predict(x)
settings = {"steps": 3, "batch_size": 8, "hidden": 4, "noise_dim": 2}
assert BoundaryAwareDetector(model, boundary=settings).fit([(x, y)]).predict(x).isfinite().all()
print(len(names))
"""


def test_no_other_package_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *PARTS], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90
