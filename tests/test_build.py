"""The build: what it says of itself, and that a hot kernel does not spill registers, which needs no GPU to see."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import fastood
from fastood import _C

ROOT = Path(__file__).resolve().parents[1]


def test_build_info() -> None:
    info = fastood.build_info()
    assert info["version"] == fastood.__version__
    assert info["cpu_capability"] in ("baseline", "avx2", "avx512")
    assert info["target_torch"] == "2.11"
    assert bool(info["cuda_architectures"]) == bool(info["cuda_compiler"]) == info["cuda"]
    assert bool(info["cuda_driver"]) == info["cuda"]
    assert info["cuda_reason"]


def test_only_the_entry_point_is_exported() -> None:
    """A symbol of CUB, of the CUDA runtime or of ours could be taken for another library's, or the other way round."""
    done = subprocess.run(["nm", "-D", "--defined-only", _C.__file__], capture_output=True, text=True, check=True)
    assert [line.split()[1:] for line in done.stdout.splitlines()] == [["T", "PyInit__C"]]


def test_extension_is_free_of_unstable_torch_symbols() -> None:
    symbols = subprocess.run(["nm", "-D", _C.__file__], capture_output=True, text=True, check=True).stdout
    undefined = [line for line in symbols.splitlines() if " U " in line]
    assert undefined
    unstable = [line for line in undefined if re.search(r"_Z\w*?N?K?(2at|3c10|5torch)", line)]
    assert not unstable, "the build would run under one torch version only"


def nvcc_of_the_build() -> Path | None:
    """The compiler of this build; another one may not know the architecture."""
    info = fastood.build_info()
    nvcc = Path(info["cuda_reason"].partition(", ")[2])
    return nvcc if info["cuda"] and nvcc.exists() else None


@pytest.mark.parametrize("kernels", sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*/*.cu")))
def test_float32_kernels_do_not_spill(kernels: str, tmp_path: Path) -> None:
    nvcc = nvcc_of_the_build()
    if nvcc is None:
        pytest.skip("no CUDA toolkit")
    command = [nvcc, "-std=c++20", "-O3", "-arch=sm_90", "-cubin", "-Xptxas=-v", ROOT / kernels]
    done = subprocess.run([*command, "-o", tmp_path / "out.cubin"], capture_output=True, text=True, check=True)
    name, usage = "", {}
    for line in done.stderr.splitlines():
        if "Function properties for" in line:
            name = line.rsplit(" ", 1)[1]
        elif "bytes spill stores" in line:
            usage[name] = line.strip()
    assert usage, done.stderr
    # Kernels of float64 inputs (mangled argument d) are for gradient checks, not for speed; CUB's are not ours.
    spilled = {
        k: int(re.search(r"(\d+) bytes spill stores", v)[1])
        for k, v in usage.items()
        if "Id" not in k and "3cub" not in k
    }
    assert spilled
    assert not any(spilled.values()), spilled


def git_files() -> list[str]:
    """Every file of the clone, none outside of one."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()] if done.returncode == 0 else []


@pytest.mark.skipif(not git_files(), reason="not a clone")
def test_the_sdist_and_the_wheel_hold_what_the_clone_does(tmp_path: Path) -> None:
    """Tests with their helpers, recipes, examples, benchmarks, docs, Makefile; the wheel has the recipes, too."""
    for name in git_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "build_py", "--build-lib", "wheel"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as sdist:
        sources = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(git_files()) - sources <= {".gitignore"}
    packaged = sorted(path.name for path in (tmp_path / "wheel/fastood/train/recipes").iterdir())
    assert packaged == sorted(path.name for path in ROOT.glob("fastood/train/recipes/*.yaml"))
    assert (tmp_path / "wheel/fastood/ops/cuda_status.json").is_file(), "build_info() reads it"
    assert {path.name for path in (tmp_path / "wheel").iterdir()} == {"fastood"}


def test_the_oldest_cmake_is_the_same_everywhere() -> None:
    said = {
        "pyproject.toml": r"cmake>=([\d.]+)",
        "CMakeLists.txt": r"cmake_minimum_required\(VERSION ([\d.]+)\)",
        "cmake/cuda_probe/CMakeLists.txt": r"cmake_minimum_required\(VERSION ([\d.]+)\)",
        "README.md": r"cmake ≥ ([\d.]+)",
        "setup.py": r"OLDEST_CMAKE = \((\d+, \d+)\)",
    }
    found = {name: re.findall(pattern, (ROOT / name).read_text(encoding="utf-8")) for name, pattern in said.items()}
    assert all(found.values()), found
    assert {version.replace(", ", ".") for versions in found.values() for version in versions} == {"3.24"}
