"""Inputs and labels of the batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fastood.detectors.model_calls import LABEL_KEYS, Inputs

__all__ = ["labelled_batches"]

_EXPECTED = "loader must give batches (inputs, labels, ...) or mappings with labels"
_REMEDY = (
    "labels are int64 [N], below zero for rows to skip; without labels pass "
    "((x, torch.zeros(len(x), dtype=torch.int64)) for x in loader), which treats all rows as one class"
)


def labelled_batches(loader: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the inputs and labels of each batch of a loader.

    Args:
        loader: Batches `(inputs, labels, ...)`, or mappings, such as those of Hugging Face's collators, that hold the
            labels under "labels" or "label" and the model's keyword arguments.

    Raises:
        TypeError: If a batch is neither a tuple nor a mapping, or has no labels.

    Example:
        >>> import torch
        >>> batch = {"input_ids": torch.zeros(2, 5, dtype=torch.int64), "labels": torch.tensor([0, 1])}
        >>> [(list(inputs), labels) for inputs, labels in labelled_batches([batch])]
        [(['input_ids'], tensor([0, 1]))]
    """
    if isinstance(loader, Tensor | Mapping) or not isinstance(loader, Iterable):
        raise TypeError(f"loader must iterate over batches, got a {type(loader).__name__}: put it into a list")
    for batch in loader:
        if isinstance(batch, Mapping):
            yield _of_mapping(batch)
        elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
            yield batch[0], _checked(batch[1])
        else:
            length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise TypeError(f"{_EXPECTED}, got a {type(batch).__name__}{length} without labels: {_REMEDY}")


def _of_mapping(batch: Mapping[str, Any]) -> tuple[Inputs, Tensor]:
    keys = [key for key in LABEL_KEYS if key in batch]
    if len(keys) != 1:
        names = ", ".join(map(repr, batch))
        raise TypeError(f"{_EXPECTED}, got a {type(batch).__name__} with {names}: it needs one of 'labels', 'label'")
    return {key: value for key, value in batch.items() if key != keys[0]}, _checked(batch[keys[0]])


def _checked(labels: object) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    return labels
