"""The page in its words: where a run came from, curves, warnings, one-class runs, singular and plural, paper."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastood.train.report import write_report
from fastood.train.report.differences import difference_rows
from fastood.train.report.result_rows import reported_metrics
from fastood.train.report.style import arm_styles
from tests.train.report.test_report import Page, run  # noqa: F401 - a fixture

CURVES = {
    "pretrain": [
        {"epoch": 1, "step": 5, "loss": 2.0, "accuracy": 0.5, "learning_rate": 0.1},
        {"epoch": 2, "step": 10, "loss": 0.05, "accuracy": 0.9, "learning_rate": 0.01},
    ],
    "boundary": [{"epoch": None, "step": 4, "loss": -0.5, "accuracy": None, "learning_rate": None}],
}
SESSION = {
    "began": "2026-01-02T03:04:05+00:00",
    "seconds": 75.2,
    "command": "python -m fastood.train oe --data.in-dist folder:/home/alice/secret/cats --out /srv/runs --name 'a b'",
    **{"fastood": "0.1.0", "torch": "2.15.0", "python": "3.11.7", "system": "Linux x86_64", "device": "cpu"},
    **{"device_name": "Some Processor", "threads": 1, "processes": 1, "cpu_capability": "avx2"},
}


def page_of(folder: Path, run, **changes) -> Page:  # noqa: F811
    parts = {"metrics": run["metrics"], "config": run["config"], "scores": run["scores"], **changes}
    parts["metrics"] = {key: value for key, value in parts["metrics"].items() if key != "pool"}
    return Page(write_report(folder, **parts).read_text(encoding="utf-8"))


def one_arm(run) -> dict:  # noqa: F811
    arm = run["metrics"]["arms"]["none"]
    arm = {**arm, "ood": {"noise": arm["ood"]["noise"]}}
    metrics = {**run["metrics"], "arms": {"none": arm}}
    scores = run["scores"]["none"]
    only = replace(scores, ood_scores={"noise": scores.ood_scores["noise"]})
    return {"metrics": metrics, "scores": {"none": only}}


def test_the_page_says_where_the_run_came_from(run, tmp_path):  # noqa: F811
    text = " ".join(page_of(tmp_path, run, sessions=[SESSION]).text.split())
    for words in (
        "2026-01-02 03:04:05 UTC",
        "1 min 15 s",
        "python -m fastood.train oe --data.in-dist folder:…/cats --out …/runs --name 'a b'",
        "Some Processor (cpu, avx2)",
        "fastood 0.1.0, PyTorch 2.15.0, Python 3.11.7, Linux x86_64",
    ):
        assert words in text
    assert re.search(r"1 CPU thread(?!s)", text)


def test_a_resumed_run_says_what_changed(run, tmp_path):  # noqa: F811
    sessions = [{**SESSION, "seconds": None}, {**SESSION, "threads": 4}]
    text = " ".join(page_of(tmp_path, run, sessions=sessions).text.split())
    assert "UTC; resumed" in text
    assert "1 min 15 s, without 1 interrupted session" in text
    assert "threads: 1, then 4" in text
    assert "4 CPU threads" in text


def test_no_place_on_the_sender_s_disk_is_on_the_page(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.chdir(tmp_path)
    config = {
        "data": {
            "in_dist": f"folder:{tmp_path}/own/cats",
            "background": "npy:/srv/x/images.npy,/srv/x/labels.npy",
            "ood": ["a=packed:/home/alice/pools/a", "noise=gaussian"],
            "root": "/mnt/disk/data",
        }
    }
    page = page_of(tmp_path, run, config=config, sessions=[SESSION])
    assert not re.findall(r"(?<![\w.…~/<])/(?:home|srv|mnt|tmp|root)\b", page.text)
    for words in ("folder:own/cats", "npy:…/images.npy,…/labels.npy", "a=packed:~/pools/a", "…/data", "noise=gaussian"):
        assert words in page.text


def test_curves_are_a_figure_of_the_page(run, tmp_path):  # noqa: F811
    without = page_of(tmp_path, run)
    assert "A loss that does not fall" not in without.text
    page = page_of(tmp_path, run, curves=CURVES)
    assert len(page.images) == len(without.images) + 1
    assert "A loss that does not fall" in page.text
    assert (tmp_path / "figures" / "training_curves.png").stat().st_size > 1000


def test_warnings_stand_above_the_results(run, tmp_path):  # noqa: F811
    shared = [{"arm": arm, "kind": "tied-scores", "message": "all <b>tied</b>"} for arm in ("none", "resampled")]
    page = page_of(tmp_path, run, metrics={**run["metrics"], "warnings": shared})
    assert page.text.index("No background; Resampled, γ = 1 %: all <b>tied</b>") < page.text.index("Results")
    assert "Warning" not in page_of(tmp_path, run).text


def test_one_of_a_kind_is_in_the_singular(run, tmp_path):  # noqa: F811
    metrics = one_arm(run)["metrics"] | {"in_distribution": {"name": "digits", "train": 1, "test": 1, "classes": 2}}
    text = " ".join(page_of(tmp_path, run, **one_arm(run) | {"metrics": metrics}).text.split())
    assert "This run has 1 arm: a way to train a classifier on the 2 classes of digits (1 image)" in text
    assert "It scored 1 unseen in-distribution (ID) image and 1 out-of-distribution (OOD) set that shows none" in text
    assert "On the OOD set" in text
    assert not re.findall(r"\b1 (arms|images|sets|OOD sets|classes|networks|draws)\b", text)
    assert "the tables below pair them" not in text
    assert "best arm" not in text


def test_one_class_networks_do_not_compete(run, tmp_path):  # noqa: F811
    arms = {f"class-{i}": {**one_arm(run)["metrics"]["arms"]["none"], "label": f"kind {i}"} for i in range(3)}
    metrics = {**run["metrics"], "arms": arms, "bootstrap": {**run["metrics"]["bootstrap"], "baseline": None}}
    scores = dict.fromkeys(arms, one_arm(run)["scores"]["none"])
    page = page_of(tmp_path, run, metrics=metrics, scores=scores)
    text = " ".join(page.text.split())
    assert "This run trains 3 networks, one for each class of digits (1,234 training images)" in text
    assert "Accuracy" not in text
    assert "compares" not in text
    assert "misclassified" not in text
    assert not page.best
    rows = page.table("Class")
    assert list(rows) == ["kind 0", "kind 1", "kind 2", "Mean"]
    mean = 100 * arms["class-0"]["mean"]["auroc"]
    assert rows["Mean"][1][1] == f"{mean:.2f}"


def test_bold_needs_an_interval_without_0_and_a_small_p_value(run):  # noqa: F811
    arms = run["metrics"]["arms"]
    difference = {"estimate": 0.0005, "low": 1e-9, "high": 0.0013}
    for p_value, bold in ((0.052, False), (0.0499, False), (0.049, True), (0.6, False)):
        found = {**difference, "p_value": p_value}
        ood = {"noise": {"difference": {key: found for key in ("fpr95", "auroc", "aupr")}}}  # noqa: C420, RUF100
        metrics = {**run["metrics"], "arms": {"none": {**arms["none"], "ood": ood}, "full": {"ood": ood}}}
        for metric in reported_metrics(metrics):
            assert difference_rows(metrics, metric)[0].cells[0].is_certain == bold


@pytest.mark.parametrize("count", [1, 4, 5, 16, 100])
def test_arms_have_colours_of_their_own(count: int):
    names = ["none", "random", *(f"class-{i}" for i in range(count))]
    styles = arm_styles(names)
    assert list(styles) == names
    assert len({colour for colour, _ in styles.values()}) == len(names)
    # Arms that share a known style in different methods.
    assert len({colour for colour, _ in arm_styles(["none", "msp", "plain"]).values()}) == 3


def test_many_arms_are_in_tables_of_a_page_s_width(run, tmp_path):  # noqa: F811
    arms = {f"arm-{i}": {**run["metrics"]["arms"]["none"], "label": f"arm {i}"} for i in range(12)}
    bootstrap = {**run["metrics"]["bootstrap"], "baseline": "arm-0"}
    for arm in list(arms)[1:]:
        arms[arm] = {**arms[arm], "ood": run["metrics"]["arms"]["resampled"]["ood"]}
    metrics = {**run["metrics"], "arms": arms, "bootstrap": bootstrap}
    page = page_of(tmp_path, run, metrics=metrics, scores=dict.fromkeys(arms, run["scores"]["none"]))
    heads = [row for row in page.rows if row and row[0] == "OOD set"]
    assert [len(row) - 1 for row in heads] == [5, 5, 2, 5, 5, 1]
    assert sorted(name for row in heads[:3] for name in row[1:]) == sorted(f"arm {i}" for i in range(12))


def test_paper_has_rules_of_its_own(run, tmp_path):  # noqa: F811
    page_of(tmp_path, run)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    rules = text.partition("@media print {")[2].partition("</style>")[0]
    for rule in (
        ".scroll { overflow: visible; }",
        "h2, h3, h3 + p { break-after: avoid; }",
        "figure { break-inside: avoid;",
    ):
        assert rule in rules
