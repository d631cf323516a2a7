"""The background pool: a weight for every example, draws that follow the weights, and steps that change them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_device, as_flag
from fastood.ops._arrays import Values
from fastood.samplers import pool_checks
from fastood.samplers.queries import PoolQueries
from fastood.samplers.sharded import ShardedBackgroundPool
from fastood.samplers.sharded import shard as shard_pool
from fastood.samplers.softplus import inverse_softplus, inverse_softplus_of
from fastood.samplers.state import AscentMode, PoolState
from fastood.samplers.storage import map_tensors, save_tensors
from fastood.samplers.without_replacement import draw_distinct

__all__ = ["BackgroundPool"]


class BackgroundPool(PoolQueries):
    r"""A weight for each background example, learnt adversarially, and draws that follow the weights.

    Weights are `w_i = softplus(ω_i) > 0` (supplementary, section C). One step of Algorithm 1 is a draw, a forward pass
    of the network on the drawn examples, and an ascent step on the loss they caused; the next draw sees the new
    weights. A draw does not feel the pool's size, nor does a step of `mode="sparse"`; 10^9 examples take 8.1 GB.

    Ambiguities and differences, and what is done here:
        - The paper starts at `w = 1`, its code at `ω = 0` (`w = log 2`); both objectives and draws depend on ratios of
          weights alone, but the size of a step does not. The paper's start is the default (`initial_weight`).
        - The paper ascends the gradient of `l_out`, its code that of `α l_out`, with the same step size 100. The
          paper's is done; pass `lr=alpha * 100` for the code's.
        - Algorithm 1 writes the step in `w`, section C in `ω`; it is done in `ω`, with the momentum of the code (0.9),
          of which the paper says nothing. `momentum=0` is plain ascent.
        - The authors draw a whole epoch ahead from the weights at its start; here every draw is fresh. For theirs,
          take the indices of one large `sample` batch by batch, with `importance` for the weights of the moment.

    Args:
        num_examples: N >= 1, the size of the pool.
        epsilon: ε in [0, 1], how much of a weight goes into the draw (supplementary eq. 11); the rest goes into the
            importance (eq. 12). At ε = 1 draws follow the weights themselves, which then have no gradient.
        momentum: Of the ascent, in [0, 1).
        initial_weight: `w` at the start, in [1e-30, 1e6].
        device: Where weights live and indices are drawn.

    Raises:
        TypeError: A number is none.
        ValueError: An argument is out of range, or `num_examples` no int.
        MemoryError: A pool of this size does not fit.

    Example:
        >>> import torch
        >>> pool = BackgroundPool(num_examples=5)
        >>> generator = torch.Generator().manual_seed(0)
        >>> index, importance = pool.sample(4, generator=generator)
        >>> per_sample_loss = (index == 0).float()  # only example 0 fools the network
        >>> pool.ascend(index, per_sample_loss, lr=1.0)
        >>> int(pool.weights.argmax())
        0
    """

    def __init__(
        self,
        num_examples: int,
        *,
        epsilon: float = 0.5,
        momentum: float = 0.9,
        initial_weight: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        num_examples, self.epsilon, self.momentum, initial_weight = pool_checks.checked_options(
            num_examples, epsilon, momentum, initial_weight
        )
        device = as_device("device", device)
        with allocating(f"num_examples {num_examples}"):
            self._state = PoolState.uniform(num_examples, inverse_softplus(initial_weight), self.epsilon, device)

    @classmethod
    def from_weights(
        cls, weights: Values, *, epsilon: float = 1.0, momentum: float = 0.9, device: torch.device | str | None = None
    ) -> BackgroundPool:
        """Return a pool that begins with these weights, where `torch.utils.data.WeightedRandomSampler` would take them.

        Draws and importance depend on ratios of weights alone. So weights of any scale are taken, in which the smallest
        above 0 is at least 1e-36 of the largest: where one is outside [1e-30, 1e6], all are multiplied by a power of
        two, which changes no ratio, and `weights` gives them so multiplied. (A step of `ascend`, at ε below 1, then
        starts from these.) Each weight is kept to 5e-6 of its value or closer, which is what ω has in float32.

        Args:
            weights: `[N]`, finite and >= 0: a tensor of any real dtype, an array or a list, such as class counts. An
                example of weight 0 is never drawn and never learns.
            epsilon: As for the class; the default draws by the weights as they are.
            momentum: As for the class.
            device: As for the class; None for that of `weights`.

        Raises:
            TypeError: `weights` is no tensor, array or list of numbers.
            ValueError: `weights` is not 1-D, empty or all zero; a weight is negative, NaN or infinite, or below 1e-36
                of the largest.

        Example:
            >>> pool = BackgroundPool.from_weights(torch.tensor([0.0, 3.0, 0.0]))
            >>> pool.sample(4, generator=torch.Generator())[0].tolist()
            [1, 1, 1, 1]
        """
        found = pool_checks.checked_weights(weights)
        pool = cls(found.numel(), epsilon=epsilon, momentum=momentum, device=found.device if device is None else device)
        omega = inverse_softplus_of(found).float()
        pool._state = pool._state.take(omega, None, pool.epsilon)
        return pool

    @classmethod
    def from_file(cls, path: str | PathLike[str], *, device: torch.device | str = "cpu") -> BackgroundPool:
        """The pool that `save` wrote, ready to go on bit for bit; the file is mapped, not read as a whole.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or holds something else.
        """
        state, options = map_tensors(Path(path))
        pool_checks.check_file(path, state, options)
        pool = cls(
            state["omega"].numel(),
            epsilon=float(options["epsilon"]),
            momentum=float(options["momentum"]),
            device=device,
        )
        pool.load_state_dict(state)
        return pool

    def save(self, path: str | PathLike[str]) -> None:
        """Write ε, momentum and `state_dict` as a safetensors file, whole or not at all, without a copy of the state.

        Raises:
            OSError: The folder cannot be written.
        """
        options = {"epsilon": repr(self.epsilon), "momentum": repr(self.momentum)}
        save_tensors(Path(path), self._state.leaves(), options)

    def __repr__(self) -> str:
        return f"BackgroundPool({len(self)}, epsilon={self.epsilon}, momentum={self.momentum}, device={self.device})"

    def sample(
        self, batch_size: int, *, generator: torch.Generator, replacement: bool = True, stratified: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw examples with probability `w_i^ε / Σ w^ε` (supplementary eq. 11).

        Each draw takes one 53-bit uniform: float32 uniforms could not reach every example of a pool beyond 2^24.
        Probabilities are those of the float32 weights, rounded to 2^-47 or less; sums of them do not round at all.

        Args:
            batch_size: B >= 1.
            generator: On the pool's device; there is no default.
            replacement: False draws distinct examples by successive sampling: each by mass among those not drawn yet.
                Waits for the device. `importance` is the same: with it the mean loss is no longer unbiased.
            stratified: Draw b takes its uniform from `[b/B, (b+1)/B)`: the same expectations at a variance never above
                that of independent draws. Indices come in ascending order.

        Returns:
            index: int64 `[B]`.
            importance: float32 `[B]`, as `importance` gives it.

        Raises:
            TypeError: `generator` is none, or `replacement` or `stratified` no bool.
            MemoryError: A batch of this size does not fit.
            ValueError: `generator` is on another device; `batch_size` is no int or below 1; distinct draws are more
                than the examples with weight, or shall be stratified.
        """
        batch_size = pool_checks.integer("batch_size", batch_size)
        state = self._state
        pool_checks.check_generator(generator, state.omega.device)
        replacement, stratified = as_flag("replacement", replacement), as_flag("stratified", stratified)
        if not replacement:
            return self._sample_distinct(batch_size, generator=generator, stratified=stratified)
        with allocating(f"batch_size {batch_size}"):
            uniform = torch.rand(batch_size, dtype=torch.float64, device=state.omega.device, generator=generator)
        if not stratified:
            return ops.pool_draw(state.omega, state.masses, state.stats, uniform, self.epsilon)  # type: ignore[no-any-return]
        strata = torch.arange(batch_size, dtype=torch.float64, device=self.device)
        index = state.find((strata + uniform) / batch_size, self.epsilon)
        return index, self.importance(index)

    def _sample_distinct(
        self, batch_size: int, *, generator: torch.Generator, stratified: bool
    ) -> tuple[Tensor, Tensor]:
        if stratified:
            raise ValueError("stratified draws cannot be distinct: stratified=True needs replacement=True")
        if batch_size > self._state.drawable:
            raise ValueError(
                f"batch_size must be at most the {self._state.drawable} examples with weight when "
                f"replacement=False, got {batch_size}"
            )
        index = draw_distinct(
            lambda count: self.sample(count, generator=generator)[0],
            lambda: self.weights.pow(self.epsilon).masked_fill_(self._state.omega == -torch.inf, 0.0),
            batch_size,
            generator=generator,
        )
        return index, self.importance(index)

    def importance(self, index: Tensor) -> Tensor:
        """The factor by which the loss of a drawn example counts, `r_i = (Σ w^ε / Σ w) w_i^(1-ε)` (suppl. eq. 12).

        The mean of `r_i l_i` over draws is the weighted loss of eq. 14 over the pool.

        Args:
            index: int64 `[B]`, each in `0 … N - 1`.

        Returns:
            float32 `[B]`, of the weights as they are now.

        Raises:
            TypeError: `index` is no int64 tensor.
            ValueError: An index is out of range.

        Example:
            >>> BackgroundPool(num_examples=5).importance(torch.tensor([0, 3]))
            tensor([1., 1.])
        """
        pool_checks.check_index(index, empty=True)
        index = index.to(self.device).contiguous()
        pool_checks.check_index_range(index, len(self))
        return ops.pool_importance(self._state.omega, self._state.stats, index, self.epsilon).float()  # type: ignore[no-any-return]

    def ascend(self, index: Tensor, per_sample_loss: Tensor, *, lr: float, mode: AscentMode = "exact") -> None:
        r"""Take one step of gradient ascent on the weighted loss of the batch.

        The loss is `L = 1/B Σ_b r_{i_b} l_b` with `r` as in `sample`, whose normalisers depend on every weight. Its
        gradient needs no second backward pass through the network: with `Z = Σ w^ε` and `S = Σ w`,

            ∂L/∂ω_j = sigmoid(ω_j) { L (ε w_j^(ε-1) / Z - 1/S) + (1-ε) w_j^(-ε) (Z/S) (1/B) Σ_{b: i_b = j} l_b }

        and the step is `velocity ← momentum · velocity + gradient; ω ← ω + lr · velocity`, what `torch.optim.SGD` would
        do with autograd's gradient of `-L`. ω stays in `OMEGA_MIN … OMEGA_MAX`.

        Args:
            index: int64 `[B]`, as drawn by `sample`; an example drawn twice counts twice.
            per_sample_loss: Floating-point `[B]`, `l_b >= 0`, as returned by the losses of `fastood.losses`.
            lr: Step size η_w > 0; the paper uses 100.
            mode: "exact" moves every weight, in one pass over the pool. "sparse" takes the coordinates of the same
                gradient that were drawn: all others keep weight and velocity, and the cost does not depend on N.

        Raises:
            TypeError: `index` or `per_sample_loss` has the wrong dtype.
            ValueError: Empty batch, shapes that differ, an index outside `0 … N - 1`, a loss that is negative, NaN or
                infinite, `lr` out of range, a step beyond float32, or ε = 1. The pool is unchanged then.
        """
        lr = pool_checks.checked_ascent(index, per_sample_loss, lr, mode)
        pool_checks.check_learns(self.epsilon)
        self._state.ascend(index, per_sample_loss, self.epsilon, self.momentum, lr, sparse=mode == "sparse")

    def shard(self, rank: int, world_size: int, *, group: dist.ProcessGroup | None = None) -> ShardedBackgroundPool:
        """Return the slice of this pool that one of several processes owns; the pool itself is not needed any more.

        Every process of the group calls it with the same pool.

        Args:
            rank: Of this process in the group.
            world_size: Processes in the group.
            group: As `torch.distributed` knows it; None for the default one.

        Raises:
            RuntimeError: No process group has been set up.
            ValueError: `rank` or `world_size` are not those of the group, the pools of the processes differ, or there
                are more processes than examples; on every process.
        """
        return shard_pool(self, rank, world_size, group=group)

    def state_dict(self) -> dict[str, Tensor]:
        """Return ω and its velocity, float32 `[N]`, and what sums are rounded by, float64 `[4]`: flat tensors, copied.

        A pool that loads them makes bit for bit the same draws and steps.
        """
        return {name: tensor.clone() for name, tensor in self._state.leaves().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned, from a pool of the same size.

        Args:
            state: `omega` and `velocity`; without `scale`, sums are rounded anew: the same weights, other last bits.

        Raises:
            KeyError: A tensor is missing.
            ValueError: A tensor has another size or dtype, or a value that is not finite, or no example has weight.
                The pool is unchanged then.
        """
        pool_checks.check_state(state, len(self))
        self._state = self._state.take(state["omega"], state["velocity"], self.epsilon, scale=state.get("scale"))
