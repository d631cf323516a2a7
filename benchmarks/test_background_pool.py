"""One resampling step of the pool, without the network: draw, then a step on every weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness import Comparison, compare

from fastood.samplers import BackgroundPool


@pytest.mark.parametrize("size", [50_000, 1_280_000])
def test_draw_and_ascend(
    size: int,
    device: str,
    budget: dict[str, float],
    record: Callable[[Comparison, Callable[[], object]], None],
) -> None:
    batch_size = 128
    generator = torch.Generator(device).manual_seed(0)
    pool = BackgroundPool(size, device=device)
    loss = torch.rand(batch_size, generator=generator, device=device)
    omega = torch.zeros(size, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([omega], lr=100, momentum=0.9, maximize=True)

    def ours() -> None:
        index, _ = pool.sample(batch_size, generator=generator)
        pool.ascend(index, loss, lr=100)

    def autograd() -> None:
        """The authors' objective with weights as fresh as ours: multinomial, then autograd over every weight."""
        w = F.softplus(omega)
        index = torch.multinomial(w.detach().sqrt(), batch_size, replacement=True, generator=generator)
        importance = w.sqrt().mean() / w.mean() * w[index].sqrt()
        optimizer.zero_grad()
        (importance * loss).mean().backward()
        optimizer.step()

    providers = {"fastood": ours, "multinomial + autograd": autograd}
    comparison = compare(
        "background pool, draw 128 and ascend", f"{size}", providers, subject="fastood", device=device, **budget
    )
    record(comparison, ours)
