"""Pools of given weights: any scale, arrays and lists, sizes and devices, and processes that differ."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fastood.samplers import BackgroundPool
from fastood.samplers.softplus import inverse_softplus

F64 = torch.float64
SCALES = [
    [1e9, 3e9, 0.0, 6e9],
    [1e-35, 3e-35, 0.0, 6e-35],
    [1e-100, 3e-100, 0.0, 6e-100],
    [1e300, 3e300, 0.0, 6e300],
    [5e-324, 15e-324, 0.0, 30e-324],
    [2_000_000, 6_000_000, 0, 12_000_000],
    [10**30, 3 * 10**30, 0, 6 * 10**30],
    np.array([1.0, 3.0, 0.0, 6.0], dtype=np.float32),
    np.array([1, 3, 0, 6], dtype=np.uint64),
    torch.tensor([1, 3, 0, 6]),
    torch.tensor([1.0, 3.0, 0.0, 6.0], dtype=torch.bfloat16),
    (1, 3, 0, 6),
]


@pytest.mark.parametrize("weights", SCALES, ids=[str(number) for number in range(len(SCALES))])
@pytest.mark.parametrize("epsilon", [1.0, 0.5])
def test_only_ratios_matter(weights: Sequence[float], epsilon: float) -> None:
    pool = BackgroundPool.from_weights(weights, epsilon=epsilon)
    want = BackgroundPool.from_weights(torch.tensor([1.0, 3.0, 0.0, 6.0], dtype=F64), epsilon=epsilon)
    torch.testing.assert_close(pool.weights / pool.weights[0], want.weights / want.weights[0], rtol=2e-5, atol=0)
    index = torch.tensor([0, 1, 3])
    torch.testing.assert_close(pool.importance(index), want.importance(index), rtol=2e-5, atol=0)
    draws = [p.sample(4000, generator=torch.Generator().manual_seed(1))[0] for p in (pool, want)]
    assert float((draws[0] != draws[1]).double().mean()) < 0.002  # at the edges between examples alone


def test_weights_within_the_range_are_kept_as_they_are() -> None:
    weights = torch.tensor([1e-30, 1.0, 1e6, 0.0], dtype=F64)
    torch.testing.assert_close(BackgroundPool.from_weights(weights).weights, weights, rtol=5e-6, atol=0)


@pytest.mark.parametrize("low", [1e-300, 1e-40, 1e-6, 1.0, 1e20, 1e250])
def test_thirty_six_orders_of_magnitude_are_kept(low: float) -> None:
    weights = torch.tensor([low, 7 * low, 0.0, 1e36 * low], dtype=F64)
    found = BackgroundPool.from_weights(weights).weights
    assert found[2] == 0
    torch.testing.assert_close(found / found[3], weights / weights[3], rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"at least 1e-36 of the largest, .* at position 0, .* give it weight 0"):
        BackgroundPool.from_weights(torch.tensor([low, 4e36 * low], dtype=F64))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, -1.0], ValueError, "got -1.0 at position 1"),
        ([math.inf, 1.0], ValueError, "got inf at position 0"),
        ([10**400, 1], ValueError, "got inf at position 0"),
        (np.array([1.0, math.nan]), ValueError, "got nan at position 1"),
        ([[1.0, 2.0]], ValueError, r"weights must be \[N\] with N >= 1, got shape \(1, 2\)"),
        ([], ValueError, r"got shape \(0,\)"),
        ([0, 0], ValueError, "every example has weight zero"),
        ("abc", TypeError, "weights must be a torch.Tensor, an array or numbers, got str"),
        ([None, 1.0], TypeError, "weights must be"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "weights must be real"),
        (torch.ones(2, device="meta"), ValueError, "weights must hold data"),
        (torch.ones(2).to_sparse(), TypeError, "weights must be a dense tensor"),
    ],
)
def test_what_are_no_weights(weights: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BackgroundPool.from_weights(weights)


def test_a_device_of_number_zero_is_a_device() -> None:
    wanted = []

    class Pool(BackgroundPool):
        def __init__(self, num_examples: int, *, device: object, **options: float) -> None:
            wanted.append(device)
            super().__init__(num_examples, **options)

    Pool.from_weights([1.0], device=0)
    Pool.from_weights([1.0])
    assert wanted == [0, torch.device("cpu")]
    with pytest.raises(ValueError, match="device must be"):
        BackgroundPool.from_weights([1.0], device="")


def test_sizes_are_numpy_integers_and_no_allocator_answers() -> None:
    pool = BackgroundPool(np.int64(5))
    generator = torch.Generator().manual_seed(0)
    assert len(pool.sample(torch.tensor(3), generator=generator)[0]) == 3
    assert len(pool.histogram(np.int32(4))[0]) == 4
    assert len(pool.top(np.uint8(2))) == 2
    for call, message in (
        (lambda n: BackgroundPool(n), "num_examples"),
        (lambda n: pool.sample(n, generator=generator), "batch_size"),
        (lambda n: pool.histogram(n), "bins"),
    ):
        for size in (10**18, 10**400):
            with pytest.raises(ValueError, match=f"{message} must be at most"):
                call(size)
        with pytest.raises(MemoryError, match=f"{message} 1000000000000 needs more memory than is available"):
            call(10**12)


@pytest.mark.parametrize(
    ("w", "error"), [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("x", TypeError)]
)
def test_inverse_softplus_of_what_no_softplus_is(w: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="w must be"):
        inverse_softplus(w)


def test_tensors_without_data_and_states_that_are_none() -> None:
    pool = BackgroundPool(5)
    meta = torch.zeros(2, dtype=torch.int64, device="meta")
    with pytest.raises(TypeError, match="index must be a dense tensor that holds data"):
        pool.importance(meta)
    with pytest.raises(TypeError, match="per_sample_loss must be a dense tensor"):
        pool.ascend(torch.tensor([0, 1]), torch.ones(2).to_sparse(), lr=1.0)
    with pytest.raises(TypeError, match="state must be a mapping"):
        pool.load_state_dict([1])
    with pytest.raises(TypeError, match=r"state\['omega'\] must be a torch.Tensor, got list"):
        pool.load_state_dict({"omega": [0.0], "velocity": [0.0]})
    for lr in (10**400, "x", None):
        with pytest.raises((TypeError, ValueError), match="lr must be finite in float32 and > 0"):
            pool.ascend(torch.tensor([0]), torch.ones(1), lr=lr)
