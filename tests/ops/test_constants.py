"""Constants that Python repeats from the C++ headers, and the names that `fastood.ops` exports."""

import inspect
import re
from pathlib import Path

from fastood import ops
from fastood.ops import background_pool, resampling, score_keys
from fastood.ops.loss_kind import LossKind
from fastood.ops.outlier_loss import EXTRA, FACTORS, ROW_STATS, SCALE
from fastood.ops.ranking_statistics import statistics_shape

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def enumerators(header: str, enum: str) -> list[str]:
    """The enumerators of a C++ enum whose values are 0, 1, 2, …, without the leading k."""
    text = re.sub(r"//.*", "", (CSRC / header).read_text(encoding="utf-8"))
    body = re.search(rf"enum (?:class )?{enum}(?: : int64_t)? {{(.*?)}};", text, re.DOTALL)
    assert body is not None
    names = re.findall(r"\bk(\w+)", body[1])
    assert names
    assert "=" not in body[1]
    return names


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()


def test_losses_have_the_numbers_of_the_header() -> None:
    names = enumerators("outlier_loss/losses.h", "OutlierLoss")
    assert {snake(name): number for number, name in enumerate(names)} == {kind.name: kind.value for kind in LossKind}
    columns = enumerators("outlier_loss/losses.h", "StatsColumn")
    assert [columns.index(name) for name in ("Scale", "Extra", "RowStats")] == [SCALE, EXTRA, ROW_STATS]
    assert enumerators("outlier_loss/losses.h", "FactorColumn").index("NumFactors") == FACTORS


def test_scores_have_the_order_of_the_header() -> None:
    from fastood.ops.logit_scores import SCORES  # the module, which the function of its name hides in `ops`

    names = [snake(name).lower() for name in enumerators("logit_scores/math.h", "Score")]
    assert names == [*SCORES, "reject"]


def test_the_pool_has_the_layout_of_the_header() -> None:
    stats = [snake(name) for name in enumerators("background_pool/layout.h", "PoolStat")]
    assert stats[-1] == "STATS"
    assert [getattr(background_pool, name) for name in stats] == list(range(len(stats)))
    status = [snake(name) for name in enumerators("background_pool/status.h", "PoolStatus")]
    assert [getattr(background_pool, name) for name in status] == list(range(len(status)))
    layout = (CSRC / "background_pool/layout.h").read_text(encoding="utf-8")
    assert f"kFanOut = {background_pool.FAN_OUT};" in layout


def test_detection_metrics_have_the_numbers_of_the_headers() -> None:
    schemes = [name.lower() for name in enumerators("detection_metrics/random.h", "Resampling")]
    assert {name: number for number, name in enumerate(schemes)} == resampling._SCHEMES
    areas = enumerators("detection_metrics/math.h", "Statistic").index("Rates")
    assert statistics_shape(1, ()) == (1, areas)
    assert score_keys.MAX_COUNT == 2**31 - 1


def test_ops_export_what_is_public() -> None:
    public = {name for name, value in vars(ops).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert sorted(ops.__all__) == sorted(public)
    assert {name for name, value in vars(ops).items() if inspect.ismodule(value) and name == "fastood"} == set()
