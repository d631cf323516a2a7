"""Benchmarks for a GPU only: replay from a CUDA graph compared with an empty kernel, Liger-Kernel, and quack.

Peak memory is kept with every comparison of `test_outlier_losses.py` on a GPU.
"""

from __future__ import annotations

import importlib.util
import math

import eager_losses as eager
import pytest
import torch
import torch.nn.functional as F
from harness import compare, empty_kernel, in_graph
from test_outlier_losses import Bench, Loss, Record, compiled, make_batch, same_loss
from torch import Tensor

from fastood.losses import OutlierExposureLoss
from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
HAS_QUACK = importlib.util.find_spec("quack") is not None


@pytest.fixture(autouse=True)
def _needs_cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")


@pytest.mark.parametrize(("rows", "classes"), [(128, 10), (256, 1000)], ids=str)
def test_replay_from_a_graph(
    rows: int, classes: int, dtype: torch.dtype, budget: dict[str, float], record: Record
) -> None:
    """Compare at small batches, where launches dominate; `empty kernel` is a graph of one kernel without work."""
    batch = make_batch(rows, classes, device="cuda", dtype=dtype)
    ours = OutlierExposureLoss(eager.OUTLIER_EXPOSURE_WEIGHT)
    calls = same_loss(
        {
            "fastood": (ours, (batch.logits, batch.targets)),
            "eager log_softmax": (eager.exposure_log_softmax, (batch.logits, batch.labels)),
            "torch.compile": (compiled(eager.exposure_log_softmax), (batch.logits, batch.labels)),
        }
    )
    calls["fastood, no autograd"] = lambda: ours.value_and_grad(batch.logits, batch.targets)
    calls["empty kernel"] = empty_kernel
    replays = {name: in_graph(run) for name, run in calls.items()}
    comparison = compare(
        "OutlierExposureLoss, replayed from a CUDA graph",
        f"{rows}x{classes}",
        replays,
        subject="fastood",
        dtype=str(dtype).removeprefix("torch."),
        device="cuda",
        **budget,
    )
    record(comparison, replays["fastood"])


@pytest.mark.skipif(not HAS_LIGER, reason="needs liger-kernel")
@pytest.mark.parametrize(("rows", "classes"), [(256, 1000), (4096, 1000), (16384, 1000), (4096, 21841)], ids=str)
def test_background_alone(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    """Compare the uniformity loss without weights, which Liger-Kernel has as a fully smoothed cross-entropy."""
    from liger_kernel.transformers import LigerCrossEntropyLoss

    batch = make_batch(rows, classes, device="cuda", dtype=dtype)
    criterion = LigerCrossEntropyLoss(label_smoothing=1.0)

    def liger(logits: Tensor, labels: Tensor) -> Tensor:
        return criterion(logits, labels) - math.log(classes)

    def log_softmax(logits: Tensor) -> Tensor:
        return -F.log_softmax(logits, 1).mean() - math.log(classes)

    # It overwrites its logits with the gradient, so that it gets a copy. From the second call on its input is the
    # gradient of the previous call, which takes as long.
    own_logits = batch.logits.detach().clone().requires_grad_()
    providers = same_loss(
        {
            "fastood": (lambda logits: weighted_uniformity(logits)[0], (batch.logits,)),
            "eager log_softmax": (log_softmax, (batch.logits,)),
            "torch.compile": (compiled(log_softmax), (batch.logits,)),
            "Liger-Kernel": (liger, (own_logits, batch.known)),
        }
    )
    providers["fastood, no autograd"] = lambda: weighted_uniformity_value_and_grad(batch.logits)
    bench("weighted_uniformity without weights", providers, (batch.logits,), 2 * rows * classes)


@pytest.mark.parametrize(("rows", "classes"), [(4096, 1000), (16384, 1000), (4096, 21841)], ids=str)
def test_cross_entropy_alone(rows: int, classes: int, dtype: torch.dtype, bench: Bench) -> None:
    """Compare a batch without background: the mean cross-entropy that Liger-Kernel and quack compute."""
    batch = make_batch(rows, classes, device="cuda", dtype=dtype)
    ours = OutlierExposureLoss(eager.OUTLIER_EXPOSURE_WEIGHT)
    providers: dict[str, tuple[Loss, tuple[Tensor, ...]]] = {
        "fastood": (ours, (batch.logits, batch.known)),
        "eager": (F.cross_entropy, (batch.logits, batch.known)),
        "torch.compile": (compiled(F.cross_entropy), (batch.logits, batch.known)),
    }
    if HAS_LIGER:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        own_logits = batch.logits.detach().clone().requires_grad_()
        providers["Liger-Kernel"] = (LigerCrossEntropyLoss(), (own_logits, batch.known))
    if HAS_QUACK:
        from quack import cross_entropy

        quack: Loss = lambda logits, labels: cross_entropy(logits, labels, reduction="mean")  # noqa: E731
        providers["quack"] = (quack, (batch.logits, batch.known))
    bench("cross-entropy without background", same_loss(providers), (batch.logits,), 2 * rows * classes)
