"""A run's trained network as detectors take it."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fastood.console.wording import with_article
from fastood.data import DetectionTask, ImageSet
from fastood.detectors import DetectorSuite
from fastood.detectors.linear_head import given_and_put_out, watched
from fastood.train.trained_network import Outputs, TrainedNetwork

GRADIENT_ROWS = 64
"""Images that pass at once with gradients, for which a network keeps what all of its layers put out."""


class ArmNetwork:
    """Features, and logits of the in-distribution classes: reject classes, which come last, are left out.

    Args:
        network: The arm's.
        num_classes: K.

    Attributes:
        head: From features to logits.
        num_reject: How many logits are left out.

    Raises:
        TypeError: The network is no classifier of features and a head.
    """

    def __init__(self, network: TrainedNetwork, num_classes: int) -> None:
        head = getattr(network.module, "head", None)
        if not isinstance(head, nn.Module):
            raise TypeError(
                f"its network, {with_article(type(network.module).__name__)}, has no head that logits come from"
            )
        self.network = network
        self.head: nn.Module = head
        self.num_classes = num_classes
        self.num_reject = getattr(head, "out_features", num_classes) - num_classes

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of network input; differentiable where gradients are on."""
        with watched(self.head) as passed:
            self.network(x)
        features, logits = given_and_put_out(passed)
        return features, logits[:, : self.num_classes]

    def features(self, x: Tensor) -> Tensor:
        """The features alone."""
        return self(x)[0]

    def outputs(self, images: ImageSet) -> Outputs:
        """Logits and features float32 of images, on the CPU, in one pass."""
        with torch.no_grad():
            parts = [tuple(part.float().cpu() for part in self(batch)) for batch in self.network.batches(images)]
        features, logits = (torch.cat(of_batches) for of_batches in zip(*parts, strict=True))
        return Outputs(logits=logits, features=features)

    def gradient_batches(self, images: ImageSet) -> Iterator[Tensor]:
        """Images as network input, as many at a time as gradients have room for."""
        for batch in self.network.batches(images):
            yield from torch.split(batch, GRADIENT_ROWS)

    def outputs_and_moved(self, images: ImageSet, suite: DetectorSuite) -> tuple[Outputs, Mapping[str, Tensor]]:
        """Return features and logits, with the scores of the suite's detectors that perturb inputs, of one pass."""
        features, logits = [], []
        of_moved: dict[str, list[Tensor]] = {}
        for batch in self.gradient_batches(images):
            of_batch = suite.forward(batch)
            features.append(of_batch[0].float().cpu())
            logits.append(of_batch[1].float().cpu())
            for name, scores in of_batch[2].items():
                of_moved.setdefault(name, []).append(scores.cpu())
        outputs = Outputs(logits=torch.cat(logits), features=torch.cat(features))
        return outputs, {name: torch.cat(parts) for name, parts in of_moved.items()}


def image_sets(task: DetectionTask) -> dict[str, ImageSet]:
    """The images that detectors are fitted to and score, by name."""
    return {"id_train": task.id_train, "id_test": task.id_test, **{f"ood/{name}": s for name, s in task.ood.items()}}
