"""The terminal table: per cent, bold best, and a width that a terminal has."""

import pytest
from rich.console import Console
from rich.text import Text

from fastood.train.report import metrics_table


def make_metrics(arms, sets):
    """Arm → {set → (fpr95, auroc, aupr)} as a metrics.json; the mean is that of the first set."""
    keys = ("fpr95", "auroc", "aupr")
    return {
        "schema": 2,
        "method": "resample",
        "seed": 0,
        "protocol": {
            "name": "li2020",
            "positive": "ood",
            "ood_fraction": 0.2,
            "repeats": 5,
            "tpr": 0.95,
            "rule": "first",
            "aupr_kind": "average_precision",
        },
        "bootstrap": {"baseline": next(iter(arms))},
        "in_distribution": {"name": "digits", "train": 1, "test": 100, "classes": 7},
        "arms": {
            arm: {
                "label": f"{arm}, γ = 1 %",
                "accuracy": 0.98765,
                "background_size": 12345,
                "ood": {
                    name: {
                        **{key: {"mean": value, "std": 0.0123} for key, value in zip(keys, values, strict=True)},
                        "id_count": 1000,
                        "ood_count": 200,
                        "repeats": 5,
                    }
                    for name in sets
                },
                "mean": dict(zip(keys, values, strict=True)),
            }
            for arm, values in arms.items()
        },
    }


def printed(table, width=100):
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def cells(table, column):
    return [cell if isinstance(cell, Text) else Text(cell) for cell in table.columns[column]._cells]


def test_values_are_printed_in_per_cent_with_spread():
    table = metrics_table(make_metrics({"none": (0.31449, 0.9, 0.5), "full": (0.05, 0.99, 1.0)}, ["svhn"]))
    assert [cell.plain.strip() for cell in cells(table, 2)] == [
        "31.45 ± 1.23",
        "31.45",
        "90.00 ± 1.23",
        "90.00",
        "50.00 ± 1.23",
        "50.00",
        "98.77",
        "12,345",
    ]
    assert [cell.plain for cell in cells(table, 0)] == [
        *("FPR95 ↓", ""),
        *("AUROC ↑", ""),
        *("AUPR ↑", ""),
        *("Accuracy", "Trained on"),
    ]
    assert "against 1,000 ID test images; AUPR is average precision" in " ".join(str(table.caption).split())


def test_best_of_each_row_is_bold_and_alike_prints_share_it():
    arms = {"a": (0.10, 0.90001, 0.5), "b": (0.20, 0.90002, 0.7), "c": (0.30, 0.80, 0.6)}
    table = metrics_table(make_metrics(arms, ["svhn"]))
    bold = {
        arm: ["bold" in str(cell.style) for cell in cells(table, column)][:6:2]
        for column, arm in enumerate(arms, start=2)
    }
    assert bold == {"a": [True, True, False], "b": [False, True, True], "c": [False, False, False]}


def test_four_arms_and_six_long_sets_fit_100_columns_whole():
    arms = dict.fromkeys(("none", "random", "resampled", "full"), (1.0, 1.0, 1.0))
    text = printed(metrics_table(make_metrics(arms, [f"OOD set number {i}" for i in range(6)])))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert text.count("100.00 ± 1.23") == 3 * 6 * 4


def test_many_arms_leave_out_the_spread_and_say_so():
    arms = dict.fromkeys("abcdefg", (1.0, 1.0, 1.0))
    text = printed(metrics_table(make_metrics(arms, ["svhn"])))
    assert "±" not in text.partition("Protocol")[0]
    assert "The std is in metrics.json." in " ".join(text.split())
    assert text.count("100.00") == 3 * 2 * 7


def test_names_are_no_markup():
    metrics = make_metrics({"[red]none[/]": (0.1, 0.9, 0.5)}, ["[bold]svhn"])
    metrics["in_distribution"]["name"] = "[blink]digits"
    text = printed(metrics_table(metrics), width=140)
    assert "[blink]digits" in text
    assert "[bold]svhn" in text
    assert "[red]none[/]" in text


def test_level_other_than_95_names_its_metric():
    metrics = make_metrics({"none": (0.1, 0.9, 0.5)}, ["svhn"])
    metrics["protocol"]["tpr"] = 0.8
    assert "FPR80 ↓" in printed(metrics_table(metrics))


def test_foreign_metrics_are_refused():
    with pytest.raises(ValueError, match="schema 2, got None"):
        metrics_table({})
