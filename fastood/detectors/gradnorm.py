"""GradNorm: norm of the gradient at the head (Huang et al. 2021, https://arxiv.org/abs/2110.00218)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastood.detectors.assumptions import warn_unless_logits
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.logits import check_positive
from fastood.detectors.model_calls import Model, unwrapped
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood

__all__ = ["GradNorm"]


class GradNorm(HeadDetector):
    r"""Gradient norm at the head, `-|∂KL(u || softmax(v / T)) / ∂W|_1` (Huang et al. 2021, eq. 6).

    u is the uniform distribution over K classes, W the weights of the head. The gradient is the outer product of
    `(p - 1/K) / T` and the features z. Its norm is therefore `|z|_1 Σ_k |p_k - 1/K| / T` (section 5.3), which needs no
    backward pass. The paper's code sums the cross-entropies of the classes instead of averaging them, a factor of K.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: The `nn.Linear` from features to logits; None for the last one of `model`.
        temperature: T, above 0.
        param_filter: Function from a parameter's name to whether its gradient is part of the norm, as in pytorch-ood,
            where the default is all parameters. It must select the weights of the head alone; None selects them.

    Raises:
        ValueError: If `temperature` is out of range, or `param_filter` selects other parameters than the head's
            weights.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(2, 2, bias=False)
        >>> _ = head.weight.data.copy_(100 * torch.eye(2))
        >>> GradNorm(head=head).predict_features(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
        tensor([-3., -0.], dtype=torch.float64)
    """

    settings = ("temperature",)
    _inputs_checked = False

    @takes_pytorch_ood("param_filter", "micro_batch_size", "temperature")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: nn.Linear | None = None,
        temperature: float = 1.0,
        param_filter: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(model, feature_layer, head=head)
        if param_filter is not None:
            self._check_filter(model, param_filter)
        self.temperature = check_positive("temperature", temperature)

    def _check_filter(self, model: Model | None, param_filter: Callable[[str], bool]) -> None:
        module = None if model is None else unwrapped(model)
        if not isinstance(module, nn.Module):
            raise ValueError("param_filter needs an nn.Module with named parameters: pass param_filter=None")
        taken = [name for name, _ in module.named_parameters() if param_filter(name)]
        weight = [name for name, parameter in module.named_parameters() if parameter is self.head.weight]
        if taken != weight:
            raise ValueError(
                f"param_filter must be true of the weights of the head alone ({', '.join(weight)}), whose gradient is "
                f"scored, got {', '.join(taken) or 'none'}"
            )

    def _score(self, rows: Tensor) -> Tensor:
        logits = self._logits(rows)
        if not self._inputs_checked:
            self._inputs_checked = warn_unless_logits("GradNorm", logits, "softmax")
        p = (logits / self.temperature).softmax(1)
        # The L1 norm of an outer product is the product of the L1 norms.
        return -rows.abs().sum(1) * (p - 1 / p.shape[1]).abs().sum(1) / self.temperature
