"""`augment_images` against its definition and against the PyTorch composition, to the bit."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastood.ops import augment_images
from fastood.ops.reference import augment_images as reference
from tests.support.augment_images_samples import DTYPES, MEMORY_FORMATS, SAMPLES, AugmentSample

samples = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def composition(batch: Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Normalisation in float32 PyTorch."""
    by_channel = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    return (batch.float() / 255 - next(by_channel)) / next(by_channel)


@samples
def test_matches_the_definition(sample: AugmentSample, device: str) -> None:
    args = sample.make(device)
    got = augment_images(*args, padding=sample.padding, mean=sample.mean, std=sample.std)
    want = reference.augment_images(*args, padding=sample.padding, mean=sample.mean, std=sample.std)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=1e-6, atol=1e-6)
    # Bytes as they are: which pixel went where, without rounding.
    pixels = augment_images(*args, padding=sample.padding, mean=0, std=1 / 255)
    crops = reference.augment_images(*args, padding=sample.padding, mean=0, std=1 / 255)
    assert torch.equal(pixels.round(), crops.round().float())


@samples
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_dtypes_are_roundings_of_the_same(
    sample: AugmentSample, memory_format: torch.memory_format, dtype: torch.dtype, device: str
) -> None:
    args = sample.make(device)
    settings = {"padding": sample.padding, "mean": sample.mean, "std": sample.std}
    want = augment_images(*args, **settings).to(dtype)
    got = augment_images(*args, **settings, dtype=dtype, memory_format=memory_format)
    assert got.is_contiguous(memory_format=memory_format)
    assert got.dtype == dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_is_normalised_as_pytorch_does(seed: int, device: str) -> None:
    mean, std = (torch.rand(2, generator=torch.Generator().manual_seed(seed)) + 0.01).tolist()
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    got = augment_images(images.to(device), zero, zero, zero, zero.bool(), padding=0, mean=mean, std=std)
    assert torch.equal(got.cpu(), composition(images, mean, std))


def test_a_mapped_file_is_a_pool(tmp_path: Path) -> None:
    sample = AugmentSample(33, 3, 16, 16, 2)
    images, *draws = sample.make("cpu")
    path = tmp_path / "pool.bin"
    images.numpy().tofile(path)
    mapped = torch.from_file(str(path), size=images.numel(), dtype=torch.uint8).reshape(images.shape)
    settings = {"padding": 2, "mean": 0.5, "std": 0.25}
    assert torch.equal(augment_images(mapped, *draws, **settings), augment_images(images, *draws, **settings))


def test_threads_do_not_matter() -> None:
    sample = AugmentSample(200, 3, 32, 32, 4)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(augment_images(*sample.make("cpu"), padding=4, mean=0.5, std=0.25))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_give_the_same_bits(capability: str, tmp_path: Path) -> None:
    """In a process of their own: the choice is made once."""
    script = (
        "import sys, torch\n"
        "from tests.support.augment_images_samples import SAMPLES; from fastood.ops import augment_images\n"
        "torch.save([augment_images(*s.make('cpu'), padding=s.padding, mean=s.mean, std=s.std, memory_format=f)"
        " for s in SAMPLES for f in (torch.contiguous_format, torch.channels_last)], sys.argv[1])\n"
    )
    path = tmp_path / "results.pt"
    environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(path)
    assert len(found) == 2 * len(SAMPLES)
    for sample, got in zip((s for s in SAMPLES for _ in MEMORY_FORMATS), found, strict=True):
        want = augment_images(*sample.make("cpu"), padding=sample.padding, mean=sample.mean, std=sample.std)
        assert torch.equal(got, want), str(sample)


class Loader(torch.nn.Module):
    def forward(self, images: Tensor, index: Tensor, rows: Tensor, columns: Tensor, flip: Tensor) -> Tensor:
        batch = augment_images(
            images, index, rows, columns, flip, padding=2, mean=0.5, std=0.25, memory_format=torch.channels_last
        )
        return batch * 2


def test_compile_and_export(device: str) -> None:
    args = AugmentSample(8, 3, 10, 12, 2).make(device)
    want = Loader()(*args)
    torch.compiler.reset()
    compiled = torch.compile(Loader(), fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(*args), want)
    other = AugmentSample(5, 3, 9, 7, 2).make(device)
    assert torch.equal(compiled(*other), Loader()(*other))
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(Loader(), args, dynamic_shapes=({0: torch.export.Dim("pool")}, *[batch] * 4))
    assert torch.equal(exported.module()(*args), want)


def test_fake_cuda_tensors_need_no_gpu() -> None:
    with FakeTensorMode():
        images = torch.empty(9, 3, 8, 8, device="cuda", dtype=torch.uint8)
        index = torch.empty(4, device="cuda", dtype=torch.int64)
        batch = augment_images(
            images, index, index, index, index.bool(), padding=1, mean=0.5, std=0.25, dtype=torch.bfloat16
        )
    assert (batch.device.type, batch.dtype, batch.shape) == ("cuda", torch.bfloat16, (4, 3, 8, 8))


GOOD = {
    "images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
    "index": torch.zeros(2, dtype=torch.int64),
    "rows": torch.zeros(2, dtype=torch.int64),
    "columns": torch.zeros(2, dtype=torch.int64),
    "flip": torch.zeros(2, dtype=torch.bool),
    "padding": 1,
    "mean": 0.5,
    "std": 0.25,
}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("images", [0], TypeError, "images must be a torch.Tensor, got list"),
        ("images", torch.zeros(4, 3, 8, 8), TypeError, "images must be uint8, got torch.float32"),
        ("images", torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"\[N, C, H, W\], got \[3, 8, 8\]"),
        ("index", torch.zeros(2), TypeError, "index must be int64, got torch.float32"),
        ("index", torch.zeros(1, 2, dtype=torch.int64), ValueError, r"index must have shape \[B\], got \[1, 2\]"),
        ("index", torch.tensor([0, 4]), ValueError, r"index must be in \[0, 3\], got 4"),
        ("index", torch.tensor([0, -1]), ValueError, r"index must be in \[0, 3\], got -1"),
        ("rows", torch.zeros(3, dtype=torch.int64), ValueError, r"rows must have shape \[2\] like index, got \[3\]"),
        ("rows", torch.tensor([0, 3]), ValueError, r"rows must be in \[0, 2\], got 3"),
        ("columns", torch.tensor([0, -1]), ValueError, r"columns must be in \[0, 2\], got -1"),
        ("columns", None, TypeError, "columns must be a torch.Tensor, got NoneType"),
        ("columns", torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "columns must be on cpu like images"),
        ("flip", torch.zeros(2), TypeError, "flip must be bool, got torch.float32"),
        ("padding", -1, ValueError, "padding must be an int in 0 … 65536, got -1"),
        ("padding", 2**31 - 1, ValueError, "padding must be an int in 0 … 65536, got 2147483647"),
        ("padding", 2**62, ValueError, "padding must be an int in 0 … 65536"),
        ("padding", 1.0, TypeError, "padding must be an int in 0 … 65536, got 1.0"),
        ("mean", 10**400, ValueError, "mean must be finite, got an int of 401 digits"),
        ("std", b"x", TypeError, "std must be a number, got b'x'"),
        ("std", "x", TypeError, "std must be a number, got 'x'"),
        ("mean", [0.5, 0.5], ValueError, "mean must be a number or 3, one per channel, got 2"),
        ("mean", float("nan"), ValueError, "mean must be finite, got nan"),
        ("std", [0.25, 0, 0.25], ValueError, "std must be above 0 in float32, got"),
        ("std", 1e-60, ValueError, "std must be above 0 in float32, got 1e-60"),
        ("dtype", np.ones(2), TypeError, "dtype must be float32, bfloat16 or float16, got a ndarray"),
        ("memory_format", np.ones(2), ValueError, "memory_format must be contiguous_format or channels_last, got a nd"),
        ("dtype", torch.float64, TypeError, "dtype must be float32, bfloat16 or float16, got torch.float64"),
        ("memory_format", torch.channels_last_3d, ValueError, "memory_format must be contiguous_format or channels_"),
    ],
    ids=str,
)
def test_refuses(name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        augment_images(**{**GOOD, name: value})


def test_refuses_scales_for_too_many_channels() -> None:
    images = torch.zeros(4, 17, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="mean must be a number or at most 16, got 17"):
        augment_images(**{**GOOD, "images": images, "mean": [0.5] * 17})


@pytest.mark.parametrize(("name", "bad"), [("index", 4), ("rows", 3), ("columns", -1)])
def test_the_op_reads_nothing_out_of_range(name: str, bad: int) -> None:
    """Callers of torch.ops, and of compiled functions, are not checked in Python."""
    args = {**GOOD, name: torch.tensor([0, bad]), "mean": [0.5], "std": [0.25]}
    with pytest.raises(RuntimeError, match=rf"{name} must be in \[0, [23]\], got {bad}"):
        torch.ops.fastood.augment_images(*args.values(), torch.float32, False)


@pytest.mark.needs_cuda
def test_cuda_marks_images_that_are_not_there() -> None:
    args = {name: v.cuda() if isinstance(v, Tensor) else v for name, v in GOOD.items()}
    args["index"] = torch.tensor([4, 1], device="cuda")
    batch = augment_images(**args)
    assert batch[0].isnan().all()
    assert (batch[1] == -2).all()


@pytest.mark.needs_cuda
@samples
def test_cuda_gives_the_bits_of_the_cpu(sample: AugmentSample) -> None:
    settings = {"padding": sample.padding, "mean": sample.mean, "std": sample.std}
    got = augment_images(*sample.make("cuda"), **settings)
    assert torch.equal(got.cpu(), augment_images(*sample.make("cpu"), **settings))
