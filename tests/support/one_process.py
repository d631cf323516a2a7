"""Process group of this process alone, whose collectives copy and do not wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def one_process() -> Iterator[None]:
    """Stand in for `torch.distributed`, which has no backend for tensors of the emulated device."""

    def all_gather(parts: list[Tensor], own: Tensor, group: object = None) -> None:
        parts[0].copy_(own)

    def all_gather_into_tensor(whole: Tensor, own: Tensor, group: object = None) -> None:
        whole.copy_(own.view_as(whole))

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
            ("get_world_size", lambda group=None: 1),
            ("all_reduce", lambda tensor, group=None: None),
            ("all_gather", all_gather),
            ("all_gather_into_tensor", all_gather_into_tensor),
            ("get_backend_config", lambda group=None: "cpu:gloo,cuda:gloo"),
            ("all_gather_object", all_gather_object),
        ):
            stack.enter_context(mock.patch.object(torch.distributed, name, value))
        yield
