"""Count of training images that a network classifies correctly, taken beside the loss."""

from typing import Any

import torch
from torch import Tensor


class TrainingAnswers:
    """Count of right answers to the in-distribution images of training batches.

    It counts on the device of the logits and is read once per epoch, so that no step waits for it.

    Args:
        num_classes: K; logits beyond the first K, those of reject classes, are no answers.

    Example:
        >>> answers = TrainingAnswers(2)
        >>> network = answers.watched(lambda images: images, torch.tensor([0, 1, 1]))
        >>> _ = network(torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [0.0, 0.0]]))
        >>> answers.take(), answers.take()
        ((2, 3), (0, 0))
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._correct: Tensor | None = None
        self._total = 0

    def watched(self, network: Any, labels: Tensor) -> "WatchedNetwork":
        """Return a network for one step: its logits are compared with the labels `[n]` of the batch's first n rows."""
        return WatchedNetwork(network, labels, self)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count the answers that logits `[B, K or more]` are to the labels `[n]` of their first n rows."""
        answers = logits.detach()[: len(labels), : self.num_classes].argmax(dim=1)
        correct = (answers == labels).sum()
        self._correct = correct if self._correct is None else self._correct + correct
        self._total += len(labels)

    def take(self) -> tuple[int, int]:
        """Return right answers and images since the last call; both 0 where nothing was classified."""
        found = (0 if self._correct is None else int(self._correct), self._total)
        self._correct, self._total = None, 0
        return found


class WatchedNetwork:
    """A network as an objective takes it, whose logits are counted in passing.

    Args:
        network: The network; everything else is asked of it.
        labels: int64 `[n]` of the first n rows.
        answers: Counts them.
    """

    def __init__(self, network: Any, labels: Tensor, answers: TrainingAnswers) -> None:
        self._network = network
        self._labels = labels
        self._answers = answers

    def __call__(self, *inputs: Any) -> Any:
        """Return what the network puts out; logits `[B, K]` are counted, distances `[B]` are none."""
        found = self._network(*inputs)
        if isinstance(found, torch.Tensor) and found.ndim == 2:
            self._answers.add(found, self._labels)
        return found

    def forward_outputs(self, *inputs: Any) -> Any:
        """Return logits and features of a `Classifier`."""
        found = self._network.forward_outputs(*inputs)
        self._answers.add(found[0], self._labels)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)
