"""Position of a batch sampler in its epoch, and the generator of its draws: what a checkpoint of the sampler holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastood.samplers import pool_checks
from fastood.samplers.digests import digest

__all__ = ["DrawProgress"]

_ENTRIES = ("epoch", "batches", "examples", "first_state", "generator", "order")


class DrawProgress:
    """Position in an epoch, and the generator of the draws.

    Args:
        generator: Source of the draws, which is kept by reference.

    Attributes:
        generator: Source of the draws.
        batches: Batches drawn in this epoch.
        examples: Examples drawn in this epoch over all ranks.
        order: Examples of an epoch without replacement that are left, int64; None before they are drawn.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._first_state = generator.get_state()
        self._epoch: int | None = None
        self._is_loaded = False
        self.restart()

    def restart(self) -> None:
        """Set the position to the start of an epoch."""
        self.batches, self.examples = 0, 0
        self.order: Tensor | None = None

    def begin(self) -> None:
        """Begin an iteration: at the start of an epoch, or at the position of a state that was loaded before it."""
        if not self._is_loaded:
            self.restart()
        self._is_loaded = False

    def advance(self, examples: int) -> None:
        """Count a batch.

        Args:
            examples: Examples of the batch over all ranks.
        """
        self.batches += 1
        self.examples += examples

    def set_epoch(self, epoch: int) -> None:
        """Put the generator into the state of an epoch; see `BackgroundPoolSampler.set_epoch`."""
        epoch = pool_checks.integer("epoch", epoch, 0)
        if self._is_loaded and epoch == self._epoch:
            return
        self._epoch, self._is_loaded = epoch, False
        self.restart()
        if epoch == 0:
            self.generator.set_state(self._first_state)
            return
        content = self._first_state.numpy().tobytes() + epoch.to_bytes(8, "big")
        self.generator.manual_seed(digest(content))

    def state_dict(self) -> dict[str, Any]:
        """Return position and generator; see `BackgroundPoolSampler.state_dict`."""
        return {
            "epoch": self._epoch,
            "batches": self.batches,
            "examples": self.examples,
            "first_state": self._first_state.clone(),
            "generator": self.generator.get_state(),
            "order": self.order,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, num_examples: int, device: torch.device) -> None:
        """Resume from a state; see `BackgroundPoolSampler.load_state_dict` for the errors.

        Args:
            state: State that `state_dict` returned.
            num_examples: Size of the pool.
            device: Device of the pool.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping as state_dict returns it, got {type(state).__name__}")
        missing = [name for name in _ENTRIES if name not in state]
        if missing:
            raise KeyError(f"state must hold {', '.join(map(repr, missing))}, got {sorted(map(str, state))}")
        epoch, batches, examples = (
            None if state[name] is None and name == "epoch" else pool_checks.integer(f"state[{name!r}]", state[name], 0)
            for name in ("epoch", "batches", "examples")
        )
        order = state["order"]
        if order is not None:
            pool_checks.check_index(order, empty=True)
            if order.numel() > 0:
                pool_checks.check_excess(
                    pool_checks.index_excess(order, num_examples).tolist(), num_examples=num_examples
                )
        trial = torch.Generator(self.generator.device)
        for name in ("first_state", "generator"):
            try:
                # Checkpoints that were loaded onto a device hold the state there; generators take it from the host.
                trial.set_state(state[name].cpu())
            except (AttributeError, RuntimeError, TypeError) as error:
                raise ValueError(
                    f"state[{name!r}] must be a state of a generator on {trial.device}: {error}"
                ) from error
        self._epoch, self.batches, self.examples = epoch, batches or 0, examples or 0
        self.order = None if order is None else order.to(device)
        self._first_state = state["first_state"].cpu().clone()
        self.generator.set_state(state["generator"].cpu())
        self._is_loaded = True
