"""Models as users have them: compiled, exported, scripted, in 16 bits, distributed, with objects for outputs."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastood.detectors import (
    ODIN,
    SHE,
    DetectorSuite,
    EnergyBased,
    FeatureExtractor,
    LinearHeadModel,
    MahalanobisDetector,
    MaxLogit,
    MaxSoftmax,
    MultiLayerMahalanobisDetector,
    ViM,
    build_detectors,
)

NAMES = ["msp", "knn", "vim", "odin"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(one=nn.Linear(8, 16), relu=nn.ReLU(), two=nn.Linear(16, 4))).eval()


def rows(n: int = 60) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(rows(), torch.arange(60) % 4)]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def nested(model: nn.Sequential) -> nn.Module:
    """A model of which a part is compiled."""
    return nn.Sequential(OrderedDict(one=model.one, rest=torch.compile(model[1:], backend="eager"))).eval()


def in_place(model: nn.Sequential) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize(
    ("wrap", "layer"),
    [
        (lambda model: torch.compile(model, backend="eager"), "relu"),
        (lambda model: torch.compile(model, backend="eager"), "_orig_mod.relu"),
        (lambda model: torch.compile(nn.DataParallel(model), backend="eager"), "relu"),
        (in_place, "relu"),
        (nested, "rest.relu"),
        (nested, "rest._orig_mod.relu"),
        (nn.DataParallel, "relu"),
        (nn.DataParallel, "module.relu"),
    ],
)
def test_layers_and_heads_of_wrapped_models(wrap: Callable[[nn.Module], nn.Module], layer: str, has_run: bool) -> None:
    torch._dynamo.reset()  # or it gives up after some models, and runs their layers with hooks
    plain, wrapped = network(), wrap(network())
    x = rows(5)
    if has_run:  # on all that follows, so that nothing is compiled again
        for known in (x, rows()):
            wrapped(known)
            with torch.no_grad():
                wrapped(known)
    for found, want in [
        (FeatureExtractor(wrapped, [layer])(x)[0], FeatureExtractor(plain, ["relu"])(x)[0]),
        (LinearHeadModel(wrapped)(x)[0], LinearHeadModel(plain)(x)[0]),
        (LinearHeadModel(wrapped)(x)[1], plain(x)),
        (MaxLogit(wrapped).predict(x), MaxLogit(plain).predict(x)),
        (ODIN(wrapped, epsilon=0.1).predict(x), ODIN(plain, epsilon=0.1).predict(x)),
        (
            MahalanobisDetector(wrapped, layer, shrinkage=0.1).fit(batches()).predict(x),
            MahalanobisDetector(plain, "relu", shrinkage=0.1).fit(batches()).predict(x),
        ),
        (ViM(wrapped, layer).fit(batches()).predict(x), ViM(plain).fit(batches()).predict(x)),
    ]:
        torch.testing.assert_close(found, want)
    with pytest.raises(ValueError, match=r"the model has no layer 'three'; it has .*one"):
        FeatureExtractor(wrapped, ["three"])
    assert not any(module._forward_hooks for module in wrapped.modules())


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel() -> None:
    """Of one process alone, too: its forward pass waits for nobody, and no reducer waits for a backward pass."""
    plain = network()
    wrapped = nn.parallel.DistributedDataParallel(network().train())
    x = rows(5)
    calls = 0

    def count(*args: object) -> None:
        nonlocal calls
        calls += 1

    wrapped.register_forward_pre_hook(count)
    for _ in range(2):
        assert torch.equal(ODIN(wrapped, epsilon=0.1).predict(x), ODIN(plain, epsilon=0.1).predict(x))
    assert torch.equal(SHE(wrapped).fit(batches()).predict(x), SHE(plain).fit(batches()).predict(x))
    assert calls == 0
    assert wrapped.training
    assert wrapped.module.one.training


def test_exported_programs() -> None:
    plain, x = network(), rows(5)
    program = torch.export.export(plain, (rows(6),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    exported = program.module()
    assert torch.equal(MaxSoftmax(exported).predict(x), MaxSoftmax(plain).predict(x))
    assert torch.equal(ODIN(exported, epsilon=0.1).predict(x), ODIN(plain, epsilon=0.1).predict(x))
    with pytest.raises(TypeError, match=r"got an ExportedProgram: pass program\.module\(\)"):
        MaxSoftmax(program)
    with pytest.raises(ValueError, match="'one' did not run in the forward pass of the model, an exported program"):
        FeatureExtractor(exported, ["one"])(x)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, rows(5))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_modules(make: Callable[[nn.Module], nn.Module]) -> None:
    plain, x = network(), rows(5)
    scripted = make(network())
    assert torch.equal(MaxSoftmax(scripted).predict(x), MaxSoftmax(plain).predict(x))
    assert torch.equal(ODIN(scripted, epsilon=0.1).predict(x), ODIN(plain, epsilon=0.1).predict(x))
    with pytest.raises(TypeError, match="layers of a ScriptModule cannot be watched: pass the module that it was made"):
        FeatureExtractor(scripted, ["one"])
    with pytest.raises(ValueError, match=r"has no nn\.Linear to be its head"):
        ViM(scripted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("of_inputs", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_take_the_dtype_of_the_model(dtype: torch.dtype, of_inputs: torch.dtype) -> None:
    model = network().to(dtype)
    split = LinearHeadModel(model)
    suite = DetectorSuite(split, build_detectors(split, NAMES)).fit(batches())
    assert suite.failed == {}
    x = rows(5).to(of_inputs)
    assert torch.equal(suite.predict(x)["msp"], MaxSoftmax().predict_features(model(x.to(dtype))))
    # The step is taken in the dtype of the inputs, and not lost in that of the model.
    step = ODIN(model, epsilon=0.25, temperature=1)
    (gradient,) = torch.autograd.grad(-model(leaf := x.to(dtype).requires_grad_()).log_softmax(1).amax(1).sum(), leaf)
    moved = x - 0.25 * gradient.sign().to(of_inputs)
    torch.testing.assert_close(step.predict(x), MaxSoftmax().predict_features(model(moved.to(dtype))))
    detector = MahalanobisDetector(model, "relu", shrinkage=0.1, epsilon=0.01).fit(batches())
    assert detector.predict(x).isfinite().all()


def test_integer_inputs_stay_integers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(10, 6), nn.Linear(6, 3)).bfloat16()
    tokens = torch.randint(10, (4, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(MaxLogit(model).predict(tokens), MaxLogit().predict_features(model(tokens)))


def test_heads_that_are_compiled() -> None:
    model, x = network(), rows(5)
    compiled = torch.compile(model.two, backend="eager")
    for kind in (ViM, SHE):
        want = kind(model[:2], head=model.two).fit(batches()).predict(x)
        assert torch.equal(kind(model[:2], head=compiled).fit(batches()).predict(x), want)


def load(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Load weights when the layer runs, as those that do not fit into memory are."""
    module.to_empty(device="cpu")


def test_models_without_values() -> None:
    with pytest.raises(ValueError, match="logits must have values, got a tensor on the meta device"):
        MaxSoftmax(network().to("meta")).predict(rows(5))
    model = network()
    model.one.to("meta")
    model.one.register_forward_pre_hook(load)
    assert MaxSoftmax(model).predict(rows(5)).shape == (5,)


def test_frozen_models() -> None:
    plain, frozen = network(), network().requires_grad_(False)
    x = rows(5)
    for make in (
        lambda model: ODIN(model, epsilon=0.1),
        lambda model: MahalanobisDetector(model, "relu", shrinkage=0.1, epsilon=0.01).fit(batches()),
        lambda model: MultiLayerMahalanobisDetector(model, ["relu", "two"], shrinkage=0.1, epsilon=0.01).fit(batches()),
    ):
        assert torch.equal(make(frozen).predict(x), make(plain).predict(x))


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
            ([{"pixels": x}], r"got a dict with 'pixels': one of 'labels', 'label' is wanted"),
            ([{"x": x, "label": y, "labels": y}], r"got a dict with 'x', 'label', 'labels': one of"),
            (["text"], "got a str without labels"),
            ([(x, y.tolist())], r"labels must be a torch\.Tensor, got list"),
            ([(x.numpy(), y)], r"inputs must be a torch\.Tensor, or a mapping .*, got ndarray: make a tensor of it"),
            ([(x.tolist(), y)], "inputs must be a .*, got list"),
            (x, "loader must go through batches, got a Tensor"),
            ({"x": x, "labels": y}, "loader must go through batches, got a dict: put it into a list"),
            (None, "loader must go through batches, got a NoneType"),
        ]:
            with pytest.raises(TypeError, match=message):
                detector.fit(loader)
    with pytest.raises(TypeError, match=r"must give batches"):
        ODIN(network()).choose_epsilon([x])


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (np.zeros((2, 8)), TypeError, r"inputs must be a torch\.Tensor, .* got ndarray: make a tensor of it"),
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
        TypeError, match=r"the model must put out a tensor, got tuple of 2: pass a function that returns"
    ):
        MaxLogit(lambda x: (model(x), x)).predict(x)
    with pytest.raises(TypeError, match="the model must put out a tensor, got dict with scores, loss: pass a function"):
        MaxLogit(lambda x: {"scores": model(x), "loss": None}).predict(x)
    with pytest.raises(TypeError, match="the model must put out a tensor, got ndarray"):
        MaxLogit(lambda x: x.numpy()).predict(x)
