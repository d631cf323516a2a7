"""What every op owes to PyTorch: schema, fake kernel, compile, export. Every registered op is checked."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad
from fastood.ops.outlier_loss import LossKind, LossSettings
from tests.support.augment_images_samples import augment_images_calls
from tests.support.background_pool_samples import pool_args
from tests.support.class_l1_nearest_samples import class_l1_nearest_calls
from tests.support.detection_metrics_samples import detection_metrics_calls
from tests.support.loss_modules import FEATURES, KNOWN, LOSS_MODULES, Batch, LossModule, mixed_batch
from tests.support.mahalanobis_samples import mahalanobis_calls
from tests.support.op_samples import logit_scores_calls, outlier_loss_calls


def registered_ops() -> set[str]:
    prefix = "fastood::"
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}


def op_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    return [
        *outlier_loss_calls(device),
        *logit_scores_calls(device),
        *mahalanobis_calls(device),
        *class_l1_nearest_calls(device),
        *pool_args(device),
        *detection_metrics_calls(device),
        *augment_images_calls(device),
    ]


def test_every_op_has_samples() -> None:
    assert {name for name, _, _ in op_calls("cpu")} == registered_ops()


def test_opcheck(device: str) -> None:
    for _, op, args in op_calls(device):
        torch.library.opcheck(op, args)


def test_fake_cuda_tensors_need_no_gpu() -> None:
    with FakeTensorMode():
        logits = torch.empty(8, 10, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(8, device="cuda")
        rows = (torch.empty(8, device="cuda", dtype=torch.int64), weight, None)
        settings = LossSettings(LossKind.UNIFORMITY)
        loss, per_sample, row_stats, factors = torch.ops.fastood.outlier_loss(logits, *rows, *settings)
        gradient = torch.ops.fastood._outlier_loss_backward(loss, logits, row_stats, factors, settings.kind)
    assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", torch.float32, ())
    assert (per_sample.shape, row_stats.shape, row_stats.dtype) == ((8,), (8, 5), torch.float32)
    assert (factors.shape, factors.dtype) == ((4,), torch.float64)
    assert (gradient.dtype, gradient.shape) == (torch.bfloat16, (8, 10))


modules = pytest.mark.parametrize("module", LOSS_MODULES, ids=str)


class Head(torch.nn.Module):
    """A network of two layers and one of the losses."""

    def __init__(self, module: LossModule) -> None:
        super().__init__()
        self.body, self.linear = torch.nn.Linear(6, FEATURES), torch.nn.Linear(FEATURES, KNOWN)
        self.module, self.criterion = module, module.make()

    def forward(self, x: Tensor, targets: Tensor, weight: Tensor, uniform01: Tensor) -> Tensor:
        features = self.body(x)
        # Below zero, as distances are: every loss can take them.
        logits = -self.linear(features).square()
        batch = Batch(logits, features, targets, weight, uniform01)
        return self.module.call(self.criterion, batch, weighted=True)


def head_and_inputs(module: LossModule, device: str) -> tuple[Head, tuple[Tensor, ...]]:
    batch = mixed_batch(rows=12, dtype=torch.float32).to(device)
    torch.manual_seed(0)
    head = Head(module).to(device)
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).to(device)
    return head, (x, batch.targets, batch.weight, batch.uniform01)


@pytest.fixture
def compiler() -> None:
    """Every loss is a recompilation of the same code to dynamo, which allows eight."""
    torch.compiler.reset()


@modules
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(module: LossModule, backend: str, device: str) -> None:
    head, inputs = head_and_inputs(module, device)
    want = head(*inputs)
    want.backward()
    gradients = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    got = torch.compile(head, fullgraph=True, backend=backend)(*inputs)
    got.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close([p.grad for p in head.parameters()], gradients)


@modules
@pytest.mark.usefixtures("compiler")
def test_compile_with_batches_of_any_size(module: LossModule, device: str) -> None:
    head, inputs = head_and_inputs(module, device)
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (12, 7, 5):
        some = tuple(x[:rows].contiguous() for x in inputs)
        torch.testing.assert_close(compiled(*some), head(*some))


@modules
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compile_every_reduction(module: LossModule, reduction: str, device: str) -> None:
    batch = mixed_batch(rows=6, dtype=torch.float32).to(device)
    criterion = module.make(reduction=reduction)

    def gradient(call: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        leaf = batch.logits.clone().requires_grad_()
        loss = call(leaf)
        loss.sum().backward()
        return loss.detach(), leaf.grad

    def call(logits: Tensor) -> Tensor:
        return module.call(criterion, replace(batch, logits=logits), True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled), gradient(call))


@modules
def test_export(module: LossModule, device: str) -> None:
    head, inputs = head_and_inputs(module, device)
    batch = torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(head, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    torch.testing.assert_close(exported.module()(*inputs), head(*inputs))
    half = tuple(tensor[:6] for tensor in inputs)
    torch.testing.assert_close(exported.module()(*half), head(*half))


@modules
def test_autocast_keeps_the_loss_in_float32(module: LossModule, device: str) -> None:
    """Under autocast the logits come in bfloat16 and are read as such: no copy of them in float32."""
    head, inputs = head_and_inputs(module, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = head(*inputs)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.needs_cuda
def test_cuda_equals_cpu() -> None:
    for name, op, args in op_calls("cuda"):
        # Copied before the call: some ops write into their arguments, and return nothing.
        on_cpu = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
        got, want = ([x for x in tree_leaves((op(*given), given)) if isinstance(x, Tensor)] for given in (args, on_cpu))
        for g, w in zip(got, want, strict=True):
            # Matrix products: an entry that is a difference has the error of what it is the difference of.
            atol = 4e-6 * float(w.abs().max()) if "mahalanobis" in name and w.numel() > 0 else 1e-6
            torch.testing.assert_close(g.cpu(), w, rtol=1e-2 if g.dtype.itemsize == 2 else 1e-5, atol=atol)


@pytest.mark.needs_cuda
def test_cuda_uses_the_current_stream_and_repeats_bit_for_bit() -> None:
    source = torch.randn(4096, 1000, device="cuda")
    want = weighted_uniformity_value_and_grad((source * 3).cpu())
    logits = torch.zeros_like(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Kept busy for about 0.1 s: on any other stream the op would read zeros, whose loss is zero.
        torch.cuda._sleep(200_000_000)
        logits.copy_(source * 3)
        leaf = logits.detach().requires_grad_()
        loss = weighted_uniformity(leaf)[0]
        loss.backward()
        first = weighted_uniformity_value_and_grad(logits)
        second = weighted_uniformity_value_and_grad(logits)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(loss.detach().cpu(), want[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(leaf.grad.cpu(), want[2], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(first[2].cpu(), want[2], rtol=1e-3, atol=1e-9)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("shape", [(4100, 1025), (262_200, 3)], ids=str)
def test_cuda_rows_beyond_one_grid(shape: tuple[int, int]) -> None:
    """More rows than the capped grid has groups: the grid-stride iteration."""
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    want = weighted_uniformity_value_and_grad(logits)
    got = weighted_uniformity_value_and_grad(logits.cuda())
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu(), w, rtol=1e-4, atol=1e-7)


@pytest.mark.needs_cuda
@modules
@pytest.mark.parametrize("rows", [40, 3000])
def test_cuda_graph_replay(module: LossModule, rows: int) -> None:
    """Forward and backward captured once, replayed on other logits; one block and many."""
    batch, other = (mixed_batch(seed, rows=rows, dtype=torch.float32).to("cuda") for seed in (0, 1))
    batch = replace(batch, logits=batch.logits.requires_grad_())
    criterion = module.make()

    def forward_backward() -> Tensor:
        batch.logits.grad = None
        loss = module.call(criterion, batch, weighted=True)
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward_backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = forward_backward()
    gradient = batch.logits.grad
    with torch.no_grad():
        for mine, theirs in zip(vars(batch).values(), vars(other).values(), strict=True):
            mine.copy_(theirs)
    graph.replay()
    want = replace(other, logits=other.logits.requires_grad_())
    want_loss = module.call(criterion, want, weighted=True)
    want_loss.backward()
    torch.testing.assert_close(loss, want_loss)
    torch.testing.assert_close(gradient, want.logits.grad)


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(capability: str) -> None:
    """The copies of the CPU kernels for older machines, in a process of their own: the choice is made once."""
    script = (
        "import torch, fastood\n"
        "from tests.support.op_samples import LOSS_SAMPLES\n"
        "from tests.ops.test_outlier_loss import test_matches_float64_reference as check\n"
        f"assert fastood.build_info()['cpu_capability'] in ('baseline', '{capability}')\n"
        "for sample in LOSS_SAMPLES: check(sample, torch.float32, 'cpu')\n"
    )
    environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
