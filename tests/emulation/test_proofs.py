"""The tools of the emulation's proofs: a weakness that is planted shows, and reasons are compared both ways."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.emulation import mutations, variants
from tests.emulation.__main__ import main, summary
from tests.emulation.cases import Case, all_cases
from tests.emulation.coverage import UNCOVERED, Coverage, report
from tests.emulation.mutations import SURVIVORS, Outcome, Site, attempts, read_sites
from tests.emulation.reasons import Finding, Reasons
from tests.emulation.sources import ROOT, folders_of, place_text, relative
from tests.emulation.stages import Result
from tests.emulation.workload import compare

PASS = "csrc/background_pool/pass.cu"


def reasons(tmp_path: Path, text: str) -> Reasons:
    path = tmp_path / "reasons.toml"
    path.write_text(text)
    return Reasons.read(path)


ENTRY = """
[[explained]]
file = "csrc/a.cu"
text = "return error;"
count = 2
reason = "The driver never refuses it."
"""


def test_a_finding_without_a_reason_is_a_problem(tmp_path: Path) -> None:
    finding = Finding("csrc/a.cu", "return error;")
    assert reasons(tmp_path, ENTRY).problems([finding, finding]) == []
    assert "3 found, 2 explained" in reasons(tmp_path, ENTRY).problems([finding] * 3)[0]
    assert "1 found, 0 explained" in reasons(tmp_path, "").problems([finding])[0]


def test_a_reason_without_its_finding_is_a_problem(tmp_path: Path) -> None:
    assert "remove the entry" in reasons(tmp_path, ENTRY).problems([])[0]
    # Which a partial run cannot know of what it left out.
    assert reasons(tmp_path, ENTRY).problems([], looked_at=[Finding("csrc/b.cu", "x")]) == []
    assert reasons(tmp_path, ENTRY).problems([], looked_at=[Finding("csrc/a.cu", "return error;")]) != []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("reason =", "because ="), "unknown field 'because'"),
        (('reason = "The driver never refuses it."', ""), "has no reason"),
        (("The driver never refuses it.", " "), "no reason for csrc/a.cu"),
        ((ENTRY, ENTRY + ENTRY), "two entries"),
    ],
)
def test_a_malformed_reason_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reasons(tmp_path, ENTRY.replace(*change))


@pytest.mark.parametrize("path", [UNCOVERED, SURVIVORS], ids=lambda path: path.name)
def test_committed_reasons_name_places_that_exist(path: Path) -> None:
    for finding in Reasons.read(path).counts:
        count = len((ROOT / finding.file).read_text().splitlines())
        assert finding.text in {place_text(finding.file, line) for line in range(1, count + 1)}, finding


def test_coverage_reports_lines_without_a_reason_and_too_few(tmp_path: Path) -> None:
    lines = dict.fromkeys(range(1, 100), 1)
    missed = Coverage({PASS: {**lines, 100: 0}})
    assert missed.fraction == 0.99
    assert [PASS in problem for problem in report(missed, reasons(tmp_path, ""))] == [True]
    problems = report(Coverage({PASS: {1: 1, 2: 0}}), reasons(tmp_path, ""))
    assert "50.00 % of the lines are executed, fewer than 99 %" in problems[-1]


def test_coverage_names_kernels_and_programs() -> None:
    functions = {
        "void fastood::(anonymous namespace)::fill_kernel<float>(float*, long)",
        "fastood::mahalanobis::program_kernel<fastood::mahalanobis::(anonymous namespace)::SumKernel<float>, int>(int)",
        "fastood::kernel_of(int)",
    }
    assert Coverage({}, frozenset(functions)).kernels() == ["SumKernel", "fill_kernel"]


def test_places_are_unique_and_survive_edits_elsewhere() -> None:
    lines = (ROOT / PASS).read_text().splitlines()
    barriers = [n for n, line in enumerate(lines, 1) if line.strip().startswith("__syncthreads();")]
    assert len({place_text(PASS, n) for n in barriers}) == len(barriers) > 3


def test_files_belong_to_the_folders_that_include_them() -> None:
    assert folders_of("csrc/common/cuda_rows.cuh") == {"outlier_loss", "logit_scores"}
    assert folders_of(PASS) == {"background_pool"}
    assert relative("/elsewhere/build/csrc/../csrc/background_pool/pass.cu") == PASS
    assert relative("/usr/include/stdio.h") is None


SITE = Site(1, PASS, 92, "barrier", "__syncthreads();")


def test_a_survivor_without_a_reason_is_reported(tmp_path: Path) -> None:
    outcomes = [Outcome(SITE, ""), *[Outcome(SITE, "crashes")] * 19]
    assert [PASS in problem for problem in mutations.report(outcomes, reasons(tmp_path, ""), whole=True)] == [True]
    problems = mutations.report(outcomes[:10], reasons(tmp_path, ""), whole=True)
    assert "9 of 10 mutants are noticed, fewer than 95 %" in problems[-1]


def test_sites_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sites.txt"
    path.write_text(f"7\t{PASS}:92\tbarrier\t__syncthreads();\n")
    (site,) = read_sites(path)
    assert (site.number, site.file, site.line, site.kind) == (7, PASS, 92, "barrier")
    path.write_text("7 no tabs\n")
    with pytest.raises(ValueError, match="NUMBER<TAB>file:line"):
        read_sites(path)


class FakeLibrary:
    """Controls of an object without kernels; the site that is spoiled is `site`."""

    site = 0
    reports = 0

    def emu_switch_off(self, site: int) -> None:
        self.site = site

    def emu_num_reports(self) -> int:
        return self.reports

    def emu_set_seed(self, seed: object) -> None:
        pass

    emu_set_max_blocks = emu_set_seed


def test_every_way_to_notice_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()

    def run(_: object) -> list[torch.Tensor]:
        if library.site == 2:
            raise RuntimeError("two threads wait")
        if library.site == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        library.reports += library.site == 6
        while library.site == 4:
            pass
        return [torch.tensor([1.0 if library.site == 1 else 2.0])]

    monkeypatch.setattr(mutations, "LEAST_LIMIT", 0.2)
    emulated = mutations.Emulated(None, library)  # type: ignore[arg-type]
    trial = mutations.Trial(Case("background_pool", "case", run), 0, [torch.tensor([2.0])], 0.001)
    found = dict(attempts(emulated, [(number, [trial]) for number in range(7)], jobs=2))
    assert found[0] == found[5] == ""
    assert found[1].startswith("result 0 is")
    assert found[2].startswith("error: two threads wait")
    assert found[3] == "crashes (SIGKILL)"
    assert found[4] == "hangs"
    assert found[6].startswith("race reported")


def test_cases_have_names_of_their_own_and_inputs_that_stay() -> None:
    cases = all_cases()
    assert len({str(case) for case in cases}) == len(cases)
    # On the native ops: a second run gives the results of the first.
    small = [case for case in cases if not case.name.startswith(("4170", "1100", "1060", "backward"))]
    for case in small:
        first = [x.clone() for x in case.run(torch.ops.fastood)]
        assert compare([x.clone() for x in case.run(torch.ops.fastood)], first, ulps=0) == "", case


def test_results_differ_by_bit_nan_and_shape() -> None:
    x = torch.tensor([1.0, torch.nan])
    assert compare([x], [x.clone()]) == ""
    assert "ulp away" in compare([torch.tensor([1.0 + 2**-23, torch.nan])], [x])
    assert compare([torch.tensor([1.0 + 2**-23, torch.nan])], [x], ulps=1) == ""
    assert "inf ulp" in compare([torch.tensor([torch.nan, torch.nan])], [x], ulps=1e9)
    assert "instead of" in compare([x[:1]], [x])
    assert "results instead of" in compare([], [x])


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    for tool in (variants.CMAKE, variants.NINJA, variants.GCOV, variants.SETARCH):
        with pytest.raises(variants.MissingToolError, match=rf"{tool.name} is not installed.*install"):
            tool.path()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["speed"], "no part 'speed'"), (["workload", "--jobs", "0"], "--jobs must be at least 1")],
)
def test_bad_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_the_last_line_tells_coverage_mutations_and_tests() -> None:
    results = {
        "coverage": Result(True, "99.70 % of 2500 lines", 1.0),
        "mutations": Result(False, "mutations 300 of 307 noticed", 1.0),
        "tests": Result(True, "12 passed", 1.0, numbers={"tests": 12}),
    }
    assert summary(results, 61.2) == [
        "failed: mutations",
        "coverage 99.70 % of 2500 lines · mutations 300 of 307 noticed · tests passed 12 · 61 s",
    ]
