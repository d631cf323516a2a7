"""The outlier losses, forward and backward through autograd, compared with eager and compiled PyTorch.

Half of each batch is background: the last half, as one forward pass over two concatenated batches gives it, where
nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import eager_losses as eager
import pytest
import torch
from harness import Comparison, Run, compare, floor
from torch import Tensor

from fastood.losses import (
    EnergyLoss,
    EnergyRegularizedLoss,
    EntropyMaximizationLoss,
    ICELoss,
    ObjectosphereLoss,
    OutlierExposureLoss,
    RejectClassLoss,
)
from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad

Loss = Callable[..., Tensor]
Record = Callable[[Comparison, Run], None]

# Without one shape of the grid: 65536x21841, 5.7 GB of logits, of which eager code needs several times that.
MAX_LOGITS_BYTES = 1_500_000_000
GRID = [(n, k) for n in (128, 256, 384, 4096, 65536) for k in (10, 100, 1000, 21841) if n * k * 4 <= MAX_LOGITS_BYTES]
GRID += [(512, 21841), (16384, 1000)]
FAMILY_SHAPES = [(256, 10), (256, 1000), (4096, 100), (16384, 1000)]
NUM_FEATURES = 512


class Batch(NamedTuple):
    """Batch of logits, with the targets of the losses and of their peers."""

    logits: Tensor
    targets: Tensor
    """Targets of fastood: negative for background."""
    labels: Tensor
    """Classes of the in-distribution rows."""
    known: Tensor
    """`targets` with class 0 for background."""


def make_batch(rows: int, classes: int, *, device: str, dtype: torch.dtype = torch.float32) -> Batch:
    """Draw logits with a standard deviation of 3; labels leave the last classes to the reject-class loss."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, classes, generator=generator) * 3).to(device, dtype).requires_grad_()
    labels = torch.randint(classes - eager.NUM_REJECT, (rows // 2,), generator=generator).to(device)
    background = torch.full_like(labels, -1)
    return Batch(logits, torch.cat((labels, background)), labels, torch.cat((labels, background + 1)))


def forward_backward(loss: Loss, *arguments: Tensor) -> Run:
    """Return a call of a loss: its value, and the gradients of the arguments that require one."""
    leaves = [argument for argument in arguments if argument.requires_grad]

    def run() -> None:
        loss(*arguments).backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def compiled(loss: Loss) -> Loss:
    """Compile with `torch.compile` for static shapes, which is where it is fastest."""
    torch.compiler.reset()
    return torch.compile(loss, dynamic=False)


def same_loss(providers: dict[str, tuple[Loss, tuple[Tensor, ...]]]) -> dict[str, Run]:
    """Check that all providers agree with the first, and return the calls to time."""
    (expected, expected_gradients), *others = [value_and_gradients(*provider) for provider in providers.values()]
    tolerance = 1e-3 if expected_gradients[0].dtype == torch.float32 else 5e-2
    for name, (value, gradients) in zip(list(providers)[1:], others, strict=True):
        assert abs(value - expected) <= tolerance * max(1, abs(expected)), f"{name}: {value}, not {expected}"
        for gradient, reference in zip(gradients, expected_gradients, strict=True):
            error = float((gradient.float() - reference.float()).norm() / reference.float().norm())
            assert error <= tolerance, f"{name}: gradient off by {error:.1e}"
    return {name: forward_backward(loss, *arguments) for name, (loss, arguments) in providers.items()}


def value_and_gradients(loss: Loss, arguments: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
    """Compute the loss and the gradients of the arguments that require one."""
    value = loss(*arguments)
    return float(value.detach()), torch.autograd.grad(value, [x for x in arguments if x.requires_grad])


class Bench(NamedTuple):
    """Time a dictionary of providers, of which the first is fastood, and store the result."""

    device: str
    budget: dict[str, float]
    record: Record

    def __call__(self, op: str, providers: dict[str, Run], inputs: tuple[Tensor, ...], exponentials: int) -> None:
        """Run one comparison; `exponentials` is the least number that both passes need, for the floor."""
        size = sum(x.nbytes for x in inputs)
        seconds, floor_is = floor(self.device, 3 * size, exponentials)
        comparison = compare(
            op,
            f"{inputs[0].shape[0]}x{inputs[0].shape[1]}",
            providers,
            subject="fastood",
            dtype=str(inputs[0].dtype).removeprefix("torch."),
            device=self.device,
            floor=seconds,
            floor_is=f"read, read, write: {floor_is}" if "bytes" in floor_is else floor_is,
            input_bytes=size,
            **self.budget,
        )
        self.record(comparison, providers["fastood"])


@pytest.fixture
def bench(device: str, budget: dict[str, float], record: Record) -> Bench:
    return Bench(device, budget, record)


@pytest.mark.parametrize(("rows", "classes"), GRID, ids=str)
def test_outlier_exposure(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    ours = OutlierExposureLoss(eager.OUTLIER_EXPOSURE_WEIGHT)
    providers = same_loss(
        {
            "fastood": (ours, (batch.logits, batch.targets)),
            "eager log_softmax": (eager.exposure_log_softmax, (batch.logits, batch.labels)),
            "eager logsumexp": (eager.exposure_logsumexp, (batch.logits, batch.labels)),
            "torch.compile": (compiled(eager.exposure_log_softmax), (batch.logits, batch.labels)),
        }
    )
    providers["fastood, no autograd"] = lambda: ours.value_and_grad(batch.logits, batch.targets)
    bench("OutlierExposureLoss", providers, (batch.logits,), 2 * rows * classes)


@pytest.mark.parametrize(("rows", "classes"), [(256, 10), (4096, 100), (16384, 1000)], ids=str)
def test_outlier_exposure_in_mixed_order(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    """Compare on interleaved rows of both kinds, where peers cannot use halves."""
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).to(bench.device)
    arguments = (batch.logits, batch.targets[order])
    ours = OutlierExposureLoss(eager.OUTLIER_EXPOSURE_WEIGHT)
    providers = same_loss(
        {
            "fastood": (ours, arguments),
            "eager, boolean index": (eager.exposure_boolean_index, arguments),
            "eager, masked mean": (eager.exposure_masked_mean, arguments),
            "torch.compile": (compiled(eager.exposure_masked_mean), arguments),
        }
    )
    providers["fastood, no autograd"] = lambda: ours.value_and_grad(*arguments)
    bench("OutlierExposureLoss, rows in mixed order", providers, (batch.logits,), 2 * rows * classes)


@pytest.mark.parametrize(("rows", "classes"), FAMILY_SHAPES, ids=str)
def test_weighted_uniformity(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    """Compare the background term alone, with a weight per row."""
    logits = make_batch(rows, classes, device=bench.device, dtype=dtype).logits
    weight = torch.rand(rows, generator=torch.Generator().manual_seed(1)).to(bench.device, dtype)
    ours_weight = weight.float()
    providers = same_loss(
        {
            "fastood": (lambda logits, weight: weighted_uniformity(logits, weight)[0], (logits, ours_weight)),
            "eager log_softmax": (eager.uniformity_log_softmax, (logits, weight)),
            "eager logsumexp": (eager.uniformity_logsumexp, (logits, weight)),
            "torch.compile": (compiled(eager.uniformity_log_softmax), (logits, weight)),
        }
    )
    providers["fastood, no autograd"] = lambda: weighted_uniformity_value_and_grad(logits, ours_weight)
    bench("weighted_uniformity", providers, (logits,), 2 * rows * classes)


@pytest.mark.parametrize(("rows", "classes"), FAMILY_SHAPES, ids=str)
def test_entropy_maximization(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    ours = EntropyMaximizationLoss(eager.OUTLIER_EXPOSURE_WEIGHT)
    providers = same_loss(
        {
            "fastood": (ours, (batch.logits, batch.targets)),
            "eager": (eager.entropy, (batch.logits, batch.labels)),
            "torch.compile": (compiled(eager.entropy), (batch.logits, batch.labels)),
        }
    )
    providers["fastood, no autograd"] = lambda: ours.value_and_grad(batch.logits, batch.targets)
    bench("EntropyMaximizationLoss", providers, (batch.logits,), 2 * rows * classes)


ENERGY_LOSSES = {
    "EnergyRegularizedLoss": (
        EnergyRegularizedLoss(eager.ENERGY_WEIGHT, eager.MARGIN_ID, eager.MARGIN_BACKGROUND),
        eager.energy_margin,
        eager.energy_margin_by_cross_entropy,
    ),
    "EnergyLoss": (EnergyLoss(eager.ENERGY_WEIGHT), eager.energy, eager.energy_by_cross_entropy),
}


@pytest.mark.parametrize(("rows", "classes"), FAMILY_SHAPES, ids=str)
@pytest.mark.parametrize("name", ENERGY_LOSSES)
def test_energy(name: str, rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    ours, by_logsumexp, by_cross_entropy = ENERGY_LOSSES[name]
    providers = same_loss(
        {
            "fastood": (ours, (batch.logits, batch.targets)),
            "eager logsumexp": (by_logsumexp, (batch.logits, batch.labels)),
            "eager cross-entropy": (by_cross_entropy, (batch.logits, batch.known)),
            "torch.compile": (compiled(by_logsumexp), (batch.logits, batch.labels)),
        }
    )
    providers["fastood, no autograd"] = lambda: ours.value_and_grad(batch.logits, batch.targets)
    bench(name, providers, (batch.logits,), 2 * rows * classes)


@pytest.mark.parametrize(("rows", "classes"), FAMILY_SHAPES, ids=str)
def test_reject_class(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    """Compare with precomputed draws, so that all providers choose the same reject classes."""
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    uniform01 = torch.rand(rows, generator=torch.Generator().manual_seed(1)).to(bench.device)
    drawn = (uniform01[rows // 2 :] * eager.NUM_REJECT).long() + classes - eager.NUM_REJECT
    ours = RejectClassLoss(eager.NUM_REJECT, eager.REJECT_WEIGHT)
    providers = same_loss(
        {
            "fastood": (lambda *tensors: ours(*tensors, uniform01=uniform01), (batch.logits, batch.targets)),
            "eager": (eager.reject_class, (batch.logits, batch.labels, drawn)),
            "torch.compile": (compiled(eager.reject_class), (batch.logits, batch.labels, drawn)),
        }
    )
    providers["fastood, no autograd"] = lambda: ours.value_and_grad(batch.logits, batch.targets, uniform01=uniform01)
    bench("RejectClassLoss", providers, (batch.logits,), 2 * rows * classes)


@pytest.mark.parametrize(("rows", "classes"), FAMILY_SHAPES, ids=str)
def test_ice(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    """Compare on logits that are negative distances."""
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    logits = (-batch.logits.detach().square() - 0.5).requires_grad_()
    ours = ICELoss(eager.ICE_WEIGHT)
    providers = same_loss(
        {
            "fastood": (ours, (logits, batch.targets)),
            "eager": (eager.ice, (logits, batch.labels)),
            "torch.compile": (compiled(eager.ice), (logits, batch.labels)),
        }
    )
    providers["fastood, no autograd"] = lambda: ours.value_and_grad(logits, batch.targets)
    # Background rows need their largest logit only.
    bench("ICELoss", providers, (logits,), rows * classes)


@pytest.mark.parametrize(("rows", "classes"), FAMILY_SHAPES, ids=str)
def test_objectosphere(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    batch = make_batch(rows, classes, device=bench.device, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(rows, NUM_FEATURES, generator=generator).to(bench.device, dtype).requires_grad_()
    ours = ObjectosphereLoss(eager.MIN_MAGNITUDE, eager.MAGNITUDE_WEIGHT)
    providers = same_loss(
        {
            "fastood": (ours, (batch.logits, features, batch.targets)),
            "eager": (eager.objectosphere, (batch.logits, features, batch.labels)),
            "torch.compile": (compiled(eager.objectosphere), (batch.logits, features, batch.labels)),
        }
    )
    bench("ObjectosphereLoss", providers, (batch.logits, features), 2 * rows * classes)
