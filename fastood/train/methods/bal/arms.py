"""The arms of BAL: its score, the baselines, and the ablations of Pei et al. 2022 (https://arxiv.org/abs/2112.11648).

Ablations are arms of one run, not separate recipes, since they compare GANs on one frozen classifier: with a run each,
the classifier would be trained again for every setting.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class ArmRow:
    """Label of an arm, and the settings in which its GAN differs from the configured ones."""

    label: str
    """Name in tables and figures."""
    changes: dict[str, Any] | None = None
    """Fields of `BoundarySettings` by name; None for an arm that trains no GAN."""


ARMS: dict[str, ArmRow] = {
    "softmax": ArmRow("Softmax"),
    "odin": ArmRow("ODIN"),
    "bal": ArmRow("BAL", {}),
    "bal-p2": ArmRow("BAL, p₂ alone"),
    # Table 1: losses.
    "bal-t": ArmRow("BAL (L_t)", {"shuffle": False, "uniform": False}),
    "bal-ts": ArmRow("BAL (L_t + L_s)", {"uniform": False}),
    "bal-tu": ArmRow("BAL (L_t + L_u)", {"shuffle": False}),
    # Table 2: weight of the uniform part.
    "bal-0.1": ArmRow("BAL, λ_c 0.1", {"uniform_weight": 0.1}),
    "bal-0.3": ArmRow("BAL, λ_c 0.3", {"uniform_weight": 0.3}),
    "bal-0.5": ArmRow("BAL, λ_c 0.5", {"uniform_weight": 0.5}),
    "bal-0.7": ArmRow("BAL, λ_c 0.7", {"uniform_weight": 0.7}),
    "bal-0.9": ArmRow("BAL, λ_c 0.9", {"uniform_weight": 0.9}),
    # Table 3: trivial features.
    "bal-uniform": ArmRow("BAL, uniform", {"sampling": "uniform"}),
    "bal-gaussian": ArmRow("BAL, Gaussian", {"sampling": "gaussian"}),
    # Choices of this library, compared with the forms printed in the paper.
    "bal-log-d": ArmRow("BAL, log D", {"negative_form": "log-d"}),
    "bal-printed": ArmRow("BAL as printed", {"axes": "features", "mode_seeking_weight": 0.0}),
    "bal-features": ArmRow("BAL, box and steps along the features", {"axes": "features"}),
    "bal-no-seeking": ArmRow("BAL, no mode seeking", {"mode_seeking_weight": 0.0}),
    "bal-projection": ArmRow("BAL, labels by projection", {"conditioning": "projection"}),
}
"""Every arm by name, in the order of the help text."""

if TYPE_CHECKING:
    ArmName = str
else:
    # The command line lists the choices, and checks them, by the type.
    ArmName = Literal[tuple(ARMS)]
