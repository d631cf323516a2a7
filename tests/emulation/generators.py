"""Random generators of the emulated device: generators of the CPU whose device is cuda."""

from typing import Any
from weakref import WeakValueDictionary

import torch

_of_device: "WeakValueDictionary[int, DeviceGenerator]" = WeakValueDictionary()


class DeviceGenerator(torch._C.Generator):
    """A generator of the CPU whose `device` is cuda:0."""

    def __init__(self) -> None:
        # An op gets another Python object for the generator that it was given: the address tells them apart.
        _of_device[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0")

    def clone_state(self) -> "DeviceGenerator":
        """Return a generator with the same state."""
        clone = DeviceGenerator()
        clone.set_state(self.get_state())
        return clone


class _OnAnyDevice(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __call__(cls, device: str | torch.device = "cpu") -> torch._C.Generator:
        return DeviceGenerator() if torch.device(device).type == "cuda" else torch._C.Generator(device)


class Generator(metaclass=_OnAnyDevice):
    """A stand-in for `torch.Generator`, which knows the device cuda only where there is a GPU."""


default = DeviceGenerator()


def device_generator(generator: torch._C.Generator | None, op: str) -> DeviceGenerator:
    """Return the generator of the device that an op draws from.

    Raises:
        RuntimeError: If `generator` is on the CPU, or if a CUDA graph is being captured and `generator` is not None.
    """
    from tests.emulation import graphs

    if generator is None:
        return default
    found = _of_device.get(generator._cdata)
    if found is None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({op})")
    if graphs.capturing() is not None:
        raise RuntimeError(f"{op}: CUDA graphs of the emulated device draw from the default generator alone")
    return found


def call_with_default(func: Any, args: Any, kwargs: Any) -> Any:
    """Call an op that draws from the generator of its device, and leave the generator of the CPU as it was."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func(*args, **{**kwargs, "generator": default})
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(default.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        default.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)
