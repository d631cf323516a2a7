"""Images and loaders need none of the packages of the embedded task and of training."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, pkgutil, sys

BLOCKED = {
    "sklearn", "scipy", "jinja2", "matplotlib", "tensorboard", "lightning_fabric", "rich", "safetensors", "tqdm",
    "tyro", "yaml",
}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
package = importlib.import_module(f"fastood.data.{sys.argv[1]}")
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    if module.name != "fastood.data.loaders.dali":  # needs the extra itself
        importlib.import_module(module.name)

import torch
from fastood.data import Augment
from fastood.data.loaders import open_loader, plan_loader

cpu, augment = torch.device("cpu"), Augment()
plan = plan_loader("resident", None, image_bytes=5 * 64, device=cpu)
loader = open_loader(plan, torch.zeros(5, 1, 8, 8, dtype=torch.uint8), augment, batch_size=2, device=cpu)
loader.submit(torch.tensor([4, 0]), augment.draw(2, height=8, generator=torch.Generator()))
assert loader.collect().shape == (2, 1, 8, 8)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("package", ["images", "loaders"])
def test_loaders_need_no_package_of_the_embedded_task_or_of_training(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, package], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
