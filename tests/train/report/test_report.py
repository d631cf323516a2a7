"""The report: what the page says is what the run measured, it stands alone, and names cannot break it."""

import base64
import copy
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from fastood.data.images.image_set import ImageSet
from fastood.metrics import Protocol, evaluate_protocol
from fastood.train.report import LearntWeights, write_report
from fastood.train.report.learnt_weights import extreme_images
from fastood.train.results.error_bars import bootstrap_of_arm, bootstrap_settings
from fastood.train.results.scoring import ArmScores

NASTY = '<b>Greek</b> & "co" $x$'
SOURCES = ("near <i>letters</i>", "photographs", "unused", "noise $\\frac$")


def make_scores(shift, *, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (shift + torch.randn(200, generator=generator)).exp().to(dtype)


@pytest.fixture(scope="module")
def run():
    """A small run: two arms, two OOD sets, a pool of 60 images from three of four sources."""
    protocol = Protocol()
    labels = {"none": "No background", "resampled": "Resampled, γ = 1 %"}
    scores, arms = {}, {}
    for position, (arm, label) in enumerate(labels.items()):
        id_scores = make_scores(0.0, seed=1)
        ood_scores = {NASTY: make_scores(1.0 + position, seed=2), "noise": make_scores(2.0, seed=3)}
        generator = torch.Generator().manual_seed(0)
        judged = evaluate_protocol(id_scores, ood_scores, protocol=protocol, generator=generator)
        correct = torch.arange(200) % 10 > 0
        scores[arm] = ArmScores(label=label, id_scores=id_scores, ood_scores=ood_scores, correct=correct)
        baseline = None if arm == "none" else scores["none"]
        error_bars = bootstrap_of_arm(scores[arm], baseline, protocol=protocol, seed=0)
        arms[arm] = {
            "label": label,
            "accuracy": 0.9375 + 0.01 * position,
            "background_size": 12 * position,
            "ood": {name: {**result.as_dict(), "seed": 0, **error_bars[name]} for name, result in judged.items()},
            "mean": {
                metric: float(np.mean([result.metrics()[metric].mean for result in judged.values()]))
                for metric in ("auroc", "aupr", "fpr95")
            },
        }
    generator = torch.Generator().manual_seed(5)
    source = torch.tensor([0] * 10 + [1] * 30 + [3] * 20)[torch.randperm(60, generator=generator)]
    background = ImageSet(
        name="pool",
        images=torch.randint(256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8),
        labels=torch.full((60,), -1),
        source=source,
        source_names=SOURCES,
    )
    weights = torch.rand(60, generator=generator, dtype=torch.float64) + 2.0 * (source == 0)
    metrics = {
        "schema": 2,
        "method": "resample",
        "seed": 0,
        "protocol": {
            "name": protocol.name,
            "positive": protocol.positive,
            "ood_fraction": protocol.ood_fraction,
            "repeats": protocol.repeats,
            "tpr": protocol.tpr,
            "rule": protocol.rule,
            "aupr_kind": protocol.aupr_kind,
        },
        "bootstrap": bootstrap_settings("none"),
        "in_distribution": {"name": "digits", "train": 1234, "test": 200, "classes": 7},
        "arms": arms,
        "pool": {
            "size": 60,
            "effective_sample_size": 33.3,
            "sources": {
                name: {"count": int((source == i).sum()), "mean_weight": 0.0, "selected": i + 1}
                for i, name in enumerate(SOURCES)
            },
        },
    }
    return {
        "metrics": metrics,
        "config": {"method": "resample", "data": {"note": "<script>alert(1)</script>"}},
        "scores": scores,
        "pool": LearntWeights(weights=weights, images=background),
    }


class Page(HTMLParser):
    """Tags, image sources, text and table rows of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.images, self.rows, self.text = [], [], [], [], ""
        self.best = set()
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag in ("table", "tr"):
            # The empty row of a table's start ends the table before it.
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = ""
            if ("class", "best") in attrs:
                self.best.add((len(self.rows) - 1, len(self.rows[-1])))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data

    def table(self, heading):
        """Row label → (index of the row, cells) of the rows after the row that starts with a heading."""
        start = next(i for i, row in enumerate(self.rows) if row and row[0] == heading)
        rows = {}
        for index, row in enumerate(self.rows[start + 1 :], start + 1):
            if len(row) < 2 or row[0] in rows:
                break
            rows[row[0]] = index, row[1:]
        return rows


@pytest.fixture(scope="module")
def run_dir(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo & <co>"
    folder.mkdir()
    assert write_report(folder, **run) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(run_dir):
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_page_names_every_arm_set_and_source(page):
    for name in ("No background", "Resampled,\N{NO-BREAK SPACE}γ".replace("\N{NO-BREAK SPACE}", " "), NASTY, "noise"):
        assert name in page.text
    for name in (SOURCES[0], SOURCES[1], SOURCES[3]):
        assert name in page.text
    assert "demo & <co>" in page.text
    assert "Protocol li2020: OOD images are the positive class; mean ± std over 5 draws of 40 OOD images" in page.text


def test_names_and_config_cannot_add_elements(page):
    assert not {"b", "i", "script"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text


def test_page_stands_alone(page, run_dir):
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not {"link", "script", "iframe"} & set(page.tags)
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert not [attribute for attribute in page.attributes if attribute[1] == "href"]
    for reference in ("http:", "https:", "@import", "url("):
        assert reference not in text


def test_pictures_are_embedded_and_saved(page, run_dir):
    embedded = [base64.b64decode(source.partition(",")[2]) for source in page.images]
    saved = [path.read_bytes() for path in (run_dir / "figures").iterdir()]
    assert len(embedded) == 8
    assert sorted(embedded) == sorted(saved)
    for data in embedded:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert min(pixels.shape) >= 250
        assert pixels.std() > 5


def test_nothing_unfinished_stays(run_dir):
    assert not [path for path in run_dir.rglob("*") if path.name.startswith(".")]


def test_no_global_figure_stays_open(page):
    assert not Gcf.get_all_fig_managers()


def test_tables_print_the_metrics_in_per_cent(page, run):
    arms = list(run["metrics"]["arms"].values())
    for key, heading in (("fpr95", "FPR95 ↓"), ("auroc", "AUROC ↑"), ("aupr", "AUPR ↑")):
        rows = page.table(heading)
        assert list(rows) == [NASTY, "noise"]
        for name, (index, cells) in rows.items():
            values = [arm["ood"][name][key] for arm in arms]
            assert cells == [f"{100 * value['mean']:.2f} ± {100 * value['std']:.2f}" for value in values]
            best = (min if key == "fpr95" else max)(value["mean"] for value in values)
            expected = {
                (index, column + 1) for column, value in enumerate(values) if f"{value['mean']:.4f}" == f"{best:.4f}"
            }
            assert {cell for cell in page.best if cell[0] == index} == expected


def test_arm_table_prints_means_accuracy_and_background(page, run):
    rows = page.table("Arm")
    for result in run["metrics"]["arms"].values():
        mean = result["mean"]
        label = result["label"]
        assert rows[label][1] == [
            f"{100 * mean['fpr95']:.2f}",
            f"{100 * mean['auroc']:.2f}",
            f"{100 * mean['aupr']:.2f}",
            f"{100 * result['accuracy']:.2f}",
            str(result["background_size"]),
        ]


def test_differences_are_printed_in_points_with_interval_and_p_value(page, run):
    baseline, arm = run["metrics"]["arms"].values()
    for heading, metric in (("Δ FPR95 ↓", "fpr95"), ("Δ AUROC ↑", "auroc"), ("Δ AUPR ↑", "aupr")):
        rows = page.table(heading)
        for name, result in arm["ood"].items():
            found = result["difference"][metric]
            index, (cell,) = rows[name]
            estimate = 100 * (
                result["interval"][metric]["estimate"] - baseline["ood"][name]["interval"][metric]["estimate"]
            )
            assert float(cell.split()[0]) == pytest.approx(estimate, abs=0.005)
            low, high = (
                float(end) for end in cell.removesuffix(f", p {cell.split()[-1]}").split(" ", 1)[1].split(" … ")
            )
            assert (low, high) == pytest.approx((100 * found["low"], 100 * found["high"]), abs=0.005)
            assert float(cell.split()[-1]) == pytest.approx(found["p_value"], abs=0.005)
            is_certain = (found["low"] > 0 or found["high"] < 0) and found["p_value"] < 0.05
            assert ((index, 1) in page.best) == is_certain


def test_one_arm_has_intervals_and_nothing_to_differ_from(run, tmp_path):
    metrics = {**run["metrics"], "arms": {"none": run["metrics"]["arms"]["none"]}}
    del metrics["pool"]
    report = write_report(tmp_path, metrics=metrics, config={}, scores={"none": run["scores"]["none"]})
    page = Page(report.read_text(encoding="utf-8"))
    assert "Differences" not in page.text
    assert "95 % bootstrap intervals" in page.text


def test_a_protocol_of_whole_sets_speaks_of_no_draws(run, tmp_path):
    protocol = {**run["metrics"]["protocol"], "name": "wu2023", "ood_fraction": None, "repeats": 1}
    arms = {
        arm: {**result, "ood": {name: {**found, "repeats": 1} for name, found in result["ood"].items()}}
        for arm, result in run["metrics"]["arms"].items()
    }
    metrics = {key: value for key, value in run["metrics"].items() if key != "pool"}
    report = write_report(
        tmp_path, metrics={**metrics, "protocol": protocol, "arms": arms}, config={}, scores=run["scores"]
    )
    text = Page(report.read_text(encoding="utf-8")).text
    assert "all images of each OOD set" in text
    assert "draws" not in text
    assert "±" not in text


def test_source_table_counts_and_weighs_each_source(page, run):
    rows = page.table("Source")
    weights, source = run["pool"].weights.tolist(), run["pool"].images.source.tolist()
    mean = sum(weights) / 60
    assert set(rows) == {SOURCES[0], SOURCES[1], SOURCES[3]}
    assert next(iter(rows)) == SOURCES[0]
    for position, name in enumerate(SOURCES):
        if name == "unused":
            continue
        own = [weight for weight, index in zip(weights, source, strict=True) if index == position]
        assert rows[name][1] == [
            str(len(own)),
            f"{100 * len(own) / 60:.1f} %",
            f"{sum(own) / len(own) / mean:.3f}",
            str(position + 1),
            f"{100 * (position + 1) / 10:.1f} %",
        ]


def test_same_run_gives_the_same_bytes(run, run_dir, tmp_path):
    again = tmp_path / run_dir.name
    again.mkdir()
    write_report(again, **run)
    for path in (run_dir / "report.html", *(run_dir / "figures").iterdir()):
        assert (again / path.relative_to(run_dir)).read_bytes() == path.read_bytes()


def test_run_without_a_pool_has_no_pool_section(run, tmp_path):
    metrics = {key: value for key, value in run["metrics"].items() if key != "pool"}
    report = write_report(tmp_path, metrics=metrics, config=run["config"], scores=run["scores"])
    page = Page(report.read_text(encoding="utf-8"))
    assert len(page.images) == 5
    assert "background pool" not in page.text


def test_id_positive_report_explains_its_own_errors(run, tmp_path):
    metrics = {**run["metrics"], "protocol": {**run["metrics"]["protocol"], "positive": "id"}}
    report = write_report(tmp_path, metrics=metrics, config={}, scores=run["scores"])
    text = Page(report.read_text(encoding="utf-8")).text
    assert "ID images are the positive class" in text
    assert "OOD images wrongly accepted at the threshold that accepts 95 %" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run["scores"].pop("none"), "scores hold the arms"),
        (lambda run: run["scores"]["none"].ood_scores.pop("noise"), "scores of arm 'none' hold the OOD sets"),
        (
            lambda run: run.update(pool=replace(run["pool"], weights=torch.ones(59))),
            "59 weights for 60 background images",
        ),
        (lambda run: run["pool"].weights.neg_(), "finite, at least 0"),
        (lambda run: run["metrics"].pop("pool"), "metrics lacks pool"),
        (lambda run: run["metrics"]["pool"]["sources"].pop("photographs"), "no pool source photographs"),
        (lambda run: run["metrics"].update(schema=1), "schema 2, got 1"),
        (lambda run: run["metrics"].pop("protocol"), "metrics lacks protocol"),
        (lambda run: run["metrics"]["arms"].clear(), "no arm"),
        (lambda run: run["metrics"]["arms"]["resampled"]["ood"].pop("noise"), "arm 'resampled' was evaluated on"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_before_writing(run, tmp_path, change, words):
    changed = copy.deepcopy(run)
    change(changed)
    with pytest.raises(ValueError, match=words):
        write_report(tmp_path, **changed)
    assert not list(tmp_path.iterdir())


def test_missing_run_folder_is_an_error(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_report(tmp_path / "absent", **run)


def test_images_of_four_channels_are_refused_before_writing(run, tmp_path):
    pool = run["pool"].images
    four = ImageSet(
        name="pool",
        images=pool.images.expand(-1, 4, -1, -1),
        labels=pool.labels,
        source=pool.source,
        source_names=pool.source_names,
    )
    with pytest.raises(ValueError, match="1 or 3 channels to be drawn, got 4"):
        write_report(tmp_path, **{**run, "pool": replace(run["pool"], images=four)})
    assert not list(tmp_path.iterdir())


def test_equal_weights_are_shown_from_all_over_the_pool_and_the_caption_says_so(run, tmp_path):
    # Nearly all images share the lowest weight, as in a short run, where most are never drawn.
    weights = torch.full((60,), 0.5, dtype=torch.float64)
    weights[:5] = 1.0
    _, least = extreme_images(weights, 20)
    assert set(weights[least].tolist()) == {0.5}
    assert least.tolist() != sorted(least.tolist())
    assert int(least.max()) > 40
    report = write_report(tmp_path, **{**run, "pool": replace(run["pool"], weights=weights)})
    text = " ".join(Page(report.read_text(encoding="utf-8")).text.split())
    assert "55 images share the weight × 0.923, as those do that were never drawn" in text


@pytest.mark.parametrize("weights", [torch.ones(60), torch.tensor([1e-300] * 30 + [1.0] * 30), torch.eye(60)[0]])
def test_degenerate_weights_can_be_drawn(run, weights, tmp_path):
    write_report(tmp_path, **{**run, "pool": replace(run["pool"], weights=weights)})
    assert (tmp_path / "figures" / "weight_distribution.png").is_file()
