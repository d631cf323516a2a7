"""Facts of the machine, printed as one line of JSON: `python -m benchmarks.gpu.probe PACKAGE …`."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys


def is_there(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def output(*command: str) -> str:
    """Return the last line that a command prints, or an empty string."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else ""


def main() -> None:
    """Print the facts."""
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "absent": [name for name in sys.argv[1:] if not is_there(name)],
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": output("nvcc", "--version"),
        "gpu": None,
    }
    if is_there("torch"):
        import torch

        facts["torch"] = torch.__version__
        facts["torch_cuda"] = torch.version.cuda
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
