"""A device "cuda" without a GPU: tensors in host memory that behave as on a GPU, and the emulated kernels of `csrc`.

- `device.py`: `emulated_cuda()` switches the device on. `patches.py`, `factories.py` and `engine.py` hold its parts.
- `tensor.py`: the tensors; `rules.py`: operands that a GPU refuses, and ops for which the host waits.
- `waits.py`: `count_host_waits()`; `streams.py`: streams, events, races between streams; `graphs.py`: CUDA graphs.
- `kernels.py`: the shared object of `csrc/emulation`, its settings and counters.
- `plugin.py`: the pytest plugin; `run.py`: any module or script with the device on.
"""
