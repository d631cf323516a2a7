"""Switch of the emulated device.

Example:
    with emulated_cuda():
        x = torch.randn(8, 10, device="cuda", requires_grad=True)
        fastood.ops.logit_scores(x, scores=["msp"])
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from tests.emulation import streams
from tests.emulation.engine import autograd_knows_the_device
from tests.emulation.factories import factories_on_the_device
from tests.emulation.patches import pytorch_knows_the_device

_depth = 0


def is_on() -> bool:
    """Return whether the emulated device is on."""
    return _depth > 0


@contextmanager
def emulated_cuda() -> Iterator[None]:
    """Give PyTorch a device "cuda", and take it away again.

    Tensors of the device cannot be used afterwards. A nested call has no effect.

    Raises:
        RuntimeError: If there is a GPU; at the end of the block, if memory was freed while a stream could still use it.
    """
    global _depth
    if _depth == 0 and torch.cuda.is_available():
        raise RuntimeError("there is a GPU: the emulated device would hide it (CUDA_VISIBLE_DEVICES= hides it too)")
    with ExitStack() as stack:
        if _depth == 0:
            stack.enter_context(autograd_knows_the_device())
            stack.enter_context(factories_on_the_device())
            stack.enter_context(pytorch_knows_the_device())
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
    if _depth == 0 and streams.FAULTS:
        faults, streams.FAULTS[:] = list(streams.FAULTS), []
        raise RuntimeError("\n".join(faults))
