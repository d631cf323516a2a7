"""Tables at every width of terminal: numbers and heads whole, lines within it."""

import re

import pytest
from rich.console import Console
from rich.table import Table

from fastood.detectors import detector_names
from fastood.train.report import metrics_tables
from fastood.train.report.detector_table import detector_tables, notes
from fastood.train.report.table_layout import open_console, print_tables, short_heads
from tests.train.report.test_table import make_metrics

SETS = (
    "held-out digits",
    "photographs",
    "uniform",
    "Greek letters of the embedded font",
    "tiny-imagenet-resized-to-32-pixels",
    "places365_validation_large",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "pneumonoultraviolet",
    "a b c d e f g h i j k l m n o p",
    "LSUN",
)
DETECTORS = detector_names()


def make_document(detectors: int, sets: int):
    """Detectors.json with a value of its own in every cell."""
    value = iter(range(1, 100_000))

    def result():
        return {
            **{key: {"mean": next(value) / 10_000, "std": 0.01} for key in ("fpr95", "auroc", "aupr")},
            "id_count": 1000,
            "ood_count": 200,
            "repeats": 5,
        }

    found = {}
    for name in DETECTORS[:detectors]:
        means = {key: next(value) / 10_000 for key in ("fpr95", "auroc", "aupr")}
        found[name] = {"settings": "", "ood": {name: result() for name in SETS[:sets]}, "mean": means}
    protocol = {
        **{"name": "li2020", "positive": "ood", "ood_fraction": 0.2, "repeats": 5},
        **{"tpr": 0.95, "rule": "first", "aupr_kind": "average_precision"},
    }
    return {"protocol": protocol, "arms": {"oe": {"label": "OE", "detectors": found, "skipped": {}}}}


def printed(tables: list[Table], width: int) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
@pytest.mark.parametrize(("detectors", "sets"), [(1, 1), (3, 5), (16, 6), (16, 10)])
def test_every_number_of_every_detector_is_whole(detectors: int, sets: int, width: int):
    document = make_document(detectors, sets)
    text = printed(detector_tables(document, width=width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in re.sub(r"\w…\d", "", text)
    numbers = re.findall(r"(?<![\d.])\d+\.\d\d(?![\d.])", text)
    found = document["arms"]["oe"]["detectors"].values()
    expected = [
        of_set[key]["mean"] for d in found for of_set in d["ood"].values() for key in ("fpr95", "auroc", "aupr")
    ]
    if sets > 1:
        expected += [d["mean"][key] for d in found for key in ("fpr95", "auroc", "aupr")]
    assert sorted(numbers) == sorted(f"{100 * x:.2f}" for x in expected)
    told = " ".join(notes(document))
    for name in SETS[:sets]:
        (head,), _ = short_heads([name])
        assert name in told or all(line in text for line in head.split("\n"))
    for name in DETECTORS[:detectors]:
        (broken,), _ = short_heads([name])
        assert re.search(rf"\b{name}\b", text) or all(line in text for line in broken.split("\n"))


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
@pytest.mark.parametrize(("count", "sets"), [(1, 1), (4, 6), (10, 10), (20, 2)])
def test_every_number_of_every_arm_is_whole(count: int, sets: int, width: int):
    value = iter(range(1, 100_000))
    arms = {f"arm {i}": tuple(next(value) / 10_000 for _ in range(3)) for i in range(count)}
    metrics = make_metrics(arms, SETS[:sets])
    text = printed(metrics_tables(metrics, width=width), width)
    assert max(map(len, text.splitlines())) <= width
    for values in arms.values():
        for number in values:
            assert len(re.findall(rf"(?<![\d.]){100 * number:.2f}(?![\d.])", text)) == sets + 1
    assert text.count("Protocol li2020") == 1
    assert "γ is the share" in " ".join(text.split())
    for arm in arms:
        assert arm in text


def test_a_number_is_whole_on_any_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "12")
    assert open_console().width == 12
    print_tables(detector_tables(make_document(2, 1), width=12))
    assert len(re.findall(r"\d+\.\d\d", capsys.readouterr().out)) == 6


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("", 110), ("0", 110), ("200", 200)])
def test_a_pipe_is_as_wide_as_columns_says(columns: str, width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert open_console().width == width


def test_a_mean_over_one_set_is_not_printed_twice():
    (table,) = detector_tables(make_document(2, 1))
    assert [str(column.header) for column in table.columns] == ["", "Detector", "held-out\ndigits"]


def test_one_class_networks_are_rows_that_do_not_compete():
    metrics = make_metrics({"class-0": (0.2, 0.9, 0.5), "class-1": (0.4, 0.8, 0.7)}, ["other classes"])
    metrics["bootstrap"]["baseline"] = None
    metrics["arms"]["class-0"]["label"], metrics["arms"]["class-1"]["label"] = "zero", "one"
    metrics["arms"]["class-1"]["ood"]["other classes"]["id_count"] = 1200
    (table,) = metrics_tables(metrics, width=80)
    text = printed([table], 80)
    rows = [line.split() for line in text.splitlines()]
    assert ["zero", "20.00", "±", "1.23", "90.00", "±", "1.23", "50.00", "±", "1.23"] in rows
    assert ["Mean", "30.00", "85.00", "60.00"] in rows
    assert "Accuracy" not in text
    assert "against 1,000 to 1,200 ID test images" in " ".join(text.split())
    assert not [cell for column in table.columns for cell in column._cells if "bold" in str(getattr(cell, "style", ""))]
