"""What every op owes to PyTorch: schema, fake kernel, compile, export. Every registered op is checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_samples import outlier_loss_calls
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastood.losses import OutlierExposureLoss
from fastood.ops import weighted_uniformity, weighted_uniformity_value_and_grad
from fastood.ops.outlier_loss import LossKind, LossSettings


def registered_ops() -> set[str]:
    prefix = "fastood::"
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}


def test_every_op_has_samples() -> None:
    assert {name for name, _, _ in outlier_loss_calls("cpu")} == registered_ops()


def test_opcheck(device: str) -> None:
    for _, op, args in outlier_loss_calls(device):
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


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 10)
        self.criterion = OutlierExposureLoss(weight=0.5, reduction="mean")

    def forward(self, x: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(x)
        return self.criterion(logits, targets, weight), weighted_uniformity(logits, weight)[0]


def head_inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 6, generator=generator).to(device)
    targets = torch.tensor([0, 9, 3, -1, -1, -1, 2, -1, 5, -1, -1, 4], device=device)
    return x, targets, torch.rand(12, generator=generator).to(device)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: str) -> None:
    torch.manual_seed(0)
    head = Head().to(device)
    inputs = head_inputs(device)
    want = head(*inputs)
    sum(want).backward()
    gradient = head.linear.weight.grad.clone()
    head.zero_grad()
    got = torch.compile(head, fullgraph=True, backend=backend)(*inputs)
    sum(got).backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(head.linear.weight.grad, gradient)


def test_export(device: str) -> None:
    head = Head().to(device).eval()
    inputs = head_inputs(device)
    batch = torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(head, inputs, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    torch.testing.assert_close(exported.module()(*inputs), head(*inputs))
    half = tuple(tensor[:6] for tensor in inputs)
    torch.testing.assert_close(exported.module()(*half), head(*half))


def test_autocast_keeps_the_loss_in_float32(device: str) -> None:
    head = Head().to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss, uniformity = head(*head_inputs(device))
    assert loss.dtype == uniformity.dtype == torch.float32
    (loss + uniformity).backward()
    assert torch.isfinite(head.linear.weight.grad).all()


@pytest.mark.needs_cuda
def test_cuda_equals_cpu() -> None:
    for _, op, args in outlier_loss_calls("cuda"):
        got = op(*args)
        want = op(*(a.cpu() if isinstance(a, Tensor) else a for a in args))
        for g, w in zip(*((r,) if isinstance(r, Tensor) else r for r in (got, want)), strict=True):
            torch.testing.assert_close(g.cpu(), w, rtol=1e-2 if g.dtype.itemsize == 2 else 1e-5, atol=1e-6)


@pytest.mark.needs_cuda
def test_cuda_uses_the_current_stream_and_repeats_bit_for_bit() -> None:
    source = torch.randn(4096, 1000, device="cuda")
    want = weighted_uniformity_value_and_grad((source * 3).cpu())
    logits = torch.zeros_like(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
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
def test_cuda_graph_replay() -> None:
    logits = torch.randn(256, 100, device="cuda")
    weighted_uniformity(logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, _ = weighted_uniformity(logits)
    logits.copy_(torch.randn(256, 100) * 3)
    graph.replay()
    torch.testing.assert_close(loss, weighted_uniformity(logits)[0])


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(capability: str) -> None:
    """The copies of the CPU kernels for older machines, in a process of their own: the choice is made once."""
    script = (
        "import torch, fastood; from fastood.ops import weighted_uniformity_value_and_grad as f, reference as r\n"
        f"assert fastood.build_info()['cpu_capability'] in ('baseline', '{capability}')\n"
        "g = torch.Generator().manual_seed(0)\n"
        "for shape in [(33, 10), (5, 1000)]:\n"
        "    x = torch.randn(shape, generator=g); loss, rows, grad = f(x)\n"
        "    torch.testing.assert_close(rows.double(), r.weighted_uniformity(x)[1], rtol=1e-5, atol=1e-7)\n"
        "    want = (torch.softmax(x.double(), 1) - 1 / shape[1]) / shape[0]\n"
        "    torch.testing.assert_close(grad.double(), want, rtol=1e-5, atol=1e-8)\n"
    )
    environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
