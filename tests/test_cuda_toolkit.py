"""Where the build looks for CUDA and what it compiles for, on toolkits that are trees of empty files."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from tests.support.fake_toolkits import (
    ROOT,
    run_cmake_script,
    write_cudart,
    write_headers,
    write_nvcc,
    write_script,
    write_toolkit,
)

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")

Layout = Callable[[Path], tuple[str, str, str]]
"""Writes a toolkit; returns the place to search, the headers and the folder of libcudart_static.a."""


def one_folder(root: Path) -> tuple[str, str, str]:
    """NVIDIA's installers and pip's nvidia/cu13."""
    write_toolkit(root / "cuda")
    return "cuda", "cuda/include", "cuda/lib64"


def pip(root: Path) -> tuple[str, str, str]:
    write_nvcc(root / "nvidia/cu13/bin/nvcc", root / "nvidia/cu13")
    write_headers(root / "nvidia/cu13/include")
    write_cudart(root / "nvidia/cu13/lib")
    return "nvidia/cu13", "nvidia/cu13/include", "nvidia/cu13/lib"


def arch_linux(root: Path) -> tuple[str, str, str]:
    """Links into targets/, as /opt/cuda has them, and through a link itself."""
    write_nvcc(root / "cuda/bin/nvcc", root / "cuda")
    write_headers(root / "cuda/targets/x86_64-linux/include")
    write_cudart(root / "cuda/targets/x86_64-linux/lib")
    (root / "cuda/include").symlink_to("targets/x86_64-linux/include")
    (root / "cuda/lib64").symlink_to("targets/x86_64-linux/lib")
    (root / "current").symlink_to("cuda")
    return "current", "current/include", "current/lib64"


def conda_forge(root: Path) -> tuple[str, str, str]:
    write_nvcc(root / "env/bin/nvcc", root / "env")
    write_headers(root / "env/targets/x86_64-linux/include")
    write_cudart(root / "env/targets/x86_64-linux/lib")
    (root / "env/include").mkdir()
    return "env", "env/targets/x86_64-linux/include", "env/targets/x86_64-linux/lib"


def debian(root: Path) -> tuple[str, str, str]:
    """An nvcc on PATH that calls another one, whose folder has no headers."""
    write_nvcc(root / "usr/bin/nvcc", root / "usr/lib/nvidia-cuda-toolkit")
    write_headers(root / "usr/include")
    write_cudart(root / "usr/lib/x86_64-linux-gnu")
    (root / "usr/lib/nvidia-cuda-toolkit/bin").mkdir(parents=True)
    return "usr/bin/nvcc", "usr/include", "usr/lib/x86_64-linux-gnu"


def hpc_sdk(root: Path) -> tuple[str, str, str]:
    write_toolkit(root / "sdk/cuda/13.0")
    write_nvcc(root / "sdk/compilers/bin/nvcc", root / "sdk/cuda/13.0")
    return "sdk/compilers", "sdk/cuda/13.0/include", "sdk/cuda/13.0/lib64"


def link_to_nvcc(root: Path) -> tuple[str, str, str]:
    """Links as update-alternatives makes them; this nvcc does not say where its toolkit is."""
    write_toolkit(root / "cuda-13.0")
    write_nvcc(root / "cuda-13.0/bin/nvcc", None)
    (root / "bin").mkdir()
    (root / "bin/nvcc").symlink_to(root / "cuda-13.0/bin/nvcc")
    return "bin/nvcc", "cuda-13.0/include", "cuda-13.0/lib64"


def find_toolkit(
    folder: Path, *places: Path, processor: str = "x86_64", searched: bool = True, **environment: str
) -> dict[str, str]:
    """Return what cmake/CudaToolkit.cmake finds; without `searched` where it looks by itself."""
    script = f'set(CMAKE_SYSTEM_PROCESSOR {processor})\nset(Python_EXECUTABLE "{sys.executable}")\n'
    if searched:
        script += f'set(FASTOOD_CUDA_SEARCH "{";".join(map(str, places))}")\n'
    names = [f"FASTOOD_{name}" for name in ("NVCC", "NVCC_VERSION", "CUDA_INCLUDE", "CUDART", "CUDA_PASSED_OVER")]
    script += f'include("{ROOT}/cmake/CudaToolkit.cmake")\nfastood_find_toolkit()\n'
    done = run_cmake_script(
        folder, script + "".join(f'message("{name}=${{{name}}}")\n' for name in names), **environment
    )
    assert done.returncode == 0, done.stderr
    return dict(line.removeprefix("FASTOOD_").split("=", 1) for line in done.stderr.splitlines())


@pytest.mark.parametrize("layout", [one_folder, pip, arch_linux, conda_forge, debian, hpc_sdk, link_to_nvcc])
def test_a_toolkit_is_found_in_every_layout(layout: Layout, tmp_path: Path) -> None:
    root = tmp_path / "a folder"
    place, include, libraries = layout(root)
    found = find_toolkit(tmp_path, root / place)
    assert found["CUDA_INCLUDE"] == str(root / include)
    assert found["CUDART"] == str(root / libraries / "libcudart_static.a")
    assert found["NVCC_VERSION"] == "13.0"
    assert Path(found["NVCC"]).name == "nvcc"
    assert found["CUDA_PASSED_OVER"] == ""


def test_an_arm_server_has_targets_of_its_own(tmp_path: Path) -> None:
    write_nvcc(tmp_path / "cuda/bin/nvcc", tmp_path / "cuda")
    for target in ("x86_64-linux", "sbsa-linux"):
        write_headers(tmp_path / "cuda/targets" / target / "include")
        write_cudart(tmp_path / "cuda/targets" / target / "lib")
    found = find_toolkit(tmp_path, tmp_path / "cuda", processor="aarch64")
    assert found["CUDA_INCLUDE"] == str(tmp_path / "cuda/targets/sbsa-linux/include")
    assert found["CUDART"] == str(tmp_path / "cuda/targets/sbsa-linux/lib/libcudart_static.a")


def test_headers_of_another_version_are_not_taken(tmp_path: Path) -> None:
    """CUDA's own headers refuse that pair in the middle of the build."""
    write_toolkit(tmp_path / "old", "12.4")
    write_nvcc(tmp_path / "old/bin/nvcc", tmp_path / "old", "12.8")
    write_toolkit(tmp_path / "new")
    found = find_toolkit(tmp_path, tmp_path / "old", tmp_path / "new")
    assert found["NVCC"] == str(tmp_path / "new/bin/nvcc")
    assert found["CUDA_PASSED_OVER"] == (
        f"{tmp_path}/old/bin/nvcc (CUDA 12.8) has no cuda_runtime.h of its version, "
        f"those in {tmp_path}/old/include are of CUDA 12.4"
    )


def test_what_is_no_toolkit_is_named(tmp_path: Path) -> None:
    write_toolkit(tmp_path / "static")
    (tmp_path / "static/lib64/libcudart_static.a").unlink()
    conda_forge(tmp_path)
    (tmp_path / "env/conda-meta").mkdir()
    (tmp_path / "env/targets/x86_64-linux/lib/libcudart_static.a").unlink()
    write_script(tmp_path / "broken/bin/nvcc", "exit 1")
    write_script(tmp_path / "nvidia/cuda_nvcc/bin/ptxas", "exit 0")
    home = tmp_path / "home"
    places = [home, tmp_path / "static", tmp_path / "env", tmp_path / "broken", tmp_path / "nvidia/cuda_nvcc"]
    found = find_toolkit(tmp_path, *places, CUDA_HOME=str(home))
    assert found["NVCC"] == ""
    assert found["CUDA_PASSED_OVER"].split(";") == [
        f"CUDA_HOME or CUDA_PATH is {home}, which has no bin/nvcc",
        f"{tmp_path}/static/bin/nvcc (CUDA 13.0) has no libcudart_static.a",
        f"{tmp_path}/env/bin/nvcc (CUDA 13.0) has no libcudart_static.a, which is conda-forge's package "
        "cuda-cudart-static",
        f"{tmp_path}/broken/bin/nvcc --version does not run",
        f"{tmp_path}/nvidia/cuda_nvcc has ptxas but no nvcc, as pip's packages before CUDA 13",
    ]


def test_the_most_explicit_place_comes_first(tmp_path: Path) -> None:
    """CUDA_HOME, CUDA_PATH, pip's packages, the conda environment, nvcc on PATH."""
    names = ("home", "path", "nvidia/cu13", "conda", "search")
    for name in names:
        write_toolkit(tmp_path / name)
    environment = {
        "CUDA_HOME": str(tmp_path / "home"),
        "CUDA_PATH": str(tmp_path / "path"),
        "PYTHONPATH": str(tmp_path),
        "CONDA_PREFIX": str(tmp_path / "conda"),
        "PATH": f"{tmp_path}/search/bin:{os.environ['PATH']}",
    }
    for name, variable in zip(names, list(environment), strict=True):
        found = find_toolkit(tmp_path, searched=False, **environment)
        assert found["NVCC"] == str(tmp_path / name / "bin/nvcc")
        shutil.rmtree(tmp_path / name)
        environment[variable] = os.environ["PATH"] if variable == "PATH" else ""


def choose(folder: Path, asked: str, gpus: str, codes: str = "75 80 86 89 90 100 103 110 120 121") -> tuple[str, str]:
    """Return the compute capabilities that cmake/CudaArchitectures.cmake chooses, and the reason if there are none."""
    write_nvcc(folder / "nvcc", codes=codes)
    write_script(folder / "bin/nvidia-smi", f"printf '{gpus}'" if gpus else "echo no devices; exit 9")
    script = f'set(FASTOOD_NVCC "{folder}/nvcc")\ninclude("{ROOT}/cmake/CudaArchitectures.cmake")\n'
    script += (
        'fastood_choose_architectures()\nmessage("${FASTOOD_CUDA_CAPABILITIES}|${FASTOOD_ARCHITECTURES_FAILURE}")\n'
    )
    done = run_cmake_script(folder, script, TORCH_CUDA_ARCH_LIST=asked, PATH=f"{folder}/bin:{os.environ['PATH']}")
    if done.returncode:
        return "", " ".join(done.stderr.split())
    capabilities, _, failure = done.stderr.strip().partition("|")
    return capabilities, failure


@pytest.mark.parametrize(
    ("asked", "gpus", "codes", "expected"),
    [
        pytest.param("", "", "75 80 90 100 120", "7.5 8.0 9.0 10.0 12.0+PTX", id="no GPU: all generations"),
        pytest.param("", "", "50 60 70 75 80 86 90", "7.5 8.0 9.0+PTX", id="nvcc 12.0 to 12.7"),
        pytest.param("", "", "130 140", "13.0 14.0+PTX", id="an nvcc that has dropped them all"),
        pytest.param("", "9.0\\n9.0\\n", "80 90 100", "9.0", id="this machine's GPUs once"),
        pytest.param("", "12.0\\n8.6\\n", "80 86 120", "8.6 12.0", id="two kinds of GPU"),
        pytest.param("", "12.1\\n", "90 100 120", "12.0", id="a newer GPU of a generation that nvcc knows"),
        pytest.param("", "12.0\\n", "80 86 90", "9.0+PTX", id="a newer generation"),
        pytest.param("", "11.0\\n9.0\\n", "90 100 120", "9.0 10.0+PTX", id="a generation between two"),
        pytest.param("all", "9.0\\n", "75 80 90 100 120", "7.5 8.0 9.0 10.0 12.0+PTX", id="all, for a wheel"),
        pytest.param("native 7.5", "9.0\\n", "75 80 90", "7.5 9.0", id="native and more"),
        pytest.param("8.6;9.0+PTX", "9.0\\n", "86 90", "8.6 9.0+PTX", id="the list wins"),
        pytest.param("9.0, 9.0+PTX 8.0", "", "80 90", "8.0 9.0+PTX", id="duplicates and commas"),
        pytest.param("9.0a 10.0f+PTX", "", "90 100", "9.0a 10.0f+PTX", id="specific features"),
        pytest.param("Ampere;Hopper", "", "80 86 90", "8.0 8.6+PTX 9.0+PTX", id="names of torch"),
        pytest.param("Ampere+Tegra", "", "80 87", "8.7", id="a combined name of torch"),
    ],
)
def test_architectures(asked: str, gpus: str, codes: str, expected: str, tmp_path: Path) -> None:
    assert choose(tmp_path, asked, gpus, codes) == (expected, "")


def test_architectures_that_nvcc_lacks(tmp_path: Path) -> None:
    remedy = "it compiles for 7.5, 8.0"
    assert choose(tmp_path, "7.0", "", "75 80") == ("", f"cannot compile for 7.0 of TORCH_CUDA_ARCH_LIST, {remedy}")
    assert choose(tmp_path, "Volta", "", "75 80") == (
        "",
        f"cannot compile for 7.0+PTX of TORCH_CUDA_ARCH_LIST, {remedy}",
    )
    assert choose(tmp_path, "", "7.0\\n", "75 80") == ("", f"cannot compile for 7.0 of a GPU of this machine, {remedy}")
    assert choose(tmp_path, "", "", "") == ("", "--list-gpu-code lists nothing")


@pytest.mark.parametrize("entry", ["hopper", "90", "sm_90", "9.0-PTX", "9"])
def test_an_entry_that_means_nothing_is_refused_with_the_form(entry: str, tmp_path: Path) -> None:
    _, message = choose(tmp_path, f"8.0 {entry}", "")
    assert f"TORCH_CUDA_ARCH_LIST has the entry '{entry}'" in message
    for form in ("9.0+PTX", "'native'", "'all'", "Hopper"):
        assert form in message


def test_the_names_are_those_of_torch() -> None:
    source = Path(cpp_extension.__file__).read_text(encoding="utf-8")
    theirs = dict(re.findall(r"\('([A-Z]\w+(?:\+Tegra|\+Tesla)?)', '([\d.;+PTX]+)'\)", source))
    text = (ROOT / "cmake/CudaArchitectures.cmake").read_text(encoding="utf-8")
    names = re.search(r"set\(_fastood_names ([^)]*)\)", text)[1].split()
    quoted = re.findall(r'"[^"]*"|[^\s"]+', re.search(r"set\(_fastood_names_capabilities ([^)]*)\)", text)[1])
    ours = dict(zip(names, [value.strip('"').replace(" ", ";") for value in quoted], strict=True))
    shared = ("Turing", "Ampere", "Ampere+Tegra", "Ada", "Hopper")
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def configure(folder: Path, value: str, toolkit: Path | None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run cmake/Cuda.cmake where `toolkit` is the only one that it finds."""
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES {'CXX' if toolkit else 'NONE'})\n"
        f'set(FASTOOD_CUDA_SEARCH "{toolkit or "/nowhere"}")\ninclude("{ROOT}/cmake/Cuda.cmake")\n'
        'message(STATUS "with ${FASTOOD_WITH_CUDA}: ${FASTOOD_CUDA_REASON}")\n'
    )
    command = ["cmake", "-S", folder, "-B", folder / "build", f"-DFASTOOD_CUDA={value}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("value", "expected"), [("1", "FASTOOD_CUDA=1, but no CUDA toolkit"), ("yes", "must be auto, 0 or 1, got 'yes'")]
)
def test_fastood_cuda_is_honoured(value: str, expected: str, tmp_path: Path) -> None:
    """1 without a toolkit is an error that says where it looked; a value that means nothing is one too."""
    done = configure(tmp_path / "build", value, None)
    assert done.returncode != 0
    assert expected in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("version", "architectures", "reason"),
    [
        ("", "9.0", "bin/nvcc --version does not run"),
        ("11.8", "9.0", "is older than 12.0"),
        ("13.0", "7.0", "cannot compile for 7.0 of TORCH_CUDA_ARCH_LIST, it compiles for 7.5, 8.0, 9.0, 10.0, 12.0"),
        ("13.0", "9.0", "does not compile: cicc: not found (2)"),
    ],
)
def test_a_broken_nvcc_leaves_out_the_cuda_kernels_and_says_why(
    version: str, architectures: str, reason: str, tmp_path: Path
) -> None:
    """`auto` builds without them, and the reason is one line for `build_info`; with 1 the same is an error."""
    write_toolkit(tmp_path / "cuda", version or "13.0")
    if not version:
        write_script(tmp_path / "cuda/bin/nvcc", "exit 1")
    done = configure(tmp_path / "auto", "auto", tmp_path / "cuda", TORCH_CUDA_ARCH_LIST=architectures)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"^-- with 0: (.*)$", done.stdout, re.MULTILINE)
    assert reason in line
    done = configure(tmp_path / "required", "1", tmp_path / "cuda", TORCH_CUDA_ARCH_LIST=architectures)
    assert done.returncode != 0
    assert "FASTOOD_CUDA=1, but" in done.stderr
    assert reason in " ".join(done.stderr.split())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_a_folder_follows_when_the_toolkit_changes(tmp_path: Path) -> None:
    """CMake keeps to the compiler of the first configure, and the headers would be those of another toolkit."""
    for name in ("first", "second"):
        write_script(tmp_path / name / "bin/nvcc", f'exec "{shutil.which("nvcc")}" "$@"')
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES CXX)\n"
            f'set(FASTOOD_CUDA_SEARCH "{tmp_path}/{name}")\ninclude("{ROOT}/cmake/Cuda.cmake")\n'
            'message(STATUS "compiler ${CMAKE_CUDA_COMPILER}")\n'
        )
        command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", "-DFASTOOD_CUDA=1"]
        environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": "9.0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert f"compiler {tmp_path}/{name}/bin/nvcc" in done.stdout, done.stderr
