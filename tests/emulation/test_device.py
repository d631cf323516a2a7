"""The emulated device: tensors of PyTorch behave on it as on a GPU, and leaving it restores PyTorch."""

import copy
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastood  # noqa: F401
from tests.emulation import kernels
from tests.emulation.device import emulated_cuda, is_on
from tests.emulation.rules import NOT_ON_CUDA
from tests.emulation.waits import count_host_waits

pytestmark = pytest.mark.skipif(torch.cuda.is_available() and not is_on(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    with emulated_cuda():
        yield


def test_leaving_it_restores_pytorch() -> None:
    script = (
        "import torch\n"
        "from tests.emulation.device import emulated_cuda\n"
        "owners = (torch, torch.cuda, torch.accelerator, torch.Tensor, torch.autograd, torch.autograd.graph)\n"
        "before = [dict(vars(owner)) for owner in owners]\n"
        "flags = torch.backends.cudnn.enabled\n"
        "for _ in range(2):\n"
        "    with emulated_cuda(), emulated_cuda():\n"
        "        assert torch.cuda.is_available() and torch.ones(2, device='cuda').is_cuda\n"
        "assert [dict(vars(owner)) for owner in owners] == before and torch.backends.cudnn.enabled == flags\n"
        "assert not torch.cuda.is_available()\n"
        "x = torch.ones(2, requires_grad=True)\n"
        "(x * x).sum().backward()\n"
        "try:\n"
        "    torch.ones(2, device='cuda')\n"
        "except (RuntimeError, AssertionError):\n"
        "    print('gone')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.stdout == "gone\n", done.stderr


def test_a_network_trains() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    on_cpu = copy.deepcopy(network)
    parameters = list(network.parameters())
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 3
    network.to("cuda")
    assert list(map(id, network.parameters())) == list(map(id, parameters)), "optimizers of before still hold them"
    for net, device in ((network, "cuda"), (on_cpu, "cpu")):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images.to(device)), labels.to(device)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    for ours, theirs in zip(network.state_dict().values(), on_cpu.state_dict().values(), strict=True):
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), theirs)


def test_storing_loading_and_copying() -> None:
    layer = nn.Linear(2, 3, device="cuda")
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "parameter": layer.weight}, file)
    for where, device in ((None, "cuda"), ("cpu", "cpu"), ("cuda", "cuda")):
        file.seek(0)
        stored = torch.load(file, map_location=where, weights_only=True)
        assert {t.device.type for t in (*stored["layer"].values(), stored["parameter"])} == {device}
        assert isinstance(stored["parameter"], nn.Parameter)
        assert stored["parameter"].tolist() == layer.weight.tolist()
    again = copy.deepcopy(layer)
    with torch.no_grad():
        again.weight.zero_()
    assert isinstance(again.weight, nn.Parameter)
    assert again.weight.requires_grad
    assert bool(layer.weight.ne(0).any())


def test_views_share_memory_and_in_place_ops_write_it() -> None:
    x = torch.zeros(3, 4, device="cuda")
    row, column = x[1], x.t()[2]
    row.add_(1)
    column.mul_(5)
    x.view(-1)[0] = 7
    x[2, 1:3] = torch.tensor([8.0, 9.0], device="cuda")
    assert x.tolist() == [[7, 0, 0, 0], [1, 1, 5, 1], [0, 8, 9, 0]]
    assert row.tolist() == [1, 1, 5, 1]
    x.data = torch.ones(2, device="cuda")
    assert (x + 1).tolist() == [2, 2]
    other = torch.empty(2, device="cuda")
    torch.add(x, 1, out=other)
    assert other.tolist() == [2, 2]


def test_autograd_sees_a_value_that_was_written_over() -> None:
    x = torch.ones(3, device="cuda", requires_grad=True)
    y = x * 2
    z = y * y
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_autocast_and_the_gradient_scaler() -> None:
    layer = nn.Linear(4, 4, device="cuda")
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    with torch.autocast("cuda", dtype=torch.float16):
        out = layer(torch.ones(2, 4, device="cuda"))
        assert out.dtype == torch.float16
    scaler.scale(out.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(layer.weight, before)


def test_random_numbers_are_those_of_the_device() -> None:
    torch.manual_seed(3)
    on_cpu = torch.rand(4)
    torch.manual_seed(3)
    state = torch.cuda.get_rng_state()
    first = torch.rand(4, device="cuda")
    nn.functional.dropout(first)
    assert torch.equal(torch.rand(4), on_cpu), "the generator of the CPU has not moved"
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), first)
    mine = torch.Generator(device="cuda").manual_seed(5)
    assert mine.device.type == "cuda"
    assert isinstance(mine, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    assert torch.equal(
        torch.randn(4, device="cuda", generator=mine),
        torch.empty(4, device="cuda").normal_(generator=mine.manual_seed(5)),
    )
    state = torch.cuda.get_rng_state()
    with torch.random.fork_rng([0]):
        torch.cuda.manual_seed(11)
        assert not torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_other_threads_have_the_device() -> None:
    found: list[Tensor] = []

    def work() -> None:
        x = torch.ones(3).to("cuda").requires_grad_()
        (x * 2).sum().backward()
        found.append(x.grad)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].tolist() == [2, 2, 2]


def test_a_loader_pins_its_batches() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6.0))
    for (batch,) in torch.utils.data.DataLoader(data, batch_size=3, pin_memory=True):
        assert batch.is_pinned()
        with count_host_waits() as waits:
            batch.to("cuda", non_blocking=True)
        assert not waits, waits


def test_new_memory_holds_poison() -> None:
    for made in (torch.empty(3, device="cuda"), torch.empty_like(torch.ones(3, device="cuda"))):
        assert made.isnan().all()
    assert torch.ones(2, device="cuda").new_empty(2, dtype=torch.int64).tolist() == [2**63 - 1] * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d, c: d + c, RuntimeError, "found at least two devices"),
        (lambda d, c: c.add_(d), RuntimeError, "found at least two devices"),
        (lambda d, c: torch.cat([d, c]), RuntimeError, "found at least two devices"),
        (lambda d, c: d.index_select(0, c.long()), RuntimeError, "found at least two devices"),
        (lambda d, c: d.gather(0, c.long()), RuntimeError, "found at least two devices"),
        (lambda d, c: d.matmul(c), RuntimeError, "found at least two devices"),
        (lambda d, c: torch.searchsorted(d, c), RuntimeError, "found at least two devices"),
        (lambda d, c: d.index_put_((d.long(),), c), RuntimeError, "found at least two devices"),
        (lambda d, c: c[d.long()], RuntimeError, "indices should be either on cpu or on the same device"),
        (lambda d, c: d.numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy"),
        (lambda d, c: np.asarray(d), TypeError, "can't convert cuda:0 device type tensor to numpy"),
        (lambda d, c: torch.rand(2, device="cuda", generator=torch.Generator()), RuntimeError, "Expected a 'cuda'"),
        (lambda d, c: d.uniform_(generator=torch.Generator()), RuntimeError, "Expected a 'cuda' device type"),
        (lambda d, c: torch.histogram(d, 3), NotImplementedError, "Could not run 'aten::histogram'"),
        (lambda d, c: d.pin_memory(), RuntimeError, "only dense CPU tensors can be pinned"),
        (lambda d, c: torch.ops.fastood.sort_scores(d[None], c.long()), RuntimeError, "found at least two devices"),
        (lambda d, c: d.long() @ d.long(), NotImplementedError, "not implemented for 'torch.int64'"),
        (lambda d, c: d.long()[None] @ d.long()[:, None], NotImplementedError, "not implemented for 'torch.int64'"),
        (lambda d, c: torch.zeros(3, device="cuda:1"), RuntimeError, "invalid device ordinal"),
        (lambda d, c: d.to("cuda:1"), RuntimeError, "invalid device ordinal"),
        (lambda d, c: c.to("cuda:1"), RuntimeError, "invalid device ordinal"),
        (lambda d, c: torch.empty_like(d, device="cuda:1"), RuntimeError, "invalid device ordinal"),
        (lambda d, c: torch.tensor([1.0], device="cuda:1"), RuntimeError, "invalid device ordinal"),
        (lambda d, c: torch.cuda.get_device_properties(1), RuntimeError, "invalid device ordinal"),
    ],
)
def test_operands_that_a_gpu_refuses(call, error: type[Exception], message: str) -> None:
    on_cpu = torch.zeros(3)
    with pytest.raises(error, match=message):
        call(on_cpu.cuda(), on_cpu)


def test_scalars_of_the_cpu_are_taken_where_a_gpu_takes_them() -> None:
    x, two = torch.ones(3, device="cuda"), torch.tensor(2.0)
    with count_host_waits() as waits:
        sums = [x + two, two * x, torch.where(x > 0, x, two), x.clone().fill_(two), x.clamp(max=two)]
        x[1] = 5.0
    assert not waits, waits
    assert sums[0].tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError, match="two devices"):
        torch.dot(x, two)


def test_ops_without_a_cuda_kernel_are_those_of_pytorch() -> None:
    torchgen = pytest.importorskip("torchgen")
    yaml = pytest.importorskip("yaml")
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = {entry["func"].split("(")[0]: entry for entry in yaml.load(path.read_text(), yaml.CSafeLoader)}
    for name in NOT_ON_CUDA:
        kernels_of = entries[name.removeprefix("aten::")]["dispatch"]
        keys = {key.strip() for group in kernels_of for key in group.split(",")}
        assert "CPU" in keys, name
        assert not {"CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd"} & keys, name


def test_a_second_shared_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no emulated build at .*: cmake -S csrc/emulation"):
        kernels.EmulatedKernels(tmp_path / "missing.so")
