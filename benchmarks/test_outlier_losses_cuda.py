"""Benchmarks for a GPU only: replay from a CUDA graph compared with an empty kernel, and Liger-Kernel.

Peak memory is kept with every comparison of `test_outlier_losses.py` on a GPU.
"""

from __future__ import annotations

import importlib.util
import math

import eager_losses as eager
import pytest
import torch
import torch.nn.functional as F
from harness import Run, compare
from test_outlier_losses import Bench, Record, compiled, make_batch, same_loss
from torch import Tensor

from fastood.losses import OutlierExposureLoss
from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


@pytest.fixture(autouse=True)
def _needs_cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")


def in_graph(run: Run) -> Run:
    """Capture one call, after a warm-up on another stream as capture requires, and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


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
    # Spins for zero cycles: PyTorch's own empty kernel.
    calls["empty kernel"] = lambda: torch.cuda._sleep(0)
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
