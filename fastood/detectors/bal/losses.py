"""What discriminator and generator of BAL minimise (Pei et al. 2022, equations 8 to 12), on the logits of D."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

__all__ = ["GeneratorForm", "NegativeForm", "generator_loss", "mode_seeking_loss", "negative_loss", "positive_loss"]

NegativeForm = Literal["log-d", "log-one-minus-d"]
GeneratorForm = Literal["saturating", "non-saturating"]


def positive_loss(logits: Tensor) -> Tensor:
    """`-E log D`: pairs that the discriminator is to accept; logits `[N]`, at least one."""
    return F.softplus(-logits).mean()


def negative_loss(logits: Tensor, *, form: NegativeForm = "log-one-minus-d", floor: float = 10.0) -> Tensor:
    """What D pays for the negative pairs of equations 8 and 9, its shuffled and its synthetic ones.

    As printed both minimise `E log D`, which has no lower bound: with the logit s → -∞ it falls for ever, with a
    gradient that tends to 1 instead of 0, and one of 0 where D is fooled (s → +∞).

    Args:
        logits: Logits `[N]` of D, at least one.
        form: "log-d": as printed, but bounded: `E max(log D, -floor)`, so that a pair that D refuses with a probability
            below `exp(-floor)` pulls no more. "log-one-minus-d": `-E log(1 - D)`, the negative term of equation 10,
            bounded below by 0 and steepest where D is fooled.
        floor: Above 0, for "log-d".

    Raises:
        ValueError: The form is unknown, or the floor not above 0.

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
    """What the generator pays for being found out, without the regulariser of equation 12.

    Args:
        logits: Logits `[N]` of D for generated features, at least one.
        form: "saturating": `E log(1 - D)`, as in equation 12; its gradient vanishes where D is sure. "non-saturating":
            `-E log D` (Goodfellow 2014), whose does not.

    Raises:
        ValueError: The form is unknown.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([0.0])), generator_loss(torch.tensor([0.0]), form="non-saturating")
        (tensor(-0.6931), tensor(0.6931))
    """
    if form not in get_args(GeneratorForm):
        raise ValueError(f"form must be one of {', '.join(get_args(GeneratorForm))}, got {form!r}")
    return F.softplus(-logits).mean() if form == "non-saturating" else -F.softplus(logits).mean()


def mode_seeking_loss(noise: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> Tensor:
    """`E[d(z₁, z₂) / d(G(z₁), G(z₂))]`: what a generator pays whose noise makes no difference (Mao et al. 2019, eq. 2).

    Their equation has the quotient the other way round, to be made large, which one distant pair can do; this one is
    made small, as in their code. d is the mean absolute difference. 1e-3 is added below, so that a generator that has
    collapsed has a finite loss.

    Args:
        noise: z₁ and z₂, `[N, z]` each, at least one row.
        generated: What was made of them under the same labels, `[N, d]` each, about as wide as the noise.

    Example:
        >>> import torch
        >>> zeros, ones = torch.zeros(1, 4), torch.ones(1, 4)
        >>> mode_seeking_loss((zeros, ones), (zeros, 0.5 * ones))
        tensor(1.9960)
    """
    apart = (noise[0] - noise[1]).abs().mean(1)
    made = (generated[0] - generated[1]).abs().mean(1)
    return (apart / (made + 1e-3)).mean()
