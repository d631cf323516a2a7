"""Detectors as files: tensors by name, and settings as JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastood.common.extras import needed_for

__all__ = ["read_detector", "with_stored_layer", "write_detector"]


def write_detector(path: str | Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Write one safetensors file, whole or not at all.

    Args:
        path: The file; its folder is made.
        tensors: By name.
        said: What JSON can hold.
    """
    # Scoring needs no safetensors, so it is imported where it is needed.
    with needed_for("save"):
        from safetensors.torch import save

        from fastood.common.files import write_atomically

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(Path(path), save(contiguous, {"fastood": json.dumps(said)}))


def with_stored_layer(said: Mapping[str, Any], args: Sequence[object], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a constructor, with the layer that a file names.

    Args:
        said: What `read_detector` returned beside the tensors.
        args: `model` and `feature_layer`, as far as they are given by position.
        named: Keyword arguments. A layer named by the caller, and a call without a model, are left as they are.
    """
    has_model = (len(args) > 0 and args[0] is not None) or named.get("model") is not None
    layer = said.get("feature_layer")
    if layer is None or not has_model or len(args) > 1 or named.get("feature_layer") is not None:
        return dict(named)
    return {**named, "feature_layer": layer}


def read_detector(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_detector` wrote.

    Raises:
        ValueError: The file is not one of a detector.
        FileNotFoundError: There is no file.
    """
    with needed_for("load"):
        from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "fastood" not in metadata:
            raise ValueError(f"{path} is no file of a detector")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["fastood"])  # noqa: SIM118
