"""Cache of an arm's logits and features in the run folder."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from fastood.common.files import write_atomically
from fastood.train.trained_network import Outputs

FORMAT = 1
"""Version of the file layout; a file of another version is replaced."""


def fingerprint_of(dependencies: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of everything that the outputs of a network depend on.

    Args:
        dependencies: Plain values that JSON can hold: digests of the images, precision, device.
        weights: Weights of the network by name.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch
        >>> one, other = ({"head": torch.tensor([value])} for value in (1.0, 2.0))
        >>> fingerprint_of({"precision": "32-true"}, one) == fingerprint_of({"precision": "32-true"}, other)
        False
    """
    whole = hashlib.sha256(json.dumps({"format": FORMAT, **dependencies}, sort_keys=True).encode())
    whole.update(safetensors_bytes({name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}))
    return whole.hexdigest()


class OutputsCache:
    """File of outputs by the name of an image set, valid for one fingerprint.

    Args:
        path: The file.
        fingerprint: Digest from `fingerprint_of`; a file with another one is ignored.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

    def read(self) -> dict[str, Outputs] | None:
        """Return the outputs by the name of their image set; None if the file is missing, stale or damaged."""
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        names = [name.removesuffix("/logits") for name in tensors if name.endswith("/logits")]
        return {name: Outputs(logits=tensors[f"{name}/logits"], features=tensors[f"{name}/features"]) for name in names}

    def write(self, outputs: Mapping[str, Outputs]) -> None:
        """Replace the file, completely or not at all; warn if it cannot be written, since only speed depends on it."""
        tensors: dict[str, Tensor] = {}
        for name, of_set in outputs.items():
            tensors |= {f"{name}/logits": of_set.logits.contiguous(), f"{name}/features": of_set.features.contiguous()}
        try:
            write_atomically(self.path, safetensors_bytes(tensors, {"fingerprint": self.fingerprint}))
        except OSError as error:
            print(f"warning: logits and features cannot be cached: {error}", file=sys.stderr)
