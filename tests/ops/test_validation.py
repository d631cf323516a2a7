"""The checks of numbers and tensors that public calls share."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fastood.ops._validation import check_integer, check_number, check_tensor


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0), torch.tensor(2), Fraction(2)]
)
def test_any_real_number_is_a_float(value: object) -> None:
    got = check_number("x", value, 0, 2)
    assert type(got) is float
    assert got == 2


@pytest.mark.parametrize("value", [True, "1", None, 1j, [1.0], np.ones(1), torch.ones(1), np.bool_(True), object()])
def test_other_types_are_no_number(value: object) -> None:
    with pytest.raises(TypeError, match=r"^x must be a number, got "):
        check_number("x", value)
    with pytest.raises(TypeError, match=r"^x must be an int >= 1, got "):
        check_integer("x", value, 1)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), 1 << 20000, np.nan], ids=[*"abcdefg"]
)
def test_no_number_is_infinite(value: float) -> None:
    with pytest.raises(ValueError, match=r"^x must be finite, got .{1,70}$"):
        check_number("x", value)


def test_ends_of_ranges() -> None:
    assert check_number("x", 0, 0, 1, below_high=True) == 0
    for value in (0, 1):
        with pytest.raises(ValueError, match=rf"^x must be in \(0, 1\), got {value}$"):
            check_number("x", value, 0, 1, above_low=True, below_high=True)
    with pytest.raises(ValueError, match=r"^x must be finite and > 0, got 0$"):
        check_number("x", 0, 0, above_low=True)
    with pytest.raises(ValueError, match=r"^x must be finite and <= 3, got 4$"):
        check_number("x", 4, high=3)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), torch.tensor(3), np.array(3)])
def test_any_integer_is_an_int(value: object) -> None:
    got = check_integer("x", value, 3, 3)
    assert type(got) is int
    assert got == 3


@pytest.mark.parametrize("value", [3.0, np.float32(3), torch.tensor(3.0), torch.tensor(3, device="meta")])
def test_no_float_is_an_int(value: object) -> None:
    with pytest.raises(TypeError, match=r"^x must be an int, got "):
        check_integer("x", value)


def test_integers_out_of_range() -> None:
    for value in (0, 6, 10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"^x must be an int in 1 … 5, got "):
            check_integer("x", value, 1, 5)
    with pytest.raises(ValueError, match=r"^x must be an int <= 5, got 6"):
        check_integer("x", 6, high=5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(2), r"^x must be a torch.Tensor, got ndarray: pass torch.as_tensor\(x\)$"),
        ([0.0], r"^x must be a torch.Tensor, got list: pass torch.as_tensor\(x\)$"),
        (None, r"^x must be a torch.Tensor, got NoneType$"),
        (torch.eye(2).to_sparse(), r"^x must be a dense tensor, got layout torch.sparse_coo$"),
        (torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "^x must be a dense tensor, got a nested"),
        (torch.nested.nested_tensor([torch.zeros(2)]), "^x must be a dense tensor, got a nested"),
        (torch.zeros(2, dtype=torch.complex64), "^x must be float64 or float32, got torch.complex64$"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "^x must be float64 or float32, got torch.float8_e4m3fn$"),
    ],
)
def test_no_dense_tensor_of_the_dtypes(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check_tensor("x", value, [torch.float64, torch.float32])


def test_tensors_without_values() -> None:
    meta = torch.zeros(2, device="meta")
    assert check_tensor("x", meta) is meta
    with pytest.raises(ValueError, match=r"^x must be on a device that holds its values, got the meta device"):
        check_tensor("x", meta, values=True)
