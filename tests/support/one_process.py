"""Process group of this process alone, whose collectives copy and do not wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def one_process(size: int = 1) -> Iterator[None]:
    """Stand in for `torch.distributed`, which has no backend for tensors of the emulated device.

    Args:
        size: Number of processes; the others have the tensors of this one.
    """

    def all_gather(parts: list[Tensor], own: Tensor, group: object = None) -> None:
        for part in parts:
            part.copy_(own)

    def all_gather_into_tensor(every: Tensor, own: Tensor, group: object = None) -> None:
        every.view(size, -1).copy_(own.view(1, -1).expand(size, -1))

    def all_gather_object(parts: list[object], own: object, group: object = None) -> None:
        parts[0] = own

    with ExitStack() as stack:
        if not torch.distributed.is_initialized():
            # Meshes of distributed tensors need a real group.
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
            stack.callback(torch.distributed.destroy_process_group)
        for name, value in (
            ("is_initialized", lambda: True),
            ("get_rank", lambda group=None: 0),
            ("get_world_size", lambda group=None: size),
            ("get_backend", lambda group=None: "nccl"),
            ("all_reduce", lambda tensor, group=None: None),
            ("all_gather", all_gather),
            ("all_gather_into_tensor", all_gather_into_tensor),
            ("get_backend_config", lambda group=None: "cpu:gloo,cuda:gloo"),
            ("all_gather_object", all_gather_object),
        ):
            stack.enter_context(mock.patch.object(torch.distributed, name, value))
        yield
