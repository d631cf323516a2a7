"""The evidence for each CUDA kernel: it lists every kernel, the pages agree with it, and changed code shows."""

import json
import re
from pathlib import Path

import cuda_status
import pytest

import fastood
from fastood.ops._cuda_status import Evidence, Kernel, Status, kernel_status, read_status

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "python benchmarks/cuda_status.py"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_every_kernel_has_an_entry() -> None:
    kernels = cuda_status.find_kernels(ROOT / "csrc")
    assert read_status()["kernels"] == kernels, f"run {REMEDY}"
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("csrc/*/*.cu"))
    launched = set(re.findall(r"(\w+)(?:<[^;<>]*>)?<<<", code)) - {"program_kernel"}
    assert launched <= set(kernels)
    assert {"WhitenKernel", "forward_kernel", "draw_kernel"} <= set(kernels)


def test_the_pages_are_made_from_the_record() -> None:
    status = read_status()
    text = cuda_status.STATUS_FILE.read_text(encoding="utf-8")
    assert text == cuda_status.dumps(status), f"run {REMEDY}"
    page = cuda_status.PAGE.read_text(encoding="utf-8")
    assert page == cuda_status.page_with_tables(page, status), f"run {REMEDY}"
    info = fastood.build_info()
    assert set(info["kernels"]) == set(status["kernels"])
    for name, kernel in kernel_status(status).items():
        assert info["kernels"][name]["proven"] == kernel["proven"]
        assert info["kernels"][name]["emulated"] == kernel["emulated"]
        assert bool(info["kernels"][name]["compiled"]) == info["cuda"]


def test_a_kernel_in_an_unknown_form_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "op/cuda.cu", "__global__ void __launch_bounds__(N, f(2))\n  first(int a) {} // __global__\n")
    assert list(cuda_status.find_kernels(tmp_path)) == ["first"]
    write(tmp_path / "other/cuda.cu", "__global__ void first(int a) {}")
    with pytest.raises(ValueError, match=r"other/cuda.cu and op/cuda.cu both have a kernel first: rename"):
        cuda_status.find_kernels(tmp_path)
    write(tmp_path / "other/cuda.cu", "auto __global__ second(int a) -> void {}")
    with pytest.raises(ValueError, match="is not of the form"):
        cuda_status.find_kernels(tmp_path)


def test_evidence_of_other_code_is_not_taken_for_evidence(tmp_path: Path) -> None:
    """A comment changes nothing; code does, in headers of headers as well."""
    write(tmp_path / "op/cuda.cu", '#include "a.h"\n__global__ void k(int a) {}')
    write(tmp_path / "op/a.h", '#include "../common/b.h"\n')
    write(tmp_path / "common/b.h", "int b = 1;")
    before = cuda_status.find_kernels(tmp_path)
    evidence = Evidence(kind="proven", by="NVIDIA H200", variants=["9.0"], kernels={"k": before["k"]["source"]})
    write(tmp_path / "common/b.h", "/* why */ int b =\n 1;  // one")
    same = cuda_status.find_kernels(tmp_path)
    assert kernel_status(Status(kernels=same, evidence=[evidence]))["k"]["proven"] == "NVIDIA H200: 9.0"
    write(tmp_path / "common/b.h", "int b = 2;")
    changed = cuda_status.find_kernels(tmp_path)
    described = kernel_status(Status(kernels=changed, evidence=[evidence]))["k"]
    assert described == {
        "file": "op/cuda.cu",
        "compiled": "",
        "emulated": "",
        "proven": "NVIDIA H200: 9.0; source changed since",
    }


KERNELS = {
    "draw_kernel": Kernel(file="background_pool/draw.cu", source="1"),
    "WhitenKernel": Kernel(file="mahalanobis/cuda_forward.cu", source="2"),
}


def test_names_as_tools_print_them() -> None:
    names = [
        "draw_kernel",
        "void fastood::background_pool::(anonymous namespace)::draw_kernel(fastood::PoolParams, double const*)",
        "void fastood::program_kernel<fastood::mahalanobis::(anonymous namespace)::WhitenKernel<float, 8>>",
        "void cub::DeviceRadixSortOnesweepKernel<int>(int)",
        "void at::native::vectorized_elementwise(int)",
    ]
    assert cuda_status.resolve_kernels(names, KERNELS) == {"draw_kernel", "WhitenKernel"}
    for wrong in ("drawn_kernel", "void fastood::(anonymous namespace)::other_kernel<float>(int)"):
        with pytest.raises(ValueError, match="names 0 kernels of csrc/"):
            cuda_status.resolve_kernels([wrong], KERNELS)


LOG = """-- fastood: CUDA kernels on (/usr/bin/nvcc 13.0.88, compute capabilities 7.5 12.0+PTX)
ptxas info    : Compiling entry function '_ZN7fastood11draw_kernelEPKd' for 'sm_75'
ptxas info    : Function properties for _ZN7fastood11draw_kernelEPKd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Compiling entry function '_ZN7fastood11draw_kernelEPKd' for 'sm_120'
ptxas info    : Function properties for _ZN7fastood11draw_kernelEPKd
    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers
ptxas info    : Compiling entry function '_ZN7fastood11draw_kernelIdEEvPKT_' for 'sm_120'
ptxas info    : Function properties for _ZN7fastood11draw_kernelIdEEvPKT_
    8 bytes stack frame, 96 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_the_output_of_a_build_is_evidence() -> None:
    assert cuda_status.read_build_log(LOG, KERNELS) == {
        "kind": "compiled",
        "by": "nvcc 13.0.88",
        "variants": ["7.5", "12.0"],
        "kernels": {"draw_kernel": "1"},
        "registers": {"draw_kernel": [40, 255]},
        "spills": {"draw_kernel": 8},
    }
    with pytest.raises(ValueError, match="give the output of a build"):
        cuda_status.read_build_log("ninja: no work to do.", KERNELS)


def test_a_run_is_evidence_and_replaces_the_last_one() -> None:
    run = {"by": "g++ 12", "variants": ["plain", "thread"], "kernels": ["draw_kernel"]}
    files = {"background_pool/draw.cu": {"lines": [90, 91], "mutants": [5, 5]}}
    status = Status(kernels=KERNELS, evidence=[])
    cuda_status.add_evidence(status, cuda_status.read_run(run | {"files": files}, "emulated", KERNELS))
    cuda_status.add_evidence(status, cuda_status.read_run({**run, "by": "NVIDIA H200"}, "proven", KERNELS))
    tables = cuda_status.tables(status)
    row = "| `draw_kernel` | `background_pool/draw.cu` | no |  | g++ 12: plain, thread | NVIDIA H200: plain, thread |"
    assert row in tables
    assert "| `background_pool/draw.cu` | 90 of 91 | 5 of 5 |" in tables
    assert json.loads(cuda_status.dumps(status)) == status
    cuda_status.add_evidence(status, cuda_status.read_run({**run, "by": "clang 19"}, "emulated", KERNELS))
    assert [(e["kind"], e["by"]) for e in status["evidence"]] == [("emulated", "clang 19"), ("proven", "NVIDIA H200")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": ["fill_kernel"]}, "names 0 kernels"),
        ({"kernels": []}, "must not be empty"),
        ({"variants": [9.0]}, "list of strings"),
        ({"files": {"nowhere.cu": {}}}, "not a file of csrc/"),
        ({"files": {"background_pool/draw.cu": {"lines": [5, 4]}}}, r"must be lines or mutants, as \[reached, total\]"),
        ({"speed": 1}, "has the fields"),
    ],
)
def test_a_malformed_run_is_refused(change: dict[str, object], message: str) -> None:
    run = {"by": "g++ 12", "variants": ["plain"], "kernels": ["draw_kernel"]}
    with pytest.raises(ValueError, match=message):
        cuda_status.read_run(run | change, "emulated", KERNELS)
