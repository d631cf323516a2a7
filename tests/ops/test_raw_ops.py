"""Refusals of torch.ops.fastood.* that are called past the public functions: nothing is read that is not there."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastood.ops.outlier_loss import LossKind
from tests.ops.test_registration import op_calls
from tests.support.background_pool_samples import pool_of
from tests.support.op_samples import LossSample

ops = torch.ops.fastood


def first_calls() -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    return list({name: (name, op, args) for name, op, args in reversed(op_calls("cpu"))}.values())


@pytest.mark.parametrize(
    ("name", "op", "args"), first_calls(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_tensors_of_two_devices_give_no_result(name: str, op: Callable[..., object], args: tuple[object, ...]) -> None:
    """One on the meta device has the fake kernel run, whose results hold whatever was in memory."""
    tensors = [i for i, value in enumerate(args) if isinstance(value, Tensor)]
    for i in tensors if len(tensors) > 1 else []:
        mixed = [value.to("meta") if j == i else value for j, value in enumerate(args)]
        with pytest.raises(RuntimeError, match=r"must be on the device of the first argument"):
            op(*mixed)


def backward_args(**change: Tensor) -> tuple[object, ...]:
    logits, rows = LossSample(LossKind.UNIFORMITY, 6, 4).make("cpu", torch.float32)
    sample = LossSample(LossKind.UNIFORMITY, 6, 4)
    _, _, row_stats, factors = ops.outlier_loss(logits, *rows, *sample.settings)
    named = {"grad": torch.ones(()), "logits": logits, "row_stats": row_stats, "factors": factors, **change}
    return (*named.values(), 0)


def test_factors_are_contiguous() -> None:
    factors = backward_args()[3]
    wide = torch.zeros(8, dtype=torch.float64)
    wide[::2] = factors
    for strided in (torch.ones(1, dtype=torch.float64).expand(4), wide[::2]):
        with pytest.raises(RuntimeError, match=r"factors must be contiguous"):
            ops._outlier_loss_backward(*backward_args(factors=strided))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, math.nan, 0.0, 0.0, 0, True), "background_weight must be finite and at least 0, got nan"),
        ((0, math.inf, 0.0, 0.0, 0, True), "background_weight must be finite and at least 0, got inf"),
        ((2, 1.0, math.nan, 0.0, 0, True), "margins must be finite, got nan and 0"),
        ((2, 1.0, 0.0, -math.inf, 0, True), "margins must be finite, got 0 and -inf"),
    ],
)
def test_settings_of_a_loss_are_finite(settings: tuple[object, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.outlier_loss(torch.zeros(2, 3), None, None, None, *settings)


@pytest.mark.parametrize("first", [2**63 - 1, 2**63 - 4, 2**32, 2**32 - 3, -1])
def test_replicates_do_not_wrap(first: int) -> None:
    with pytest.raises(RuntimeError, match=r"replicates must be in \[0, 2\^32\)"):
        ops.resampling_counts(torch.zeros(4, 10, dtype=torch.int32), 0, 0, first, 0, 10)
    ops.resampling_counts(torch.zeros(4, 10, dtype=torch.int32), 0, 0, 2**32 - 4, 0, 10)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_ranks_are_asked_for_first(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"counts must be 2-D, got [01]-D"):
        ops.resampling_counts(torch.zeros(shape, dtype=torch.int32), 0, 0, 0, 0, 10)
    keys = torch.arange(3, dtype=torch.int32)[None]
    with pytest.raises(RuntimeError, match=r"id_weight must be 2-D, got [01]-D"):
        ops.weighted_ranking_statistics(keys, keys, torch.ones(shape, dtype=torch.int32), None, [0.95])
    one = torch.zeros(1, 1)
    with pytest.raises(RuntimeError, match=r"whitened_means must be 2-D, got [01]-D"):
        ops._mahalanobis_logits_backward(one, one, torch.zeros(shape), torch.zeros(1, dtype=torch.int64), torch.ones(1))


def test_messages_name_the_file_without_the_build_machine() -> None:
    with pytest.raises(RuntimeError, match=r"factors must be contiguous") as error:
        ops._outlier_loss_backward(*backward_args(factors=torch.ones(1, dtype=torch.float64).expand(4)))
    first = str(error.value).partition("\n")[0]
    assert "csrc/outlier_loss/op.h" in first
    assert "/csrc" not in first


@pytest.mark.parametrize(
    ("momentum", "lr", "message"),
    [
        (math.nan, 0.1, r"momentum must be in \[0, 1\), got nan"),
        (1.0, 0.1, r"momentum must be in \[0, 1\), got 1"),
        (0.5, math.inf, r"lr must be finite in float32, got inf"),
        (0.5, 3.5e38, r"lr must be finite in float32, got 3.5e\+38"),
        (0.5, -1e300, r"lr must be finite in float32, got -1e\+300"),
        (0.5, math.nan, r"lr must be finite in float32, got nan"),
    ],
)
def test_settings_of_a_step_are_finite(momentum: float, lr: float, message: str) -> None:
    state = pool_of(torch.ones(100))._state
    before = state.omega.clone()
    index, loss = torch.tensor([1]), torch.ones(1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        ops.background_pool_ascend(
            state.omega, state.velocity, state.masses, state.stats, index, loss, None, 0.5, momentum, lr, False
        )
    assert torch.equal(state.omega, before)


@pytest.mark.parametrize("padding", [-1, 2**16 + 1, 2**31 - 1, 10**18, 2**62])
def test_padding_has_an_end(padding: int) -> None:
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"padding must be in \[0, 65536\], got"):
        ops.augment_images(images, zero, zero, zero, zero.bool(), padding, [0.5], [0.5], torch.float32, False)
    far = ops.augment_images(images + 9, zero, zero, zero, zero.bool(), 2**16, [0.0], [1.0], torch.float32, False)
    assert far.eq(0).all()


def pool_calls(change: Callable[[str, Tensor], Tensor]) -> dict[str, Callable[[], object]]:
    """Calls of the ops that write into arguments, each of their tensors changed by its name."""
    state = pool_of(torch.ones(100))._state
    omega, velocity, masses, stats = (
        change(name, getattr(state, name)) for name in ("omega", "velocity", "masses", "stats")
    )
    index, loss = torch.tensor([1]), change("loss", torch.ones(1, dtype=torch.float64))
    counts = change("counts", torch.zeros(3, 4, dtype=torch.int32))
    step = (omega, velocity, masses, stats, index, loss, None, 0.5, 0.9, 0.1, False)
    return {
        "fill": lambda: ops.background_pool_fill(omega, 1.0),
        "build": lambda: ops.background_pool_build(omega, masses, stats, 0.5),
        "ascend": lambda: ops.background_pool_ascend(*step).tolist(),
        "counts": lambda: ops.resampling_counts(counts, 0, 0, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("name", "argument"),
    [("build", "masses"), ("build", "stats"), ("ascend", "omega"), ("ascend", "velocity"), ("counts", "counts")],
)
def test_negated_views_are_not_written(name: str, argument: str) -> None:
    """They would end the process in PyTorch's fallback."""
    call = pool_calls(lambda tensor, value: torch._neg_view(value) if tensor == argument else value)[name]
    with pytest.raises(RuntimeError, match=rf"{argument} must not be a lazily negated view, .*{argument}.resolve_neg"):
        call()


def test_negated_views_are_read() -> None:
    assert pool_calls(lambda name, value: torch._neg_view(-value) if name == "loss" else value)["ascend"]() == [0, -1]


@pytest.mark.parametrize("name", ["fill", "build", "ascend"])
def test_zero_tensors_are_not_written(name: str) -> None:
    call = pool_calls(lambda _, value: torch._efficientzerotensor(value.shape, dtype=value.dtype))[name]
    with pytest.raises(RuntimeError, match=r"ZeroTensors are immutable"):
        call()


def test_zero_tensors_are_not_read_as_memory() -> None:
    with pytest.raises(RuntimeError, match=r"factors must be contiguous"):
        ops._outlier_loss_backward(*backward_args(factors=torch._efficientzerotensor(4, dtype=torch.float64)))
    zeros = torch._efficientzerotensor(4, 3)
    assert torch.equal(ops.logit_scores(zeros, 63, 0, 0.1, 0), ops.logit_scores(torch.zeros(4, 3), 63, 0, 0.1, 0))
