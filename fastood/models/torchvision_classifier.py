"""torchvision classification networks by name, for large images."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from fastood.models.classifier import Classifier, layers_drawn_from

__all__ = ["TorchvisionClassifier", "check_torchvision_name"]


class TorchvisionClassifier(Classifier):
    """Untrained torchvision network with torchvision's initial weights, split at its last linear layer.

    Args:
        name: Name in `torchvision.models.list_models(module=torchvision.models)`.
        num_classes: Number of classes K, at least 2.
        image_size: Height and width of the images, at least the minimum that torchvision documents for the network.
        dropout: Probability of dropping a feature before the head, in [0, 1), in addition to the network's own dropout.
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Raises:
        ValueError: If torchvision has no such network, the network does not end in a linear layer, or the images are
            too small for it.

    Example:
        >>> import torch
        >>> model = TorchvisionClassifier("mobilenet_v3_small", num_classes=10, image_size=64).eval()
        >>> model.features(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1024])
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        image_size: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_torchvision_name(name)
        smallest = _smallest_image(name)
        if image_size < smallest:
            raise ValueError(f"image_size must be at least {smallest} pixels for torchvision:{name}, got {image_size}")
        with layers_drawn_from(generator):
            body, head = _body_and_head(name, num_classes=num_classes, image_size=image_size)
            super().__init__(head.in_features, num_classes)
        self.body = body
        self.head = head
        self.dropout = nn.Dropout(dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs of the last linear layer, `[N, d]`, after dropout."""
        features: Tensor = self.dropout(self.body(images))
        return features


def check_torchvision_name(name: str) -> None:
    """Raise unless torchvision has a classification network with this name.

    Raises:
        ValueError: If `name` is unknown; the error lists similar names.
    """
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5)
        hint = f"nearest: {', '.join(near)}" if near else "torchvision.models.list_models() lists them"
        raise ValueError(f"torchvision has no classification network {name!r}; {hint}")


def _body_and_head(name: str, *, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Linear]:
    import torchvision

    try:
        body: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **_options(name, image_size)
        )
    except (AssertionError, ValueError) as error:  # from transformers that cannot cut the image into patches
        raise ValueError(f"torchvision:{name} takes no images of {image_size} pixels: {error}") from error
    linear = [(path, module) for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != num_classes:
        raise ValueError(f"torchvision:{name} ends in no linear layer that could be its head; take another network")
    path, head = linear[-1]
    body.set_submodule(path, nn.Identity())
    return body, head


def _smallest_image(name: str) -> int:
    """Return the least height and width that torchvision documents for a network."""
    import torchvision

    return min(int(side) for weights in torchvision.models.get_model_weights(name) for side in weights.meta["min_size"])


def _options(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments that the constructor of a network needs in addition to the number of classes."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):  # auxiliary heads would change the output in training mode
        return {"aux_logits": False, "init_weights": True}
    return {}
