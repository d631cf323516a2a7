"""Logits and features of an arm's images, kept in the run folder."""

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
"""Version of the files; one of another version is replaced."""


def fingerprint_of(said: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that outputs depend on.

    Args:
        said: What JSON can hold: digests of the images, precision, device.
        weights: Of the network, by name.

    Example:
        >>> import torch
        >>> one, other = ({"head": torch.tensor([value])} for value in (1.0, 2.0))
        >>> fingerprint_of({"precision": "32-true"}, one) == fingerprint_of({"precision": "32-true"}, other)
        False
    """
    whole = hashlib.sha256(json.dumps({"format": FORMAT, **said}, sort_keys=True).encode())
    whole.update(safetensors_bytes({name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}))
    return whole.hexdigest()


class OutputsCache:
    """A file of outputs by the name of an image set, valid for one fingerprint.

    Args:
        path: The file.
        fingerprint: As `fingerprint_of` makes it.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

    def read(self) -> dict[str, Outputs] | None:
        """What `write` wrote; None where there is nothing, or what is there is stale or damaged."""
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
        """Replace the file, whole or not at all; where that cannot be, say so: it is for the next time alone."""
        tensors: dict[str, Tensor] = {}
        for name, of_set in outputs.items():
            tensors |= {f"{name}/logits": of_set.logits.contiguous(), f"{name}/features": of_set.features.contiguous()}
        try:
            write_atomically(self.path, safetensors_bytes(tensors, {"fingerprint": self.fingerprint}))
        except OSError as error:
            print(f"warning: logits and features are not kept for the next time: {error}", file=sys.stderr)
