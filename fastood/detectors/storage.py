"""Files of detectors: tensors by name, and metadata as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastood.common.extras import needed_for

__all__ = ["read_detector", "with_stored_layer", "write_detector"]


def write_detector(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata as one safetensors file, atomically.

    Args:
        path: The file; its folder is created.
        tensors: Tensors by name.
        metadata: Values that JSON can represent.
    """
    # safetensors is optional: scoring works without it.
    with needed_for("save"):
        from safetensors.torch import save

        from fastood.common.files import write_atomically

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(Path(path), save(contiguous, {"fastood": json.dumps(metadata)}))


def with_stored_layer(metadata: Mapping[str, Any], args: Sequence[object], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a constructor with the layer named in a file.

    Args:
        metadata: Metadata from `read_detector`.
        args: Positional arguments, `model` and `feature_layer`.
        named: Keyword arguments. They are returned unchanged if the caller names a layer or passes no model.
    """
    has_model = (len(args) > 0 and args[0] is not None) or named.get("model") is not None
    layer = metadata.get("feature_layer")
    if layer is None or not has_model or len(args) > 1 or named.get("feature_layer") is not None:
        return dict(named)
    return {**named, "feature_layer": layer}


def read_detector(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata of a file written by `write_detector`.

    Raises:
        ValueError: If the file was not written by a detector.
        FileNotFoundError: If there is no such file.
    """
    with needed_for("load"):
        from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if "fastood" not in header:
            raise ValueError(f"{path} was not written by a detector")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["fastood"])  # noqa: SIM118
