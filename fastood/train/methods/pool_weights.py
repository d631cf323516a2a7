"""Learnt weights of a background pool, and the images that they are of."""

import json
import warnings
from pathlib import Path

from safetensors import safe_open

BACKGROUND_KEY = "background_sha256"
"""Name under which pool.safetensors keeps the SHA-256 of its images."""


def require_same_background(path: Path, background: str) -> None:
    """Refuse weights that were learnt of other images than a run's background.

    Files from before the SHA-256 was kept in them are known by data.json beside them; where that is missing, too, a
    warning says that nothing could be compared.

    Args:
        path: pool.safetensors of a run.
        background: SHA-256 of the background, as `ImageSet.sha256` tells.

    Raises:
        ValueError: The weights are of other images; both are named.
    """
    with safe_open(path, framework="pt") as file:
        known = (file.metadata() or {}).get(BACKGROUND_KEY) or _background_of_run(path.parent)
    if known is None:
        warnings.warn(
            f"pool_weights {path} do not say of which background images they are, nor does a data.json beside them: "
            "that the images and their order are those of data.background could not be checked",
            stacklevel=2,
        )
    elif known != background:
        raise ValueError(
            f"pool_weights must be of the images of data.background in their order, at the same size and number of "
            f"channels, which have sha256 {background}, got {path}, of images with sha256 {known}; the embedded "
            "background is another with every seed"
        )


def _background_of_run(folder: Path) -> str | None:
    """SHA-256 of a run's background by its data.json, None where there is none."""
    try:
        digest = json.loads((folder / "data.json").read_text(encoding="utf-8"))["background"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) else None
