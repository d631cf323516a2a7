"""Sampling from a background pool whose weights change at every step (Li & Vasconcelos 2020)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, exact up to where float64 ends; PyTorch's default replaces it by `x` above 20."""
    return F.softplus(x, threshold=700 if x.dtype == torch.float64 else 80)


def inverse_softplus(w: float) -> float:
    """The `x` with `softplus(x) == w`, for `w > 0`."""
    value = torch.tensor(w, dtype=torch.float64)
    return float(value + torch.log(-torch.expm1(-value)))


OMEGA_MIN, OMEGA_MAX = -80.0, 1e6
"""ω is kept in this range. softplus(-80) = 2e-35 is still a normal float32: no weight becomes zero for good. A million
is far beyond what pools of any size learn, and leaves float32 room for a step."""


class BackgroundPool:
    r"""A weight for each background example, learnt adversarially, and draws that follow the weights.

    Weights are `w_i = softplus(ω_i) > 0` (supplementary, section C). One step of Algorithm 1 is a draw, a forward pass
    of the network on the drawn examples, and an ascent step on the loss they caused; the next draw sees the new
    weights.

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
        epsilon: ε in [0, 1), how much of a weight goes into the draw (supplementary eq. 11); the rest goes into the
            importance (eq. 12). At ε = 1 the weights would have no gradient.
        momentum: Of the ascent, in [0, 1).
        initial_weight: `w` at the start, in [1e-30, 1e6].
        device: Where weights live and indices are drawn.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> pool = BackgroundPool(num_examples=5)
        >>> generator = torch.Generator().manual_seed(0)
        >>> index, importance = pool.sample(4, generator=generator)
        >>> per_sample_loss = (index == 2).float()  # only example 2 fools the network
        >>> pool.ascend(index, per_sample_loss, lr=1.0)
        >>> int(pool.weights.argmax())
        2
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
        if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
            raise ValueError(f"num_examples must be an int >= 1, got {num_examples!r}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1), got {epsilon}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if not 1e-30 <= initial_weight <= OMEGA_MAX:
            raise ValueError(f"initial_weight must be in [1e-30, 1e6], got {initial_weight}")
        self.epsilon = float(epsilon)
        self.momentum = float(momentum)
        self._omega = torch.full((num_examples,), inverse_softplus(initial_weight), dtype=torch.float32, device=device)
        self._velocity = torch.zeros(num_examples, dtype=torch.float32, device=device)
        self._refresh()

    def _refresh(self) -> None:
        """Take what follows from ω: the weights and, for the draw, their power ε and its running sum.

        Each weight is float32 like its ω; every sum over the pool is float64.
        """
        self._weights = softplus(self._omega)
        self._powers = self._weights.pow(self.epsilon)
        self._cumulative = self._powers.cumsum(0, dtype=torch.float64)
        self._total = self._weights.sum(dtype=torch.float64)

    def __len__(self) -> int:
        return self._omega.numel()

    def __repr__(self) -> str:
        return f"BackgroundPool({len(self)}, epsilon={self.epsilon}, momentum={self.momentum}, device={self.device})"

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self._omega.device

    @property
    def weights(self) -> Tensor:
        """`w`, float64 `[N]`, a copy."""
        return self._weights.double()

    def sample(self, batch_size: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw examples, with replacement, with probability `w_i^ε / Σ w^ε` (supplementary eq. 11).

        Args:
            batch_size: B >= 1.
            generator: On the pool's device.

        Returns:
            index: int64 `[B]`.
            importance: float32 `[B]`, as `importance` gives it.

        Raises:
            ValueError: `batch_size` is no int or below 1.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an int >= 1, got {batch_size!r}")
        power_sum = self._cumulative[-1]
        # 53 bits: float32 uniforms could not reach every example of a pool beyond 2^24.
        uniform = torch.rand(batch_size, dtype=torch.float64, device=self.device, generator=generator)
        # right=True never returns an example of zero mass; the clamp catches a product that rounded up to the total.
        index = torch.searchsorted(self._cumulative, uniform * power_sum, right=True).clamp_(max=len(self) - 1)
        return index, self.importance(index)

    def importance(self, index: Tensor) -> Tensor:
        """The factor by which the loss of a drawn example counts, `r_i = (Σ w^ε / Σ w) w_i^(1-ε)` (suppl. eq. 12).

        The mean of `r_i l_i` over draws is the weighted loss of eq. 14 over the pool.

        Args:
            index: int64 `[B]`, each in `0 … N - 1`, on the pool's device.

        Returns:
            float32 `[B]`, of the weights as they are now.

        Example:
            >>> BackgroundPool(num_examples=5).importance(torch.tensor([0, 3]))
            tensor([1., 1.])
        """
        own = self._weights[index].double().pow(1 - self.epsilon)
        return (self._cumulative[-1] / self._total * own).float()

    def ascend(self, index: Tensor, per_sample_loss: Tensor, *, lr: float) -> None:
        r"""Take one step of gradient ascent on the weighted loss of the batch, in all N weights.

        The loss is `L = 1/B Σ_b r_{i_b} l_b` with `r` as in `sample`, whose normalisers depend on every weight. Its
        gradient needs no second backward pass through the network: with `Z = Σ w^ε` and `S = Σ w`,

            ∂L/∂ω_j = sigmoid(ω_j) { L (ε w_j^(ε-1) / Z - 1/S) + (1-ε) w_j^(-ε) (Z/S) (1/B) Σ_{b: i_b = j} l_b }

        and the step is `velocity ← momentum · velocity + gradient; ω ← ω + lr · velocity`, what `torch.optim.SGD` would
        do with autograd's gradient of `-L`. ω stays in `OMEGA_MIN … OMEGA_MAX`.

        Args:
            index: int64 `[B]`, as drawn by `sample`; an example drawn twice counts twice.
            per_sample_loss: Floating-point `[B]`, `l_b >= 0`, as returned by the losses of `fastood.losses`.
            lr: Step size η_w > 0; the paper uses 100.

        Raises:
            TypeError: `index` or `per_sample_loss` has the wrong dtype.
            ValueError: Empty batch, shapes that differ, an index outside `0 … N - 1`, a loss that is negative, NaN or
                infinite, or `lr` out of range, or a step beyond float32. The pool is unchanged then.
        """
        self._check_batch(index, per_sample_loss, lr)
        loss = per_sample_loss.detach().to(self.device, torch.float64)
        index = index.to(self.device)
        w, powers, power_sum = self._weights, self._powers, self._cumulative[-1]
        ratio = power_sum / self._total
        batch_loss = (ratio * w[index].double().pow(1 - self.epsilon) * loss).mean()
        # The part of the normalisers, then that of the drawn examples' own weights.
        gradient = (powers / w).mul_(self.epsilon * batch_loss / power_sum).sub_(batch_loss / self._total)
        own = (1 - self.epsilon) * ratio / index.numel() * loss / powers[index].double()
        gradient.index_add_(0, index, own.float())
        gradient.mul_(torch.sigmoid(self._omega))
        velocity = self._velocity * self.momentum + gradient
        omega = self._omega + lr * velocity
        if not bool(torch.isfinite(omega).all()):
            raise ValueError(
                f"per_sample_loss times lr must stay in float32's range, got up to {float(loss.max()):g} · {lr:g}"
            )
        clamped = omega.clamp(OMEGA_MIN, OMEGA_MAX)
        # A weight at the limit has no business pushing on.
        self._velocity = velocity.masked_fill_(clamped != omega, 0.0)
        self._omega = clamped
        self._refresh()

    def _check_batch(self, index: Tensor, per_sample_loss: Tensor, lr: float) -> None:
        for name, value in (("index", index), ("per_sample_loss", per_sample_loss)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if index.dtype != torch.int64:
            raise TypeError(f"index must be int64, got {index.dtype}")
        if not per_sample_loss.is_floating_point():
            raise TypeError(f"per_sample_loss must be floating-point, got {per_sample_loss.dtype}")
        if index.dim() != 1 or index.numel() == 0:
            raise ValueError(f"index must be [B] with B >= 1, got shape {tuple(index.shape)}")
        if per_sample_loss.shape != index.shape:
            raise ValueError(
                f"per_sample_loss must have shape {tuple(index.shape)}, got {tuple(per_sample_loss.shape)}"
            )
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr must be finite and > 0, got {lr}")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self):
            raise ValueError(f"index must be in 0 … {len(self) - 1}, got {low if low < 0 else high}")
        bad = ~(torch.isfinite(per_sample_loss) & (per_sample_loss >= 0))
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"per_sample_loss must be finite and >= 0, got {float(per_sample_loss[first])} at position {first} "
                f"(example {int(index[first])})"
            )

    def select(self, rate: float, *, generator: torch.Generator) -> Tensor:
        """Choose a subset, each example independently with probability `min(1, γ N w_i / Σ w)` (eq. 20).

        Args:
            rate: γ in (0, 1]. The expected size is at most `γ N`: less where some probability is cut at one.
            generator: On the pool's device.

        Returns:
            int64 indices, ascending.

        Raises:
            ValueError: `rate` is outside (0, 1].
        """
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate}")
        probability = (rate * len(self)) * self.weights / self._total
        uniform = torch.rand(len(self), dtype=torch.float64, device=self.device, generator=generator)
        return (uniform < probability).nonzero().flatten()

    def effective_sample_size(self) -> float:
        """`(Σ w)² / Σ w²`, between 1 (one example holds all the weight) and N (all are equal)."""
        return float(self._total.square() / self.weights.square().sum())

    def state_dict(self) -> dict[str, Tensor]:
        """Return ω and its velocity, float32 `[N]` each, copied: flat tensors, as safetensors wants them."""
        return {"omega": self._omega.clone(), "velocity": self._velocity.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned, from a pool of the same size.

        Raises:
            KeyError: A tensor is missing.
            ValueError: A tensor has another size or dtype, or a value that is not finite. The pool is unchanged then.
        """
        for name in ("omega", "velocity"):
            if name not in state:
                raise KeyError(f"state must hold 'omega' and 'velocity', got {sorted(state)}")
            if state[name].shape != self._omega.shape or state[name].dtype != torch.float32:
                raise ValueError(
                    f"state[{name!r}] must be float32 of shape ({len(self)},), "
                    f"got {state[name].dtype} of shape {tuple(state[name].shape)}"
                )
            if not bool(torch.isfinite(state[name]).all()):
                raise ValueError(f"state[{name!r}] must be finite, got NaN or infinity")
        self._omega = state["omega"].to(self.device, copy=True).clamp_(OMEGA_MIN, OMEGA_MAX)
        self._velocity = state["velocity"].to(self.device, copy=True)
        self._refresh()
