"""Models as users have them: compiled, exported, scripted, in 16 bits, distributed, frozen."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastood.detectors import (
    ODIN,
    SHE,
    DetectorSuite,
    FeatureExtractor,
    LinearHeadModel,
    MahalanobisDetector,
    MaxLogit,
    MaxSoftmax,
    MultiLayerMahalanobisDetector,
    ViM,
    build_detectors,
)
from tests.support.small_network import batches, network, rows

NAMES = ["msp", "knn", "vim", "odin"]


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
    with pytest.raises(TypeError, match="layers of a ScriptModule take no hooks: pass the module that it was made"):
        FeatureExtractor(scripted, ["one"])
    with pytest.raises(ValueError, match=r"has no nn\.Linear: pass head="):
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
    logits = model(leaf := x.to(dtype).requires_grad_())
    # Of 16 bits the softmax, too, would decide signs by its rounding.
    (gradient,) = torch.autograd.grad(-logits.double().log_softmax(1).amax(1).sum(), leaf)
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
