"""Detection scores from one read of the logits; higher means more out-of-distribution.

For logits `v` of K classes with softmax `f`, largest logit `v_m` and largest probability `p`:

    msp         log((1 - p) / p)                            maximum softmax, Hendrycks & Gimpel 2017
    max_logit   -v_m                                        Hendrycks et al. 2022
    energy      -logsumexp(v)                               Liu et al. 2020, eq. 4
    entropy     -Σ f log f, in [0, log K]                   Li & Vasconcelos 2020, section 5.4
    kl_uniform  -KL(uniform || f), at most 0                Li & Vasconcelos 2020, eq. 5
    gen         Σ (f (1 - f))^γ over the largest f          generalised entropy, Liu et al. 2023, eq. 3
    reject      log(Σ_reject exp v / Σ_rest exp v)          Mohseni et al. 2020, "Detection Inference"

Each score ranks rows as its paper's score does, in a form that keeps digits for the rows of a trained network. `msp` is
1 - p in log-odds: p itself rounds to 1 for many confident rows, which turns a ranking into ties; log-odds separate rows
of different margins at any margin. `reject` is the summed probability of the reject classes in log-odds. `entropy` and
`gen` keep the digits of a confident row, `kl_uniform` those of a row near uniform (the entropy cannot: near uniform it
differs from log K by less than a unit in the last place).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastood.ops._validation import check_integer, check_logits, check_number, compute_dtype

SCORES = ("msp", "max_logit", "energy", "entropy", "kl_uniform", "gen")
"""The scores of any classifier, in the order of `Score` of csrc/logit_scores/math.h; after them comes `reject`."""
_MASK_BITS = {name: 1 << bit for bit, name in enumerate((*SCORES, "reject"))}

_logit_scores = torch.ops.fastood.logit_scores.default


def _fake(logits: Tensor, scores: int, num_reject: int, gen_gamma: float, gen_top: int) -> Tensor:
    return logits.new_empty((scores.bit_count(), logits.shape[0]), dtype=compute_dtype(logits.dtype))


def _vmap(info: Any, in_dims: tuple[int | None, ...], logits: Tensor, *settings: float) -> tuple[Tensor, int]:
    """Return the scores of the rows of all batches, `[S, B, N]`, and the position of the batch dimension."""
    assert in_dims[0] is not None
    # Scores of a row do not depend on other rows: the rows of all batches are one call of the op.
    batches = logits.movedim(in_dims[0], 0)
    scores: Tensor = _logit_scores(batches.flatten(0, 1), *settings)
    return scores.reshape(-1, *batches.shape[:2]), 1


torch.library.register_fake("fastood::logit_scores", _fake)
torch.library.register_vmap("fastood::logit_scores", _vmap)


def _checked_settings(logits: Tensor, num_reject: int, gen_gamma: float, gen_top: int | None) -> tuple[int, float, int]:
    """Return the checked settings in the form of the op."""
    num_reject = check_integer("num_reject", num_reject)
    if not 0 <= num_reject < logits.shape[1]:
        raise ValueError(
            f"num_reject must be at least 0 and below {logits.shape[1]}, the number of logits, got {num_reject}"
        )
    gamma = check_number("gen_gamma", gen_gamma, 0, above_low=True)
    # To the op zero means all, and so does any number above that of the classes; an int64 must hold it.
    top = 0 if gen_top is None else min(check_integer("gen_top", gen_top, 1), 2**31)
    return num_reject, gamma, top


def _names(scores: Sequence[str] | None, num_reject: int) -> tuple[str, ...]:
    """Return the names of the scores to compute, in the order of the op's results."""
    available = (*SCORES, "reject") if num_reject > 0 else SCORES
    if scores is None:
        return available
    if isinstance(scores, (str, bytes, Tensor, np.ndarray)) or not isinstance(scores, Collection):
        got = f"the string {scores!r}" if isinstance(scores, str) else type(scores).__name__
        raise TypeError(f"scores must be a sequence of names, got {got}")
    if "reject" in scores and num_reject == 0:
        raise ValueError('scores must not hold "reject" where there are no reject classes: num_reject is 0')
    unknown = [name for name in scores if name not in available]
    if unknown or len(scores) == 0:
        raise ValueError(f"scores must be one or more of {', '.join(available)}, got {unknown or 'none'}")
    return tuple(name for name in available if name in scores)


def logit_scores(
    logits: Tensor,
    *,
    num_reject: int = 0,
    gen_gamma: float = 0.1,
    gen_top: int | None = None,
    scores: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Compute detection scores of each row of logits in one read of them.

    Args:
        logits: `[N, K + num_reject]`, float64, float32, bfloat16 or float16, on the CPU or a CUDA device. Rows may be
            strided. Logits of -inf are masked classes: they change no score except `kl_uniform`, which is -inf. A NaN
            or +inf logit makes every score that reads it NaN, and so do logits that are all -inf.
        num_reject: Number of reject classes, the last columns (Mohseni et al. 2020,
            https://ojs.aaai.org/index.php/AAAI/article/view/5966). As in the paper one softmax over all logits gives
            `reject`; all other scores use the K classes alone, so that they are comparable with those of a network
            without reject classes.
        gen_gamma: γ of `gen`, above 0.
        gen_top: Number of the largest probabilities that `gen` sums (the paper uses 100 of ImageNet's 1000); None, or
            more than K, for all.
        scores: Names of the scores to compute, of `msp`, `max_logit`, `energy`, `entropy`, `kl_uniform`, `gen` and,
            with reject classes, `reject`; None for all. `gen` costs more than all others together.

    Returns:
        Name to `[N]`, in the order above; float64 for float64 logits, float32 for all others, without gradient, also
        under torch.func: `vmap` is supported, and `grad` returns zeros. Higher means more out-of-distribution for each.
        `msp` of a single class is -inf.

    Raises:
        TypeError: If `logits` is not a dense tensor of the dtypes above, `scores` is not a sequence of names, or a
            setting is not a number.
        ValueError: If an argument has the wrong shape or value.

    Example:
        >>> import torch
        >>> scores = logit_scores(torch.tensor([[40.0, 0.0, 0.0], [2.0, 1.0, 0.0]]), scores=["msp", "energy"])
        >>> scores["msp"]
        tensor([-39.3069,  -0.6867])
        >>> scores["energy"]
        tensor([-40.0000,  -2.4076])
    """
    check_logits(logits)
    num_reject, gamma, top = _checked_settings(logits, num_reject, gen_gamma, gen_top)
    names = _names(scores, num_reject)
    mask = sum(_MASK_BITS[name] for name in names)
    rows = _logit_scores(logits.detach(), mask, num_reject, gamma, top)
    return dict(zip(names, rows.unbind(), strict=True))
