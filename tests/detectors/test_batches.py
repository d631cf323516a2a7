"""Batches, inputs and outputs that detectors take: tensors, mappings, objects with logits, and what they refuse."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastood.detectors import (
    ODIN,
    SHE,
    DetectorSuite,
    EnergyBased,
    LinearHeadModel,
    MahalanobisDetector,
    MaxLogit,
    MaxSoftmax,
    MultiLayerMahalanobisDetector,
    ViM,
    build_detectors,
)
from tests.support.small_network import batches, network, rows


class Output(OrderedDict):
    """As transformers has them: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Texts(nn.Module):
    """A text classifier that takes keyword arguments and puts out an object."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        assert labels is None
        states = self.embedding(input_ids) * attention_mask[..., None]
        pooled = states.sum(1) / attention_mask.sum(1, keepdim=True)
        return Output(logits=self.classifier(input=pooled), pooler_output=pooled, last_hidden_state=states)


def texts(n: int = 40, *, key: str = "labels") -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(2)
    mask = torch.ones(n, 7, dtype=torch.int64)
    mask[:, 5:] = 0
    return {
        "input_ids": torch.randint(20, (n, 7), generator=draws),
        "attention_mask": mask,
        key: torch.arange(n) % 3,
    }


@pytest.mark.parametrize("key", ["labels", "label"])
def test_batches_that_are_mappings(key: str) -> None:
    model, batch = Texts(), texts(key=key)
    outputs = model.eval()(batch["input_ids"], batch["attention_mask"])
    features, logits = outputs.pooler_output.detach(), outputs.logits.detach()
    bare = {name: value for name, value in batch.items() if name != key}
    for x in (batch, bare):  # in which labels are not the model's
        assert torch.equal(MaxSoftmax(model).predict(x), MaxSoftmax().predict_features(logits))
    split = LinearHeadModel(model)
    for found, want in [
        (ViM(model).fit([batch]), ViM(head=model.classifier).fit_features(features, batch[key])),
        (
            MahalanobisDetector(model, shrinkage=0.1).fit([batch]),  # on what the pooler puts out
            MahalanobisDetector(shrinkage=0.1).fit_features(features, batch[key]),
        ),
        (MultiLayerMahalanobisDetector(model, ["classifier"], shrinkage=0.1).fit([batch]), None),
        (MaxLogit(lambda batch: model(**batch).logits), None),
        (build_detectors(split, ["she"])["she"].fit([batch]), SHE(model).fit([batch])),
        (build_detectors(split, ["klm"])["klm"].fit([batch]), None),
    ]:
        if want is not None:
            torch.testing.assert_close(found.predict(bare), want.predict_features(features))
            assert torch.equal(found.predict(batch), found.predict(bare))
        assert found.predict(batch).shape == (40,)
    with pytest.warns(
        RuntimeWarning, match="detector 'odin' is left out: TypeError: inputs must be one dense floating-point"
    ):
        scores = (
            DetectorSuite(split, build_detectors(split, ["odin", "msp", "knn"], settings={"knn": {"k": 3}}))
            .fit([batch])
            .predict(bare)
        )
    assert list(scores) == ["msp", "knn"]


def test_what_a_batch_must_be() -> None:
    x, y = batches()[0]
    for detector in (
        ViM(network()),
        MahalanobisDetector(network(), "relu"),
        MultiLayerMahalanobisDetector(network(), ["relu"]),
        DetectorSuite(LinearHeadModel(network()), build_detectors(LinearHeadModel(network()), ["knn"])),
    ):
        for loader, message in [
            ([x], r"must give batches \(inputs, labels, ...\) .*, got a Tensor without labels: labels are int64"),
            ([(x,)], r"got a tuple of 1 without labels: .*torch\.zeros\(len\(x\)"),
            ([{"pixels": x}], r"got a dict with 'pixels': it needs one of 'labels', 'label'"),
            ([{"x": x, "label": y, "labels": y}], r"got a dict with 'x', 'label', 'labels': it needs one of"),
            (["text"], "got a str without labels"),
            ([(x, y.tolist())], r"labels must be a torch\.Tensor, got list"),
            ([(x.numpy(), y)], r"inputs must be a torch\.Tensor, or a mapping .*, got ndarray: convert it"),
            ([(x.tolist(), y)], "inputs must be a .*, got list"),
            (x, "loader must iterate over batches, got a Tensor"),
            ({"x": x, "labels": y}, "loader must iterate over batches, got a dict: put it into a list"),
            (None, "loader must iterate over batches, got a NoneType"),
        ]:
            with pytest.raises(TypeError, match=message):
                detector.fit(loader)
    with pytest.raises(TypeError, match=r"must give batches"):
        ODIN(network()).choose_epsilon([x])


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (np.zeros((2, 8)), TypeError, r"inputs must be a torch\.Tensor, .* got ndarray: convert it"),
        ([[0.0] * 8], TypeError, "inputs must be a .* got list"),
        (None, TypeError, "inputs must be a .* got NoneType"),
        (torch.tensor(1.0), ValueError, r"inputs must be a batch \[N, ...\], got a tensor without dimensions"),
        (torch.zeros(2, 8, device="meta"), ValueError, "inputs must have values, got a tensor on the meta device"),
    ],
)
def test_what_inputs_must_be(x: object, kind: type[Exception], message: str) -> None:
    split = LinearHeadModel(network())
    for detector in (
        MaxSoftmax(network()),
        ViM(network()).fit(batches()),
        MahalanobisDetector(network(), "relu", shrinkage=0.1).fit(batches()),
        MultiLayerMahalanobisDetector(network(), ["relu"], shrinkage=0.1).fit(batches()),
        DetectorSuite(split, build_detectors(split, ["msp"])),
    ):
        with pytest.raises(kind, match=message):
            detector.predict(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(2, 8, dtype=torch.int64),
            r"moved along a gradient, got a tensor of torch\.int64, torch\.strided",
        ),
        (np.zeros((2, 8)), "to be moved along a gradient, got ndarray"),
        (torch.zeros(2, 8).to(torch.float8_e4m3fn), r"got a tensor of torch\.float8_e4m3fn"),
        ({"x": torch.zeros(2, 8)}, "to be moved along a gradient, got dict: use a detector that does not move inputs"),
    ],
)
def test_inputs_that_cannot_be_moved(x: object, message: str) -> None:
    for detector in (
        ODIN(network()),
        MahalanobisDetector(network(), "relu", shrinkage=0.1, epsilon=0.1).fit(batches()),
        MultiLayerMahalanobisDetector(network(), ["relu"], shrinkage=0.1, epsilon=0.1).fit(batches()),
    ):
        with pytest.raises(TypeError, match=message):
            detector.predict(x)


@pytest.mark.parametrize(
    "cut", [lambda model: lambda x: model(x.detach()), lambda model: torch.no_grad()(lambda x: model(x)), None]
)
def test_models_that_are_not_differentiable(cut: Callable[[nn.Module], Any] | None) -> None:
    model = network()
    cut_off = (lambda x: torch.zeros(len(x), 4, requires_grad=True) * 1) if cut is None else cut(model)
    with pytest.raises(ValueError, match="model must be differentiable at its inputs for them to be moved"):
        ODIN(cut_off).predict(rows(5))

    class Split:
        head = model.two

        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return LinearHeadModel(model)(x.detach())

        def features(self, x: Tensor) -> Tensor:
            return self(x)[0]

    suite = DetectorSuite(Split(), build_detectors(Split(), ["energy", "odin"]))
    with pytest.warns(RuntimeWarning, match="'odin' is left out: ValueError: model must be differentiable"):
        scores = suite.predict(rows(5))
    assert list(scores) == ["energy"]
    assert torch.equal(scores["energy"], EnergyBased(model).predict(rows(5)))


def test_outputs_that_are_no_tensors() -> None:
    model, x = network(), rows(5)
    want = MaxLogit(model).predict(x)
    for wrapped in (
        lambda x: {"logits": model(x)},
        lambda x: (model(x),),
        lambda x: Output(logits=model(x), loss=None),
    ):
        assert torch.equal(MaxLogit(wrapped).predict(x), want)
    with pytest.raises(
        TypeError, match=r"the model must return a tensor, got tuple of 2: pass a function that returns"
    ):
        MaxLogit(lambda x: (model(x), x)).predict(x)
    with pytest.raises(TypeError, match="the model must return a tensor, got dict with scores, loss: pass a function"):
        MaxLogit(lambda x: {"scores": model(x), "loss": None}).predict(x)
    with pytest.raises(TypeError, match="the model must return a tensor, got ndarray"):
        MaxLogit(lambda x: x.numpy()).predict(x)
