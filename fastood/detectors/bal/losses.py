"""Losses of the discriminator D and the generator G of BAL, on the logits of D.

Pei et al. 2022, equations 8 to 12 (https://arxiv.org/abs/2112.11648).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

__all__ = ["GeneratorForm", "NegativeForm", "generator_loss", "mode_seeking_loss", "negative_loss", "positive_loss"]

NegativeForm = Literal["log-d", "log-one-minus-d"]
GeneratorForm = Literal["saturating", "non-saturating"]


def positive_loss(logits: Tensor) -> Tensor:
    """Compute the loss `-E log D` of positive pairs from their logits `[N]`, at least one."""
    # -log sigmoid(s), without the overflow of exp(-s).
    return F.softplus(-logits).mean()


def negative_loss(logits: Tensor, *, form: NegativeForm = "log-one-minus-d", floor: float = 10.0) -> Tensor:
    """Compute the loss of D on the negative pairs of equations 8 and 9, shuffled and synthetic ones.

    Both equations of the paper minimise `E log D`, which has no lower bound: for a logit s → -∞ its gradient tends to 1
    instead of 0, and for s → +∞, where D is wrong, to 0.

    Args:
        logits: Logits `[N]` of D, at least one.
        form: "log-d": the form of the paper, but bounded: `E max(log D, -floor)`, so that pairs with D below
            `exp(-floor)` have no gradient. "log-one-minus-d": `-E log(1 - D)`, the negative term of equation 10,
            bounded below by 0 and steepest where D is wrong.
        floor: Bound for "log-d", above 0.

    Raises:
        ValueError: If the form is unknown, or the floor not above 0.

    Example:
        >>> import torch
        >>> negative_loss(torch.tensor([-200.0]), form="log-d"), negative_loss(torch.tensor([-200.0]))
        (tensor(-10.), tensor(0.))
    """
    if form not in get_args(NegativeForm):
        raise ValueError(f"form must be one of {', '.join(get_args(NegativeForm))}, got {form!r}")
    if not floor > 0:
        raise ValueError(f"floor must be above 0, got {floor}")
    if form == "log-d":
        return F.logsigmoid(logits).clamp_min(-floor).mean()
    return F.softplus(logits).mean()


def generator_loss(logits: Tensor, *, form: GeneratorForm = "saturating") -> Tensor:
    """Compute the adversarial loss of the generator, without the regulariser of equation 12.

    Args:
        logits: Logits `[N]` of D for generated features, at least one.
        form: "saturating": `E log(1 - D)`, equation 12, whose gradient vanishes where D rejects. "non-saturating":
            `-E log D` (Goodfellow et al. 2014), whose gradient does not vanish there.

    Raises:
        ValueError: If the form is unknown.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([0.0])), generator_loss(torch.tensor([0.0]), form="non-saturating")
        (tensor(-0.6931), tensor(0.6931))
    """
    if form not in get_args(GeneratorForm):
        raise ValueError(f"form must be one of {', '.join(get_args(GeneratorForm))}, got {form!r}")
    # softplus and logsigmoid are stable for logits of any size; log(1 - sigmoid) is not.
    return F.softplus(-logits).mean() if form == "non-saturating" else -F.softplus(logits).mean()


def mode_seeking_loss(noise: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the mode-seeking loss `E[d(z₁, z₂) / d(G(z₁), G(z₂))]` (Mao et al. 2019, eq. 2).

    The paper maximises the inverse quotient, which one distant pair can make large; its code minimises this one. d is
    the mean absolute difference. 1e-3 is added to the denominator, so that a collapsed generator has a finite loss.

    Args:
        noise: z₁ and z₂, `[N, z]` each, at least one row.
        generated: G(z₁) and G(z₂) under the same labels, `[N, d]` each, of about unit variance like the noise.

    Example:
        >>> import torch
        >>> zeros, ones = torch.zeros(1, 4), torch.ones(1, 4)
        >>> mode_seeking_loss((zeros, ones), (zeros, 0.5 * ones))
        tensor(1.9960)
    """
    # Means and not norms, so that the ratio does not depend on the widths of noise and features.
    apart = (noise[0] - noise[1]).abs().mean(1)
    distance = (generated[0] - generated[1]).abs().mean(1)
    return (apart / (distance + 1e-3)).mean()
