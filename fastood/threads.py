"""Number of threads of a run: part of its configuration, since sums depend on how they are shared out."""

import sys

import torch

SMALL_NETWORKS = ("small-cnn", "lenet-5", "oe-cnn")
"""Networks whose steps, on images of at most `SMALL_IMAGES`, are too short to be shared by threads."""
SMALL_IMAGES = 32


def default_threads(*, device: str, network: str, image_size: int | None) -> int:
    """Return the number of threads of a run that names none: decided by what it computes, never by the machine's load.

    Args:
        device: "cpu" or "cuda".
        network: Name of the network.
        image_size: Height and width of the images in pixels; None for small ones that come as they are.

    Returns:
        1 for a small network on the CPU, else PyTorch's own number, which follows the cores and OMP_NUM_THREADS.

    Example:
        >>> default_threads(device="cpu", network="small-cnn", image_size=None)
        1
    """
    is_small = network in SMALL_NETWORKS and (image_size is None or image_size <= SMALL_IMAGES)
    return 1 if device == "cpu" and is_small else torch.get_num_threads()


def threads_to_resume(asked: int | None, begun: int | None, default: int | None) -> int | None:
    """Return the number of threads that a run goes on with: as it began, unless another is asked for.

    Args:
        asked: The number given to the command; None for none.
        begun: The number that the run began with; None of a run that did not keep it.
        default: The number of a new run.

    Another number than the run began with is warned of on stderr: the result then differs in its last digits.
    """
    if asked is not None and begun is not None and asked != begun:
        print(
            f"warning: the run began with threads={begun} and goes on with threads={asked}: sums are then rounded "
            "differently, and its result is that of neither number alone",
            file=sys.stderr,
        )
    return next((number for number in (asked, begun) if number is not None), default)
