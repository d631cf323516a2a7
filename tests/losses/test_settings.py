"""Settings of losses are named as they were given, and rows are taken from whatever turns into an array."""

import math

import numpy as np
import pytest
import torch

from fastood.losses import EnergyRegularizedLoss, ICELoss, ObjectosphereLoss, OutlierExposureLoss
from fastood.ops import weighted_uniformity


def test_settings_are_named_as_they_were_given() -> None:
    for given in ({"alpha": -1}, {"alpha": "x"}):
        for make in (OutlierExposureLoss, EnergyRegularizedLoss, lambda **g: ObjectosphereLoss(1.0, **g)):
            with pytest.raises((ValueError, TypeError), match=r"^alpha must be .* got"):
                make(**given)
    with pytest.raises(ValueError, match=r"^xi must be finite and > 0, got 0"):
        ObjectosphereLoss(xi=0, alpha=1)
    with pytest.raises(TypeError, match=r"^margin_in must be a number, got None"):
        EnergyRegularizedLoss(margin_in=None)
    with pytest.raises(ValueError, match=r"^margin_out must be finite, got inf"):
        EnergyRegularizedLoss(margin_out=math.inf)
    with pytest.raises(ValueError, match=r"^margin_in must be at most margin_out .* got -1.0 and -7.0"):
        EnergyRegularizedLoss(margin_in=-1)


def test_flags_are_truth_values() -> None:
    logits = torch.zeros(2, 4)
    for wrong in (None, "no", 1, torch.ones(2), np.ones(2)):
        for make in (OutlierExposureLoss, lambda **g: ObjectosphereLoss(1.0, 1.0, **g)):
            with pytest.raises(TypeError, match=r"^check_finite must be a bool, got"):
                make(check_finite=wrong)
        with pytest.raises(TypeError, match=r"^check_finite must be a bool, got"):
            weighted_uniformity(logits, check_finite=wrong)
        with pytest.raises(TypeError, match=r"^id_likelihood must be a bool, got"):
            ICELoss(id_likelihood=wrong)


def test_rows_come_from_whatever_turns_into_an_array() -> None:
    class Column:
        def __init__(self, values: list[float]) -> None:
            self.values = values

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return np.asarray(self.values, dtype=dtype)

    logits, targets, weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), [1, -1, 2], [1.0, 2.0, 3.0]
    want = OutlierExposureLoss()(logits, torch.tensor(targets), torch.tensor(weight))
    for rows, of_rows in (
        (Column(targets), Column(weight)),
        (np.array(targets, dtype=np.longlong), np.array(weight, dtype=np.ulonglong)),
        (list(torch.tensor(targets)), list(torch.tensor(weight))),
        (np.array(targets), np.array(weight, dtype=np.uint64)),
    ):
        assert OutlierExposureLoss()(logits, rows, of_rows) == want
    for wrong in (np.zeros(3, dtype=np.longdouble), np.array(["2020-01-01"] * 3, dtype="datetime64[D]"), [None] * 3):
        with pytest.raises(TypeError, match=r"^targets must hold numbers, in rows of one length, got"):
            OutlierExposureLoss()(logits, wrong)
