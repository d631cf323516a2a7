"""The nearest key of a class: values, gradients and ties against float64, what has no key, what is not a number."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastood.ops import ClassL1Index, class_l1_nearest
from fastood.ops.reference import class_l1_nearest as reference
from tests.support.class_l1_nearest_samples import SAMPLES, SMALL_SAMPLES, NearestSample, op_args

INF, NAN = math.inf, math.nan
ROOT = Path(__file__).resolve().parents[2]

samples = pytest.mark.parametrize("sample", SAMPLES, ids=str)
small_samples = pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)


def equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@dtypes
@samples
def test_matches_float64_reference(sample: NearestSample, dtype: torch.dtype, device: str) -> None:
    args = sample.make(device, dtype)
    distance, index = class_l1_nearest(*args)
    want, want_index = reference.class_l1_nearest(*args)
    assert distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(index < 0, want_index < 0)
    assert torch.equal(distance.isinf(), want.isinf())
    found = index >= 0
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert ((distance.double() - want).abs()[found] <= tolerance * want[found]).all()
    if sample.values:
        assert torch.equal(index, want_index)
    query, query_labels, keys, key_labels = args
    assert torch.equal(key_labels[index[found]], query_labels[found])
    # Two keys may be as near as rounding tells apart: the one that was named is.
    named = (query[found].double() - keys[index[found]].double()).abs().sum(1)
    assert ((named - want[found]).abs() <= tolerance * want[found]).all()


@samples
def test_gradient_is_the_sign_of_the_difference(sample: NearestSample, device: str) -> None:
    query, *rest = sample.make(device, torch.float64)
    query = query.detach().clone().requires_grad_()
    upstream = torch.linspace(-1, 2, sample.queries, dtype=torch.float64, device=device)
    got = class_l1_nearest(query, *rest)[0]
    want = reference.class_l1_nearest(query, *rest)[0]
    found = ~want.isinf()
    (gradient,) = torch.autograd.grad(got[found], query, upstream[found])
    (want_gradient,) = torch.autograd.grad(want[found].sum() + 0 * query.sum(), query, retain_graph=True)
    assert torch.equal(gradient, upstream[:, None] * want_gradient)


@small_samples
def test_gradcheck(sample: NearestSample, device: str) -> None:
    query, *rest = sample.make(device, torch.float64)

    def finite(query: Tensor) -> Tensor:
        distance = class_l1_nearest(query, *rest)[0]
        return torch.where(distance.isinf(), 0, distance)

    leaf = query.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(finite, leaf)
    assert torch.autograd.gradgradcheck(finite, leaf)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [10, 64, 512, 2048, 100_000])
def test_error_at_most_twice_that_of_cdist(dim: int, dtype: torch.dtype, device: str) -> None:
    query, query_labels, keys, key_labels = NearestSample(40, 30, dim, 1).make(device, dtype)
    exact = math.fsum if dtype == torch.float64 else sum
    got, index = class_l1_nearest(query, query_labels, keys, key_labels)
    found = index >= 0
    theirs = torch.cdist(query, keys, p=1.0)[found, index[found]]
    pairs = (query[found].double() - keys[index[found]].double()).abs().tolist()
    want = torch.tensor([exact(row) for row in pairs], dtype=torch.float64, device=device)
    their_error = ((theirs.double() - want) / want).abs().max()
    assert ((got[found].double() - want) / want).abs().max() <= 2 * their_error + torch.finfo(dtype).eps / 2


def test_the_first_of_equally_near_keys(device: str) -> None:
    keys = torch.zeros(5000, 3, device=device)
    key_labels = torch.arange(5000, device=device) % 4
    keys[:2000] = 1.0
    query = torch.zeros(40, 3, device=device)
    labels = torch.arange(40, device=device) % 4
    distance, index = class_l1_nearest(query, labels, keys, key_labels)
    assert torch.equal(index, 2000 + labels)
    assert (distance == 0).all()


def test_gradient_at_a_kink_is_zero(device: str) -> None:
    query = torch.tensor([[1.0, 2.0, 3.0]], device=device, requires_grad=True)
    keys = torch.tensor([[1.0, 0.0, 4.0]], device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    distance, index = class_l1_nearest(query, label, keys, label)
    assert not index.requires_grad
    distance.sum().backward()
    assert query.grad.tolist() == [[0.0, 1.0, -1.0]]


def test_what_has_no_key(device: str) -> None:
    """A class without a key, no class, no key at a finite distance: infinity, -1, and a gradient of zeros."""
    nan_row, inf_row, huge = [NAN, 0.0], [INF, 0.0], [3e38, 3e38]
    keys = torch.tensor([[0.0, 0.0], nan_row, inf_row, nan_row, huge, [1.0, 1.0]], device=device)
    key_labels = torch.tensor([0, 1, 2, 3, 4, 3], device=device)
    query = torch.zeros(6, 2, device=device)
    query[5] = 0.25
    query.requires_grad_()
    labels = torch.tensor([7, -1, 1, 2, 4, 3], device=device)
    distance, index = class_l1_nearest(query, labels, keys, key_labels)
    assert distance.tolist() == [INF] * 5 + [1.5]
    assert index.tolist() == [-1] * 5 + [5]
    distance.sum().backward()
    assert query.grad.tolist() == [[0.0, 0.0]] * 5 + [[-1.0, -1.0]]


def test_a_background_key_is_nobodys(device: str) -> None:
    label = torch.tensor([-1], device=device)
    distance, index = class_l1_nearest(torch.zeros(1, 2, device=device), label, torch.zeros(1, 2, device=device), label)
    assert (distance.item(), index.item()) == (INF, -1)


def test_nan_of_a_query_is_seen(device: str) -> None:
    query = torch.tensor([[NAN, 0.0], [INF, 0.0], [0.0, 0.0], [NAN, NAN]], device=device, requires_grad=True)
    keys = torch.ones(1, 2, device=device)
    labels = torch.tensor([0, 0, 0, 5], device=device)
    distance, index = class_l1_nearest(query, labels, keys, torch.tensor([0], device=device))
    torch.testing.assert_close(distance, torch.tensor([NAN, INF, 2.0, INF], device=device), equal_nan=True)
    assert index.tolist() == [-1, -1, 0, -1]
    (gradient,) = torch.autograd.grad(distance.sum(), query)
    assert gradient.tolist() == [[0.0, 0.0], [0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]]


@dtypes
def test_nan_stays_in_its_row(dtype: torch.dtype, device: str) -> None:
    """A query with a NaN has no key, and a key with one is nobody's; no other query notices."""
    query, query_labels, keys, key_labels = NearestSample(40, 100, 33, 2).make(device, dtype)
    query_labels[2] = key_labels[1] = 0
    query[2, 32] = keys[1, 0] = NAN
    distance, index = class_l1_nearest(query, query_labels, keys, key_labels)
    assert distance[2].isnan()
    assert index[2] == -1
    without = torch.cat([keys[:1], keys[2:]]), torch.cat([key_labels[:1], key_labels[2:]])
    want_distance, want_index = class_l1_nearest(query, query_labels, *without)
    others = torch.arange(40, device=device) != 2
    assert torch.equal(distance[others], want_distance[others])
    assert torch.equal(index, torch.where(want_index >= 1, want_index + 1, want_index))


@pytest.mark.parametrize("dim", [3, 512, 1025])
def test_a_distance_does_not_depend_on_its_company(dim: int, device: str) -> None:
    """To the bit: alone and in a batch, with other keys around, in every place of a tile."""
    query, query_labels, keys, key_labels = NearestSample(67, 301, dim, 2).make(device, torch.float32)
    distance, index = class_l1_nearest(query, query_labels, keys, key_labels)
    for m in range(0, 67, 5):
        one = slice(m, m + 1)
        alone = class_l1_nearest(query[one], query_labels[one], keys, key_labels)
        assert equal(alone, (distance[one], index[one]))
        if index[m] >= 0:
            found = index[one]
            alone = class_l1_nearest(query[one], query_labels[one], keys[found], key_labels[found])
            assert torch.equal(alone[0], distance[one])


@pytest.mark.parametrize("classes", [1, 2, 30])
@pytest.mark.parametrize("queries", [1, 40, 130])
def test_the_number_of_threads_changes_nothing(queries: int, classes: int) -> None:
    args = NearestSample(queries, 6000, 130, classes).make("cpu", torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(class_l1_nearest(*args))
    finally:
        torch.set_num_threads(before)
    assert all(equal(result, results[0]) for result in results)


def test_any_integers_are_labels(device: str) -> None:
    largest = torch.iinfo(torch.int64).max
    labels = torch.tensor([largest, 0, largest - 1, 1 << 40], device=device)
    rows = torch.arange(4.0, device=device)[:, None]
    distance, index = class_l1_nearest(rows, labels, rows.flip(0), labels.flip(0))
    assert index.tolist() == [3, 2, 1, 0]
    assert (distance == 0).all()
    for dtype in (torch.int32, torch.uint8):
        small = torch.tensor([3, 1, 3], dtype=dtype, device=device)
        assert class_l1_nearest(rows[:3], small, rows[:3] + 0.25, small)[1].tolist() == [0, 1, 2]


@dtypes
def test_an_index_sorts_once_and_copies_nothing(dtype: torch.dtype, device: str) -> None:
    query, query_labels, keys, key_labels = NearestSample(30, 200, 17).make(device, dtype)
    index = ClassL1Index(keys, key_labels)
    assert index.keys.data_ptr() == keys.data_ptr()
    for rows in (slice(0, 30), slice(3, 9)):
        want = class_l1_nearest(query[rows], query_labels[rows], keys, key_labels)
        assert equal(index.nearest(query[rows], query_labels[rows]), want)


def test_queries_of_other_dtypes(device: str) -> None:
    """Computed in the dtype of the keys' computation, with gradients in their own."""
    query, query_labels, keys, key_labels = NearestSample(10, 40, 5, 1).make(device, torch.float32)
    want = class_l1_nearest(query.bfloat16().float(), query_labels, keys, key_labels)
    leaf = query.bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        got = class_l1_nearest(leaf, query_labels, keys, key_labels)
    assert equal(got, want)
    got[0][got[1] >= 0].sum().backward()
    assert leaf.grad.dtype == torch.bfloat16
    assert class_l1_nearest(query, query_labels, keys.double(), key_labels)[0].dtype == torch.float64


def test_keys_of_a_memory_mapped_file(tmp_path: Path) -> None:
    query, query_labels, keys, key_labels = NearestSample(20, 300, 33).make("cpu", torch.float32)
    np.save(tmp_path / "keys.npy", keys.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "keys.npy", mmap_mode="c"))
    query.requires_grad_()
    want = class_l1_nearest(query, query_labels, keys, key_labels)
    got = ClassL1Index(mapped, key_labels).nearest(query, query_labels)
    assert equal(got, want)
    found = got[1] >= 0
    gradients = [torch.autograd.grad(distance[found].sum(), query)[0] for distance in (got[0], want[0])]
    assert torch.equal(*gradients)


def test_memory_is_linear() -> None:
    """A call grows by megabytes where queries times keys would be 320, and the classes times keys 400."""
    script = (
        "import torch, sys; sys.path.insert(0, 'benchmarks'); from harness import host_growth\n"
        "from fastood.ops import class_l1_nearest\n"
        "q, k = torch.zeros(2000, 8, requires_grad=True), torch.ones(40_000, 8)\n"
        "ql, kl = torch.arange(2000) % 2500, torch.arange(40_000) % 2500\n"
        "def run(m, n):\n"
        "    distance, _ = class_l1_nearest(q[:m], ql[:m], k[:n], kl[:n])\n"
        "    torch.autograd.grad(distance[distance < 9].sum(), q)\n"
        "run(10, 2500)\n"
        "print(host_growth(lambda: run(2000, 40_000)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 20


class Regulariser(torch.nn.Module):
    """A generator's layer, and the distance of what it makes to the keys of a bank."""

    def __init__(self, keys: Tensor, key_labels: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, keys.shape[1], device=keys.device)
        self.register_buffer("keys", keys)
        self.register_buffer("key_labels", key_labels)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return class_l1_nearest(self.layer(z), labels, self.keys, self.key_labels)[0].mean()


def regulariser(device: str) -> tuple[Regulariser, Tensor, Tensor]:
    _, _, keys, _ = NearestSample(0, 40, 6).make(device, torch.float32)
    labels = torch.arange(12, device=device) % 3
    z = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).to(device)
    return Regulariser(keys, torch.arange(40, device=device) % 3), z, labels


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: str) -> None:
    torch.compiler.reset()
    module, z, labels = regulariser(device)
    want = module(z, labels)
    want.backward()
    gradient = module.layer.weight.grad.clone()
    module.zero_grad()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    got = compiled(z, labels)
    got.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(module.layer.weight.grad, gradient)
    torch.testing.assert_close(compiled(z[:5], labels[:5]), module(z[:5], labels[:5]))


def test_export(device: str) -> None:
    module, z, labels = regulariser(device)
    batch = torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(module, (z, labels), dynamic_shapes=({0: batch}, {0: batch}))
    for rows in (12, 5):
        torch.testing.assert_close(exported.module()(z[:rows], labels[:rows]), module(z[:rows], labels[:rows]))


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(capability: str) -> None:
    """The copies of the CPU kernels for older machines, in a process of their own: the choice is made once."""
    script = (
        "import torch, fastood\n"
        "from tests.support.class_l1_nearest_samples import SAMPLES\n"
        "from tests.ops.test_class_l1_nearest import test_matches_float64_reference as check\n"
        f"assert fastood.build_info()['cpu_capability'] in ('baseline', '{capability}')\n"
        "for sample in SAMPLES:\n"
        "    for dtype in (torch.float64, torch.float32, torch.float16): check(sample, dtype, 'cpu')\n"
    )
    environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ROWS, LABELS = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [[0.0, 0.0]] * 3}, TypeError, "query must be a torch.Tensor, got list"),
        ({"query": ROWS.int()}, TypeError, "query must be float64, float32, bfloat16 or float16, got torch.int32"),
        ({"query": ROWS.double()}, TypeError, "query must be at most float32 with keys of torch.float32"),
        ({"query": ROWS[0]}, ValueError, r"query must be \[M, d\] with d >= 1, got shape \(2,\)"),
        ({"query": torch.zeros(3, 4)}, ValueError, r"query must have 2 features like keys, got shape \(3, 4\)"),
        ({"query": ROWS.to("meta"), "query_labels": LABELS.to("meta")}, ValueError, "query must be on cpu like keys"),
        ({"query": ROWS.to_sparse()}, TypeError, "query must be a dense tensor, got layout torch.sparse_coo"),
        ({"key_labels": LABELS.to_sparse()}, TypeError, "key_labels must be a dense tensor"),
        (
            {"key_labels": LABELS.to(torch.uint64)},
            TypeError,
            r"key_labels must be integers, .*: pass key_labels.long\(\)",
        ),
        ({"query_labels": LABELS.float()}, TypeError, "query_labels must be integers, got torch.float32"),
        ({"query_labels": LABELS.bool()}, TypeError, "query_labels must be integers, got torch.bool"),
        ({"query_labels": LABELS[:2]}, ValueError, r"query_labels must have shape \(3,\) like the rows of query"),
        ({"query_labels": LABELS.to("meta")}, ValueError, "query_labels must be on cpu like query, got meta"),
        ({"keys": None}, TypeError, "keys must be a torch.Tensor, got NoneType"),
        ({"keys": torch.zeros(3, 0)}, ValueError, r"keys must be \[N, d\] with d >= 1, got shape \(3, 0\)"),
        ({"keys": ROWS.clone().requires_grad_()}, ValueError, "keys must not require a gradient"),
        ({"key_labels": 0}, TypeError, "key_labels must be a torch.Tensor, got int"),
        ({"key_labels": LABELS[None]}, ValueError, r"key_labels must have shape \(3,\) like the rows of keys"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    good: dict[str, object] = {"query": ROWS, "query_labels": LABELS, "keys": ROWS, "key_labels": LABELS}
    with pytest.raises(error, match=message):
        class_l1_nearest(**{**good, **change})


def test_trained_keys_without_a_gradient() -> None:
    keys = ROWS.clone().requires_grad_()
    with torch.no_grad():
        assert class_l1_nearest(ROWS, LABELS, keys, LABELS)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.zeros(20, 4, dtype=torch.float64), "query must be Float"),
        (2, torch.full((20,), 20), r"query_order must be in \[0, 20\), got 20"),
        (3, torch.zeros(12, 3), "keys must have 4 features"),
        (3, torch.zeros(12, 4, dtype=torch.int64), "keys must be float64"),
        (4, torch.zeros(11, dtype=torch.int64), "key_classes must have 12 rows, got 11"),
        (5, torch.full((12,), -1), r"key_order must be in \[0, 12\), got -1"),
        (5, torch.zeros(12, dtype=torch.int32), "key_order must be Long"),
    ],
)
def test_the_op_itself_reads_nothing_out_of_range(position: int, bad: Tensor, message: str) -> None:
    args = list(op_args(NearestSample(20, 12, 4, 1), "cpu", torch.float32))
    args[position] = bad
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastood.class_l1_nearest(*args)
