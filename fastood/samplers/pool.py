"""Background pool: a weight for every example, draws that follow the weights, and ascent steps that change them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.transfer import to_device
from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_device, as_flag
from fastood.ops._arrays import Values
from fastood.samplers import pool_checks
from fastood.samplers.ascent_batch import AscentBatch
from fastood.samplers.deferred import DeferredChecks, Origin
from fastood.samplers.queries import PoolQueries
from fastood.samplers.sharded import ShardedBackgroundPool
from fastood.samplers.softplus import inverse_softplus, inverse_softplus_of
from fastood.samplers.state import AscentMode, PoolState
from fastood.samplers.storage import map_tensors, save_tensors
from fastood.samplers.without_replacement import draw_distinct, draw_earliest

__all__ = ["BackgroundPool"]


class BackgroundPool(PoolQueries):
    r"""Pool of background examples with weights that are learnt adversarially and determine the draws.

    Weights are `w_i = softplus(ω_i) > 0` (Li & Vasconcelos 2020, supplementary section C,
    https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html).
    One step of Algorithm 1 is a draw, a forward pass of the network on the drawn examples, and an ascent step on their
    losses; the next draw uses the new weights. The cost of a draw, and of a step with `mode="sparse"`, hardly depends
    on the size of the pool; 10^9 examples take 8.1 GB.

    On a CUDA device no call of `sample`, `importance` or `ascend` waits for the device (docs/host_waits.md lists every
    call). The device checks the values of a batch and ignores a batch that is wrong; the ValueError is raised by a
    later call: by the next `ascend`, `state_dict` or `save`, or sooner, by a `sample` or `importance` that finds the
    result of the check on the host already. `synchronize` waits for it. The call that raises does nothing itself, and
    works when it is repeated. An error that no later call has raised is lost with the pool: call
    `synchronize` after the last step of a loop that ends without one of these calls. On the CPU every error is raised
    by the call that it concerns.

    Ambiguities and differences, and how they are resolved:
        - The paper starts at `w = 1`, its code at `ω = 0` (`w = log 2`). Objectives and draws depend only on ratios of
          weights, but the size of a step does not. The paper's start is the default (`initial_weight`).
        - The paper ascends the gradient of `l_out`, its code the gradient of `α l_out`, both with step size 100. This
          class follows the paper; pass `lr=alpha * 100` for the step of the code.
        - Algorithm 1 takes the step in `w`, section C in `ω`. Here it is in `ω`, with the momentum of the code (0.9),
          which the paper does not mention. `momentum=0` is plain ascent.
        - The authors draw a whole epoch ahead with the weights at its start; here every draw uses the current weights.
          For the authors' scheme, take the indices of one large `sample` batch by batch, and call `importance` on each.

    Args:
        num_examples: N >= 1, the size of the pool.
        epsilon: ε in [0, 1]: examples are drawn in proportion to w^ε (supplementary eq. 11), and the importance is
            proportional to w^(1-ε) (eq. 12). At ε = 1 draws follow the weights themselves, which then have no gradient.
        momentum: Momentum of the ascent, in [0, 1).
        initial_weight: Initial w of every example, in [1e-30, 1e6].
        device: Device of the weights and of the drawn indices.

    Attributes:
        epsilon: ε, a float.
        momentum: Momentum, a float.

    Raises:
        TypeError: If a number is not one.
        ValueError: If an argument is out of range, or `num_examples` is not an int.
        MemoryError: If a pool of this size does not fit into memory.

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
        self._checks = DeferredChecks(self.device)

    @classmethod
    def from_weights(
        cls, weights: Values, *, epsilon: float = 1.0, momentum: float = 0.9, device: torch.device | str | None = None
    ) -> BackgroundPool:
        """Return a pool with these initial weights, as `torch.utils.data.WeightedRandomSampler` takes them.

        Draws and importance depend only on ratios of weights. Weights of any scale are therefore accepted, as long as
        the smallest above 0 is at least 1e-36 times the largest: if one is outside [1e-30, 1e6], all are multiplied by
        the same power of two, which changes no ratio. The property `weights` returns the multiplied values, and
        `ascend` at ε < 1 starts from them. Each weight is stored with a relative error of at most 5e-6, because ω is
        float32.

        Args:
            weights: `[N]`, finite and >= 0: a tensor of any real dtype, an array or a list, such as class counts. An
                example of weight 0 is never drawn and never learns.
            epsilon: ε in [0, 1]; at the default of 1 draws are proportional to the weights.
            momentum: Momentum of the ascent, in [0, 1).
            device: Device of the pool; None for the device of `weights`.

        Raises:
            TypeError: If `weights` is not a tensor, array or list of numbers.
            ValueError: If `weights` is not 1-D, is empty or all zero, or a weight is negative, NaN, infinite or below
                1e-36 of the largest.

        Example:
            >>> pool = BackgroundPool.from_weights(torch.tensor([0.0, 3.0, 0.0]))
            >>> pool.sample(4, generator=torch.Generator())[0].tolist()
            [1, 1, 1, 1]
        """
        initial = pool_checks.checked_weights(weights)
        device = initial.device if device is None else device
        pool = cls(initial.numel(), epsilon=epsilon, momentum=momentum, device=device)
        # Computed in float64 and rounded once: the parameters of a pool are float32.
        omega = inverse_softplus_of(initial).float()
        pool._state = pool._state.take(omega, None, pool.epsilon)
        return pool

    @classmethod
    def from_file(cls, path: str | PathLike[str], *, device: torch.device | str = "cpu") -> BackgroundPool:
        """Return the pool that `save` wrote; its draws and steps continue with identical bits.

        The file is mapped into memory, not read as a whole.

        Args:
            path: Path of the file.
            device: Device of the pool.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or not a background pool.
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
        """Write ε, momentum and the state as a safetensors file, atomically and without a copy of the state.

        Args:
            path: Path of the file; an existing one is replaced.

        Raises:
            OSError: If the folder cannot be written.
        """
        self._checks.settle()
        options = {"epsilon": repr(self.epsilon), "momentum": repr(self.momentum)}
        save_tensors(Path(path), self._state.leaves(), options)

    def __repr__(self) -> str:
        return f"BackgroundPool({len(self)}, epsilon={self.epsilon}, momentum={self.momentum}, device={self.device})"

    def sample(
        self, batch_size: int, *, generator: torch.Generator, replacement: bool = True, stratified: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw a batch of examples with probability `w_i^ε / Σ w^ε` (supplementary eq. 11).

        Each draw uses one 53-bit uniform number: float32 numbers cannot reach every example of a pool beyond 2^24.
        Probabilities are those of the float32 weights, rounded to 2^-47 or less; their sums are exact.

        Args:
            batch_size: B >= 1.
            generator: Source of the draws, on the device of the pool; there is no default.
            replacement: False draws distinct examples by successive sampling: each in proportion to `w^ε` among the
                examples not drawn yet. `importance` is computed as with replacement, so that the mean loss is no longer
                unbiased. On a CUDA device the same distribution is drawn by other random numbers than on the CPU, in
                `O(min(64 B, N) log N)` time and memory.
            stratified: Take the uniform number of draw b from `[b/B, (b+1)/B)`: equal expectations, and a variance
                never above that of independent draws. The indices are in ascending order.

        Returns:
            index: int64 `[B]`.
            importance: float32 `[B]`, as the method `importance` returns it.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or `replacement` or `stratified` not a bool.
            ValueError: If `generator` is on another device, `batch_size` is not an int or below 1, or distinct draws
                exceed the number of examples with weight or are stratified. On a CUDA device also the error of an
                earlier call.
            MemoryError: If a batch of this size does not fit into memory.
        """
        batch_size = pool_checks.integer("batch_size", batch_size)
        state = self._state
        pool_checks.check_generator(generator, state.omega.device)
        replacement, stratified = as_flag("replacement", replacement), as_flag("stratified", stratified)
        self._checks.poll()
        if not replacement:
            return self._sample_distinct(batch_size, generator=generator, stratified=stratified)
        with allocating(f"batch_size {batch_size}"):
            uniform = torch.rand(batch_size, dtype=torch.float64, device=state.omega.device, generator=generator)
        if not stratified:
            return ops.pool_draw(state.omega, state.masses, state.stats, uniform, self.epsilon)  # type: ignore[no-any-return]
        # (b + u) / B of an ascending b: the draws are sorted, and each stratum of mass 1/B has exactly one.
        strata = torch.arange(batch_size, dtype=torch.float64, device=self.device)
        index = state.find((strata + uniform) / batch_size, self.epsilon)
        return index, self._importance(index)

    def _sample_distinct(
        self, batch_size: int, *, generator: torch.Generator, stratified: bool
    ) -> tuple[Tensor, Tensor]:
        pool_checks.check_distinct(batch_size, self._state.drawable, stratified=stratified)
        if self.device.type == "cuda":
            with allocating(f"batch_size {batch_size}"):
                index = draw_earliest(self._state, self.epsilon, batch_size, generator=generator)
        else:
            index = draw_distinct(
                lambda count: self.sample(count, generator=generator)[0],
                lambda: self._state.exact_masses(self._state.omega, self.epsilon),
                batch_size,
                generator=generator,
            )
        return index, self._importance(index)

    def _importance(self, index: Tensor) -> Tensor:
        return ops.pool_importance(self._state.omega, self._state.stats, index, self.epsilon).float()  # type: ignore[no-any-return]

    def importance(self, index: Tensor) -> Tensor:
        """Return the importance weights of drawn examples, `r_i = (Σ w^ε / Σ w) w_i^(1-ε)` (supplementary eq. 12).

        The mean of `r_i l_i` over draws is an unbiased estimate of the weighted loss of eq. 14 over the pool.

        Args:
            index: int64 `[B]`, each in `0 … N - 1`.

        Returns:
            float32 `[B]`, computed from the current weights.

        Raises:
            TypeError: If `index` is not an int64 tensor.
            ValueError: If an index is out of range. On a CUDA device its importance is NaN, and a later call raises.

        Example:
            >>> BackgroundPool(num_examples=5).importance(torch.tensor([0, 3]))
            tensor([1., 1.])
        """
        pool_checks.check_index(index, empty=True)
        self._checks.poll()
        index = to_device(index, self.device)
        if index.numel() > 0:
            excess = pool_checks.index_excess(index, len(self))
            self._checks.add(excess, partial(pool_checks.check_excess, num_examples=len(self)))
        return self._importance(index)

    def ascend(
        self, index: Tensor, per_sample_loss: Tensor, *, lr: float, mode: AscentMode = "exact", wait: bool = True
    ) -> None:
        r"""Take one step of gradient ascent on the weighted loss of the batch.

        The loss is `L = 1/B Σ_b r_{i_b} l_b` with `r` from `importance`, which depends on every weight through its
        normalisers. Its gradient needs no backward pass through the network: with `Z = Σ w^ε` and `S = Σ w`,

            ∂L/∂ω_j = sigmoid(ω_j) { L (ε w_j^(ε-1) / Z - 1/S) + (1-ε) w_j^(-ε) (Z/S) (1/B) Σ_{b: i_b = j} l_b }

        and the step is `velocity ← momentum · velocity + gradient; ω ← ω + lr · velocity`, like a step of
        `torch.optim.SGD` with the gradient of `-L`. ω is clamped to [-80, 1e6], a weight between 2e-35 and 1e6.

        Args:
            index: int64 `[B]`, as drawn by `sample`; an example drawn twice counts twice.
            per_sample_loss: `[B]`, floating-point, `l_b >= 0`, as `with_per_sample` of the losses returns it.
            lr: Step size η_w > 0; the paper uses 100.
            mode: "exact" moves every weight, in one pass over the pool. "sparse" moves only the drawn examples, by
                their coordinates of the gradient; all others keep weight and velocity, and the cost does not depend on
                N.
            wait: On a CUDA device, whether to wait until the check of the step before has arrived, so that its error is
                raised by this call. False does not wait for the checks of about 30 steps; a later call raises their
                errors.

        Raises:
            TypeError: If `index` or `per_sample_loss` has another dtype.
            ValueError: If the batch is empty, the shapes differ, an index is outside `0 … N - 1`, a loss is negative,
                NaN or infinite, `lr` or `mode` is out of range, a step exceeds float32, or ε = 1. The pool is then
                unchanged. On a CUDA device a later call raises for the values of `index` and `per_sample_loss`.
        """
        lr = pool_checks.checked_ascent(index, per_sample_loss, lr, mode)
        pool_checks.check_learns(self.epsilon)
        if as_flag("wait", wait):
            # The device has usually passed the step before by now: the host is never more than one step ahead of it.
            self._checks.settle(captured=False)
        else:
            self._checks.poll()
        batch = AscentBatch.of(index, per_sample_loss, lr, self._state.omega, sparse=mode == "sparse")
        status = self._state.ascend(batch, self.epsilon, self.momentum)
        self._checks.add(status, partial(self._finish_step, batch), replayed=True)

    def _finish_step(self, batch: AscentBatch, status: list[int], origin: Origin) -> None:
        code, position = status
        if code != ops.DONE:
            raise batch.error(code, position, len(self), origin)

    def synchronize(self) -> None:
        """Wait for the device, and raise the error of an earlier call on it; also of steps replayed from a CUDA graph.

        A captured step reads nothing, so that an invalid batch of a replay is ignored by the device. This method,
        `state_dict` and `save` raise for the first invalid batch of all replays since the last such call.

        Raises:
            ValueError: If the values of a batch of `ascend`, or of an index of `importance`, were out of range.
        """
        self._checks.settle()

    def shard(self, rank: int, world_size: int, *, group: dist.ProcessGroup | None = None) -> ShardedBackgroundPool:
        """Return the slice of this pool that this process owns; the pool can be deleted afterwards.

        Every process of the group must call it with an equal pool. A pool that does not fit into the memory of one
        process is made by `ShardedBackgroundPool(num_examples)`, slice by slice.

        Args:
            rank: Rank of this process in the group.
            world_size: Number of processes in the group.
            group: Process group of `torch.distributed`; None for the default group.

        Raises:
            RuntimeError: If there is no process group.
            ValueError: If `rank` or `world_size` do not match the group, the pools of the processes differ, or a
                process would have no example. Raised on every process.
        """
        self._checks.settle()
        return ShardedBackgroundPool.cut(
            self._state, rank, world_size, epsilon=self.epsilon, momentum=self.momentum, group=group
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the tensors that determine the pool, for a checkpoint.

        A pool that loads them makes identical draws and steps, bit for bit.

        Returns:
            `omega` and `velocity`, float32 `[N]`, and `scale`, the rounding units of the sums, float64 `[4]`.

        Raises:
            ValueError: If an earlier call on a CUDA device had values out of range.
        """
        self._checks.settle()
        return {name: tensor.clone() for name, tensor in self._state.leaves().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of a pool of the same size.

        Args:
            state: Tensors that `state_dict` returned. Without `scale` new rounding units are chosen: the weights are
                equal, but sums may differ in the last bits.

        Raises:
            KeyError: If `omega` or `velocity` is missing.
            TypeError: If `state` is not a mapping of tensors.
            ValueError: If a tensor has another size or dtype or a value that is not finite, or no example has weight.
                The pool is then unchanged. On a CUDA device also the error of an earlier call; a second call loads.
        """
        self._checks.settle()
        pool_checks.check_state(state, len(self))
        self._state = self._state.take(state["omega"], state["velocity"], self.epsilon, scale=state.get("scale"))
