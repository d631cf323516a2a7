"""Numbers as callers have them: NumPy's and tensors' count as Python's, all others end in an error that names them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastood.metrics import DetectionEvaluator, HistogramEvaluator, bootstrap_metrics
from fastood.models import build_model
from fastood.models.densenet import DenseNet
from fastood.models.wide_resnet import WideResNet
from fastood.ops import detection_metrics as ops
from fastood.ops._arguments import allocating, as_integer, as_real
from fastood.samplers import BackgroundPool
from fastood.samplers.softplus import softplus

WRONG_SEEDS = [2.5, math.nan, None, "x", True, np.float32(3), torch.tensor(3.0), torch.tensor([1, 2]), object()]
COUNTS = {"stream": 0, "replicates": 3, "scheme": "multinomial"}


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3]), np.array(3)])
def test_a_seed_is_any_integer(seed: object) -> None:
    want = ops.resampling_counts(10, seed=3, **COUNTS)
    assert torch.equal(ops.resampling_counts(10, seed=seed, **COUNTS), want)
    keys = ops.sort_scores(torch.arange(10.0))
    found, same = (ops.resampled_statistics(keys, keys, seed=s, replicates=np.int64(2)) for s in (seed, 3))
    assert all(torch.equal(one, other) for one, other in zip(found, same, strict=True))


@pytest.mark.parametrize("seed", WRONG_SEEDS)
def test_a_seed_that_is_none_ends(seed: object) -> None:
    with pytest.raises(TypeError, match="seed must be an int64, got"):
        ops.resampling_counts(10, seed=seed, **COUNTS)
    keys = ops.sort_scores(torch.arange(10.0))
    with pytest.raises(TypeError, match="seed must be an int64, got"):
        ops.resampled_statistics(keys, keys, seed=seed, replicates=2)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**400])
def test_a_seed_beyond_int64_is_an_error(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be an int64, got"):
        ops.resampling_counts(10, seed=seed, **COUNTS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stream": np.float32(1.5)}, TypeError, "stream must be"),
        ({"stream": 2**32}, ValueError, "stream must be"),
        ({"size": np.float32(1.5), "scheme": "subset"}, TypeError, "size must be"),
        ({"first_replicate": 1.0}, TypeError, "first_replicate must be"),
        ({"replicates": 2.0}, TypeError, "replicates must be"),
        ({"replicates": 10**400}, ValueError, "got an int of 401 digits"),
        ({"scheme": ["subset"]}, ValueError, "scheme must be one of"),
        ({"replicates": 2**32 - 1, "count": 2**31 - 1}, MemoryError, "replicates 4294967295 of count 2147483647"),
    ],
)
def test_numbers_are_not_cut(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    call = {"count": 10, "seed": 0, **COUNTS, **arguments}
    with pytest.raises(error, match=message):
        ops.resampling_counts(call.pop("count"), **call)


@pytest.mark.parametrize("name", ["id_size", "ood_size", "id_repeats", "ood_repeats"])
def test_sizes_and_repeats_are_not_cut(name: str) -> None:
    keys = ops.sort_scores(torch.arange(10.0))
    scheme = "subset" if "size" in name else "multinomial"
    with pytest.raises(TypeError, match=f"{name} must be in .*got np.float32"):
        ops.resampled_statistics(keys, keys, seed=0, replicates=2, scheme=scheme, **{name: np.float32(1.5)})


@pytest.mark.parametrize("tpr", [0.95, None, ["x"], [None], [True], [torch.ones(2)], [10**400]])
def test_rates_that_are_none_are_named(tpr: object) -> None:
    keys = ops.sort_scores(torch.arange(10.0))[None]
    with pytest.raises((TypeError, ValueError), match="tpr must"):
        ops.ranking_statistics(keys, keys, tpr=tpr)


def test_counts_of_any_layout() -> None:
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[9, 0], [3, 0], [0, 0]])
    assert torch.equal(ops.sort_scores(scores, counts[:, 0]), ops.sort_scores(scores, counts[:, 0].contiguous()))
    expanded = torch.tensor(4).expand(3)
    assert torch.equal(ops.sort_scores(scores, expanded), ops.sort_scores(scores, torch.tensor([4, 4, 4])))


def test_real_numbers_are_those_that_print_alike() -> None:
    assert as_real("x", np.float32(0.1)) == as_real("x", torch.tensor(0.1)) == as_real("x", np.float16(0.1)) == 0.1
    assert as_real("x", Fraction(1, 4)) == as_real("x", np.array(0.25)) == 0.25
    assert as_real("x", 10**400) == math.inf
    assert as_real("x", -(10**400)) == -math.inf
    for wrong in (True, np.bool_(True), "0.5", None, 1j, torch.ones(2), np.ones(2), torch.tensor(1.0, device="meta")):
        with pytest.raises(TypeError, match="x must be a real number, got"):
            as_real("x", wrong)


def test_integers_have_bounds() -> None:
    assert as_integer("x", np.uint64(2**63), 0) == 2**63
    with pytest.raises(ValueError, match=r"x must be an int >= 1, got 0"):
        as_integer("x", 0, 1)
    with pytest.raises(ValueError, match=r"x must be an int in 1 … 5, got 6"):
        as_integer("x", 6, 1, 5)


def test_an_allocator_is_not_what_answers() -> None:
    for size in (10**14, 10**17, 4 * 10**18):
        with pytest.raises(MemoryError, match="size of the test needs more memory"), allocating("size of the test"):
            torch.empty(size)
    with pytest.raises(RuntimeError, match="other"), allocating("size of the test"):
        raise RuntimeError("other")


@pytest.mark.parametrize("depth", [6 * 10**17 + 4, 6 * 10**400 + 4, 2002])
def test_networks_have_a_depth_that_can_be_built(depth: int) -> None:
    options = {"num_classes": 10, "in_channels": 3}
    with pytest.raises(ValueError, match="depth must be at most 2000, got"):
        WideResNet(depth, 1, **options)
    for bottleneck in (False, True):
        with pytest.raises(ValueError, match="depth must be at most 2000, got"):
            DenseNet(depth, 4, bottleneck=bottleneck, **options)
    with pytest.raises(ValueError, match="depth must be at most 2000, got"):
        build_model(f"wrn-{depth}-1", image_size=32, **options)


def test_a_bootstrap_takes_numpy_counts() -> None:
    scores = torch.arange(10.0)
    one, other = (
        bootstrap_metrics(scores, scores + 1, generator=torch.Generator().manual_seed(0), replicates=count)
        for count in (np.int64(20), 20)
    )
    assert one == other


def test_devices_and_flags_are_named() -> None:
    for wrong in (2.5, [], True, torch.ones(2)):
        with pytest.raises(TypeError, match=r"device must be a torch\.device or its name, .* got"):
            BackgroundPool(2, device=wrong)
        with pytest.raises(TypeError, match=r"device must be a torch\.device or its name, .* got"):
            HistogramEvaluator(device=wrong)
    for wrong in ("", "nowhere", -1, 10**400):
        with pytest.raises(ValueError, match=r"device must be a torch\.device or its name, .* got"):
            DetectionEvaluator(device=wrong)
    pool, generator = BackgroundPool(5), torch.Generator()
    for wrong in (None, 1, "no", torch.ones(2), np.ones(2)):
        with pytest.raises(TypeError, match="replacement must be a bool, got"):
            pool.sample(2, generator=generator, replacement=wrong)
        with pytest.raises(TypeError, match="stratified must be a bool, got"):
            pool.sample(2, generator=generator, stratified=wrong)
        with pytest.raises(TypeError, match="calibrated must be a bool, got"):
            pool.select(0.5, generator=generator, calibrated=wrong)
    for wrong in (None, 1.0, [1.0], torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="x must be a tensor of float64"):
            softplus(wrong)
