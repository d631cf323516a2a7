"""docs/metrics.md tells the truth: its table is what its example prints, its names exist."""

import contextlib
import io
import re
from pathlib import Path

import fastood.metrics
from fastood.ops import logit_scores

PAGE = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_example_prints() -> None:
    before, example, after = re.split(r"```(?:python)?\n", PAGE)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(example, "metrics.md", "exec"), {})
    printed = output.getvalue().splitlines()
    table = [line.removeprefix("    ") for line in after.splitlines() if line.startswith("    ")]
    assert table == printed
    fpr = {line.split()[0]: line.split()[-3] for line in printed[1:]}
    assert re.findall(r"\d\d\.\d", before) == [fpr["openood_v15"], fpr["odin"]]


def test_the_names_exist() -> None:
    quoted = set(re.findall(r"`(\w+)(?:\(.*?\))?`", PAGE.partition("AUROC agrees")[2]))
    known = {*fastood.metrics.__all__, *fastood.metrics.PROTOCOLS, logit_scores.__name__, "msp"}
    assert len(quoted) > 10
    assert quoted <= known
