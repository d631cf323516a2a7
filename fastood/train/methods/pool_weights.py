"""Check that learnt weights of a background pool belong to a run's images."""

import json
import warnings
from pathlib import Path

from safetensors import safe_open

BACKGROUND_KEY = "background_sha256"
"""Name under which pool.safetensors keeps the SHA-256 of its images."""


def require_same_background(path: Path, background: str) -> None:
    """Check that weights were learnt on the images of a run's background.

    Files that hold no SHA-256 are identified by data.json next to them; if that is missing, too, a warning says that
    the images could not be compared.

    Args:
        path: pool.safetensors of a run.
        background: SHA-256 of the background, as returned by `ImageSet.sha256`.

    Raises:
        ValueError: If the weights belong to other images; the error names both.
    """
    with safe_open(path, framework="pt") as file:
        digest = (file.metadata() or {}).get(BACKGROUND_KEY) or _background_of_run(path.parent)
    if digest is None:
        warnings.warn(
            f"pool_weights {path} do not say to which background images they belong, nor does a data.json next to "
            "them: that the images and their order are those of data.background could not be checked",
            stacklevel=2,
        )
    elif digest != background:
        raise ValueError(
            f"pool_weights must be of the images of data.background in their order, at the same size and number of "
            f"channels, which have sha256 {background}, got {path}, of images with sha256 {digest}; the embedded "
            "background differs between seeds"
        )


def _background_of_run(folder: Path) -> str | None:
    """Return the SHA-256 of a run's background from its data.json, None if there is none."""
    try:
        digest = json.loads((folder / "data.json").read_text(encoding="utf-8"))["background"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) else None
