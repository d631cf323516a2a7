"""Metrics of what people have: arrays, lists and numbers give what tensors give, and all else a named error."""

import array
import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastood import metrics
from fastood.metrics import DetectionEvaluator, HistogramEvaluator, Protocol, ScoreCalibration
from fastood.metrics.inputs import as_labels, as_scores

GENERATOR = torch.Generator().manual_seed(0)
ID = torch.randn(30, generator=GENERATOR).round(decimals=1).double()
OOD = (torch.randn(20, generator=GENERATOR) + 1).round(decimals=1).double()
CORRECT = torch.arange(30) % 3 > 0
FAST_BOOTSTRAP = {"replicates": 20}

KINDS: dict[str, Callable[[Tensor], object]] = {
    "list": Tensor.tolist,
    "tuple": lambda scores: tuple(scores.tolist()),
    "array": Tensor.numpy,
    "reversed twice": lambda scores: scores.numpy()[::-1].copy()[::-1],
    "big-endian": lambda scores: scores.numpy().astype(">f8"),
    "read-only": lambda scores: read_only(scores.numpy()),
    "NumPy scalars": lambda scores: list(scores.numpy()),
    "0-d tensors": list,
    "array.array": lambda scores: array.array("d", scores.tolist()),
    "gradient": lambda scores: scores.clone().requires_grad_(),
    "strided": lambda scores: scores.repeat_interleave(2)[::2],
}


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


CALLS: dict[str, Callable[[object, object], object]] = {
    "detection_metrics": lambda i, o: metrics.detection_metrics(i, o, rule="quantile", aupr_kind="trapezoid"),
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "fpr_at_tpr": metrics.fpr_at_tpr,
    "autc": metrics.autc,
    "oscr": lambda i, o: metrics.oscr(i, o, correct=CORRECT.tolist()),
    "roc_curve": lambda i, o: vars(metrics.roc_curve(i, o)),
    "pr_curve": lambda i, o: vars(metrics.pr_curve(i, o)),
    "delong_estimate": metrics.delong_estimate,
    "delong_test": lambda i, o: metrics.delong_test(i, o, i, o),
    "bootstrap_metrics": lambda i, o: metrics.bootstrap_metrics(i, o, generator=seeded(), **FAST_BOOTSTRAP),
    "bootstrap_differences": lambda i, o: metrics.bootstrap_differences(
        i, o, i, o, generator=seeded(), **FAST_BOOTSTRAP
    ),
    "risk_coverage_curve": lambda i, o: vars(
        metrics.risk_coverage_curve(i, correct=CORRECT.numpy(), ood_scores=[o, o])
    ),
    "evaluate_protocol": lambda i, o: metrics.evaluate_protocol(i, {"x": o}, generator=seeded()),
    "threshold_at_tpr": lambda i, o: metrics.threshold_at_tpr(i),
    "calibration": lambda i, o: ScoreCalibration(i).p_values(o),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_every_kind_of_scores_gives_what_tensors_give(call: str, kind: str) -> None:
    assert_same(CALLS[call](KINDS[kind](ID), KINDS[kind](OOD)), CALLS[call](ID, OOD))


def assert_same(found: object, want: object) -> None:
    if isinstance(want, Tensor):
        assert torch.equal(found, want)
    elif isinstance(want, dict):
        assert list(found) == list(want)
        for key, value in want.items():
            assert_same(found[key], value)
    else:
        assert found == want


def test_detectors_of_lists() -> None:
    rows = {"x": torch.stack([OOD, -OOD])}
    want = metrics.evaluate_detectors(torch.stack([ID, -ID]), rows, generator=seeded())
    found = metrics.evaluate_detectors([ID.tolist(), (-ID).tolist()], {"x": rows["x"].numpy()}, generator=seeded())
    assert found == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_a_list_takes_the_dtype_beside_it(dtype: torch.dtype) -> None:
    id_scores, ood_scores = torch.tensor([1, 2, 2, 5]).to(dtype), torch.tensor([2, 7]).to(dtype)
    want = metrics.auroc(id_scores, ood_scores)
    assert metrics.auroc(id_scores, [2, 7]) == metrics.auroc([1, 2, 2, 5], ood_scores) == want
    assert metrics.auroc(torch.tensor([0.1]), [0.1]) == 0.5  # a tie, as PyTorch compares them
    assert metrics.auroc([0, 1], [0.5, 2]) == metrics.auroc([0.0, 1.0], [0.5, 2.0])


def test_no_list_is_rounded_into_ties() -> None:
    close = [0.1, 0.1 + 1e-12]
    assert metrics.auroc([close[0]], [close[1]]) == 1  # lists of numbers are float64
    with pytest.raises(TypeError, match=r"ood_scores is a list of numbers that torch\.float32 does not represent"):
        metrics.auroc(torch.tensor([0.5]), close)
    with pytest.raises(TypeError, match=r"ood_scores is a list of numbers that torch\.int64 does not represent"):
        metrics.auroc(torch.tensor([1]), [0.5])
    big = 2**60
    assert metrics.auroc([big], [big + 1]) == 1
    with pytest.raises(TypeError, match="share one dtype"):
        metrics.auroc(torch.tensor([0.5]), np.array([0.5]))


def test_eight_bit_floats_are_scores() -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        id_scores, ood_scores = torch.tensor([0.5, 1.0]).to(dtype), torch.tensor([1.0, 2.0]).to(dtype)
        assert metrics.auroc(id_scores, ood_scores) == 0.875


WRONG = [
    None,
    "scores",
    b"scores",
    {"scores": 1.0},
    {1.0, 2.0},
    object(),
    [None, 1.0],
    ["a", "b"],
    [[1.0, 2.0], [3.0]],
    [torch.ones(2), torch.ones(3)],
    10**400,
    [10**400],
    1j,
    np.array(["a"]),
    np.array([1, None]),
    np.array(["2020-01-01"], dtype="datetime64[D]"),
    np.ma.array([1.0, 2.0], mask=[True, False]),
    np.ones(2, dtype=np.complex64),
    np.ones(2, dtype=np.longdouble),
    torch.ones(2, dtype=torch.complex64),
    torch.ones(2, device="meta"),
    torch.ones(2).to_sparse(),
    torch.ones(2, 2).to_sparse_csr(),
    torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
]


@pytest.mark.parametrize("wrong", WRONG, ids=[f"{number}" for number in range(len(WRONG))])
@pytest.mark.parametrize("call", CALLS)
def test_what_are_no_scores_is_named(call: str, wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"(id_scores|ood_scores|scores)(\['x'\])? (must|holds|is)"):
        CALLS[call](wrong, OOD)
    if call == "threshold_at_tpr":
        return
    with pytest.raises((TypeError, ValueError), match=r"scores(\['x'\]|\[0\])? (must|holds|is)"):
        CALLS[call](ID, wrong)


def test_p_values_of_any_shape_and_of_no_complex_number() -> None:
    calibration = ScoreCalibration(list(range(99)))
    assert calibration.p_values(50).item() == calibration.p_values(np.float64(50)).item() == 0.5
    assert calibration.p_values([[50, 1000]]).tolist() == [[0.5, 0.01]]
    with pytest.raises(TypeError, match=r"scores must be real, got torch\.complex64"):
        calibration.p_values(torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.int64])
def test_a_threshold_of_any_dtype(dtype: torch.dtype) -> None:
    scores = torch.tensor([0, 1, 1, 1]).to(dtype)
    assert metrics.threshold_at_tpr(scores, tpr=0.25) == 0
    assert metrics.threshold_at_tpr(scores, tpr=0.5) == 1


NUMBERS: dict[str, Callable[[object], object]] = {
    "tpr": lambda n: metrics.detection_metrics(ID, OOD, tpr=n),
    "tpr of an evaluator": lambda n: DetectionEvaluator(tpr=n),
    "tpr of a threshold": lambda n: metrics.threshold_at_tpr(ID, tpr=n),
    "tpr of a protocol": lambda n: Protocol(name="x", tpr=n),
    "fpr": lambda n: ScoreCalibration(ID).threshold(n),
    "confidence": lambda n: ScoreCalibration(ID).threshold(0.5, confidence=n),
    "level": lambda n: metrics.bootstrap_metrics(ID, OOD, generator=seeded(), level=n, **FAST_BOOTSTRAP),
    "ood_per_id": lambda n: metrics.pr_curve(ID, OOD, ood_per_id=n),
    "ood_per_id of a bootstrap": lambda n: metrics.bootstrap_metrics(
        ID, OOD, generator=seeded(), ood_per_id=n, **FAST_BOOTSTRAP
    ),
    "ood_per_id of a risk": lambda n: metrics.risk_coverage_curve(ID, correct=CORRECT, ood_scores=[OOD], ood_per_id=n),
    "ood_fraction": lambda n: Protocol(name="x", ood_fraction=n),
    "repeats": lambda n: Protocol(name="x", repeats=n),
    "replicates": lambda n: metrics.bootstrap_metrics(ID, OOD, generator=seeded(), replicates=n),
    "bits": lambda n: HistogramEvaluator(bits=n),
    "id_count": lambda n: Protocol().ood_count(n),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", ["x", [1], {}, object(), 1j, -1, math.nan, math.inf, torch.ones(2), -(10**400)])
def test_numbers_that_are_none_are_named(name: str, wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name.split()[0]} must"):
        NUMBERS[name](wrong)


@pytest.mark.parametrize("name", ["tpr", "fpr", "level", "ood_per_id", "ood_fraction", "repeats", "replicates", "bits"])
def test_an_integer_beyond_all_floats_is_a_number(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*got an int of 401 digits"):
        NUMBERS[name](10**400)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, torch.tensor])
def test_a_rate_is_the_decimal_that_was_typed(kind: Callable[[float], object]) -> None:
    # As a float64, float32's 0.1 is above 1/10: of 10 scores two would be wanted.
    scores = torch.arange(10.0)
    assert metrics.threshold_at_tpr(scores, tpr=kind(0.1)) == metrics.threshold_at_tpr(scores, tpr=0.1) == 0
    assert metrics.detection_metrics(scores, scores, tpr=kind(0.95)).fpr95 == 1


def test_protocols_need_a_mapping_and_a_generator() -> None:
    with pytest.raises(TypeError, match=r"ood_scores must be a mapping .*got Tensor"):
        metrics.evaluate_protocol(ID, OOD, generator=seeded())
    with pytest.raises(TypeError, match=r"ood_scores must be a mapping .*got Tensor"):
        metrics.evaluate_detectors(ID[None], OOD[None], generator=seeded())
    for call in (
        lambda g: metrics.evaluate_protocol(ID, {"x": OOD}, generator=g),
        lambda g: metrics.evaluate_detectors(ID[None], {"x": OOD[None]}, generator=g),
        lambda g: metrics.bootstrap_metrics(ID, OOD, generator=g),
        lambda g: metrics.bootstrap_differences(ID, OOD, ID, OOD, generator=g),
    ):
        for wrong in (None, 0, np.random.default_rng(0)):
            with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got"):
                call(wrong)
    with pytest.raises(ValueError, match="protocol must be a Protocol or one of"):
        metrics.evaluate_protocol(ID, {"x": OOD}, protocol=["li2020"], generator=seeded())
    with pytest.raises(ValueError, match="repeats must be an int in 1 … 1000000"):
        Protocol(name="x", repeats=10**18)


def test_labels_are_whole_numbers_of_any_kind() -> None:
    scores, y = torch.tensor([0.0, 1.0, 0.5, 2.0]), torch.tensor([0, -1, 3, -2])
    want = DetectionEvaluator().update(scores, y, y).compute()
    for labels in (y.float(), y.double(), y.to(torch.float16), y.numpy(), y.tolist(), y.float().tolist(), y.int()):
        assert DetectionEvaluator().update(scores, labels, labels).compute() == want
        assert HistogramEvaluator().update(scores, labels).metrics() == HistogramEvaluator().update(scores, y).metrics()
    one_by_one = DetectionEvaluator()
    for score, label in zip(scores.tolist(), y.tolist(), strict=True):
        one_by_one.update(score, label, np.int64(label))
    assert one_by_one.compute() == want
    assert as_labels("y", torch.tensor([255], dtype=torch.uint16)).dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0.5, -1.0], ValueError, "must hold whole numbers as labels, got 0.5"),
        ([math.nan, -1.0], ValueError, "must hold whole numbers as labels, got nan"),
        ([math.inf, -1.0], ValueError, "must hold whole numbers as labels, got inf"),
        ([1e30, -1.0], ValueError, "must hold whole numbers as labels, got 1e"),
        ([True, False], TypeError, "must hold integer labels, below 0 for OOD, got torch.bool"),
        (np.array([2**63, 1], dtype=np.uint64), ValueError, "must hold labels below 2.63"),
        (["cat", "dog"], TypeError, "must be a torch.Tensor, an array or numbers"),
    ],
)
@pytest.mark.parametrize("argument", ["y", "predictions"])
def test_what_are_no_labels_is_named(argument: str, labels: object, error: type[Exception], message: str) -> None:
    evaluator = DetectionEvaluator().update([0.0, 1.0], [0, -1], [0, 0])
    before = copy.deepcopy(evaluator).compute()
    batch = {"y": [0, -1], "predictions": [0, 0], argument: labels}
    with pytest.raises(error, match=f"{argument} {message}"):
        evaluator.update([0.0, 1.0], **batch)
    assert evaluator.compute() == before
    if argument == "y":
        with pytest.raises(error, match=f"y {message}"):
            HistogramEvaluator().update([0.0, 1.0], labels)


@pytest.mark.parametrize("kind", [DetectionEvaluator, HistogramEvaluator])
def test_void_labels_are_integers(kind: type) -> None:
    for label in (255, np.int64(255), torch.tensor(255), 255.0, np.uint8(255)):
        assert kind(void_label=label).void_label == 255
    assert kind(void_label=-100).update([0.0, 1.0, 5.0], [0, -1, -100]).metrics().ood_count == 1
    for wrong in ("x", math.nan, 2.5, object(), [1, 2], True, 10**400, {}):
        with pytest.raises(TypeError, match="void_label must be an integer label, or None, got"):
            kind(void_label=wrong)


def test_flags_are_no_numbers() -> None:
    for wrong in ([1, 0], np.array([1.0, 0.0]), "xx"):
        with pytest.raises(TypeError, match="correct must be"):
            metrics.oscr([0.0, 1.0], [0.5], correct=wrong)
    assert metrics.oscr([0.1, 0.2], [0.3], correct=[True, False]) == 0.5


def test_batches_of_lists_go_with_tensors() -> None:
    evaluator = DetectionEvaluator().update(torch.tensor([0.5]), [0]).update([0.25, 1], [0, -1])
    assert evaluator.id_scores.dtype == torch.float32
    assert evaluator.compute()["AUROC"] == 1
    assert as_scores("scores", [1, 2]).dtype == torch.float64


def test_an_empty_batch_adds_nothing() -> None:
    for empty in ([], torch.empty(0), np.empty((0, 3), dtype=np.float64)):
        labels = torch.empty(np.shape(empty))
        evaluator = DetectionEvaluator().update(empty, labels).update(torch.tensor([0.0, 1.0]), [0, -1], [0, 0])
        assert evaluator.update(empty, labels).compute()["ACC"] == 1
        assert HistogramEvaluator().update([0.0, 1.0], [0, -1]).update(empty, labels).metrics().ood_count == 1


def test_a_calibration_file_is_named(tmp_path: Path) -> None:
    for content in (b"", b"no file of this kind", b"\x80\x04N."):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pt was not written by ScoreCalibration\.save"):
            ScoreCalibration.load(tmp_path / "bad.pt")


def test_integers_of_any_c_type_are_numbers() -> None:
    """NumPy has two types of 64 bits, of which PyTorch knows one."""
    scores = [2**63 + 1, 3, 2**63]
    want = torch.tensor([2**63 + 1, 3, 2**63], dtype=torch.uint64)
    assert torch.equal(as_scores("scores", np.array(scores, dtype=np.ulonglong)), want)
    assert metrics.auroc(np.array([1, 3], dtype=np.longlong), np.array([2, 4], dtype=np.longlong)) == 0.75
    assert metrics.auroc(np.array([2**63, 2], np.ulonglong), np.array([2**63 + 1], np.ulonglong)) == 1.0
    assert metrics.auroc([2**63, 2.0], [2**63 + 2**12]) == 1.0
    with pytest.raises(TypeError, match=r"id_scores is a list of integers that neither .* pass a torch.uint64 tensor"):
        metrics.auroc([2**63, 2**63 + 1], [2**63])
    for kind in (np.longlong, np.ulonglong):
        assert as_labels("y", np.array([3, 1], dtype=kind)).tolist() == [3, 1]


@pytest.mark.parametrize("ratio", [2**63, 10**18, 1e-18])
def test_a_ratio_of_classes_beyond_counting_is_named(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ood_per_id must be nearer to the ratio of the 20 OOD images and 30 ID"):
        metrics.bootstrap_metrics(ID, OOD, generator=seeded(), ood_per_id=ratio, **FAST_BOOTSTRAP)
