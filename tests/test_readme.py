"""The README tells the truth: its example runs, its files exist, its table is the committed result."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("fpr95", "auroc", "aupr", "accuracy")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [ROOT / "benchmarks/results/README.md", ROOT / "experiments/README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs_and_is_short() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    loop = example.partition("for step")[2].splitlines()
    assert len(loop) <= 15
    assert 0 < len(names["subset"]) < 500
    assert names["pool"].weights.std() > 0


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_table_is_the_committed_result() -> None:
    summary = json.loads((ROOT / "experiments/results/resample-embedded.json").read_text(encoding="utf-8"))["summary"]
    for arm in summary["arms"].values():
        (row,) = [line for line in README.splitlines() if line.startswith(f"| {arm['label']} |")]
        for metric in METRICS:
            assert f"{100 * arm[metric]['mean']:.2f} ± {100 * arm[metric]['std']:.2f}" in row
    gains = summary["auroc_resampled_minus_random"]
    assert ", ".join(f"{100 * gain:+.2f}" for gain in gains) in " ".join(README.split())


def test_ice_table_is_the_committed_result() -> None:
    summary = json.loads((ROOT / "experiments/results/ice-embedded.json").read_text(encoding="utf-8"))["summary"]
    for arm in summary["arms"].values():
        (row,) = [line for line in README.splitlines() if line.startswith(f"| {arm['label']} |")]
        values = [f"{100 * arm[metric]['mean']:.2f} ± {100 * arm[metric]['std']:.2f}" for metric in METRICS]
        assert row == f"| {arm['label']} | {' | '.join(values)} |"


def test_the_map_of_the_tree_is_true() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"^    ((?:csrc|fastood|benchmarks)/\S*)", tree, re.MULTILINE)
    assert len(paths) >= 10
    for path in paths:
        assert (ROOT / path).exists(), path
