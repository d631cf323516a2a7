"""Evidence for each CUDA kernel: compiled, run in the emulation, run on a GPU.

`fastood/ops/cuda_status.json` is the only record; `fastood.build_info()["kernels"]` and the tables of
`benchmarks/results/README.md` are made from it. Every command also updates the list of kernels and the tables:

    python benchmarks/cuda_status.py                      after a change of csrc/
    python benchmarks/cuda_status.py compiled BUILD_LOG   after a build with nvcc, whose output lists every kernel
    python benchmarks/cuda_status.py emulated FILE        after a run of the emulation
    python benchmarks/cuda_status.py proven FILE          after `benchmarks/gpu.sh`

FILE is JSON: `{"by": "g++ 12.2.0", "variants": ["plain", "address"], "kernels": ["draw_kernel", …], "files":
{"background_pool/draw.cu": {"lines": [90, 91], "mutants": [5, 5]}}}`, without `files` for a GPU, whose `by` is its name
and whose `variants` are its compute capability. Names of kernels may have namespaces and arguments, as gcov and
profilers print them. List only kernels that ran in a run that passed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from fastood.ops._cuda_status import STATUS_FILE, Evidence, Kernel, Status, kernel_status, read_status

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks/results/README.md"
BEGIN, END = "<!-- kernels: python benchmarks/cuda_status.py -->", "<!-- end of kernels -->"

_GLOBAL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(")
# The Mahalanobis kernels are programs that one __global__ template runs.
_PROGRAM = re.compile(r"launch_program<(\w+)\b")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_KERNEL_NAME = re.compile(r"^(?!.*\bcub::).*(_kernel|Kernel)\b")
_PTXAS = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def find_kernels(csrc: Path) -> dict[str, Kernel]:
    """Return every kernel below a folder, by name.

    Args:
        csrc: Folder with a folder of sources per op. Its folders `tests` and `emulation` are left out.

    Raises:
        ValueError: If a `__global__` function is written in a form that is not recognised, or two kernels share a name.
    """
    kernels: dict[str, Kernel] = {}
    for path in sorted(csrc.glob("*/*.cu*")):
        if path.parent.name in ("tests", "emulation"):
            continue
        code = _code(path)
        names = _GLOBAL.findall(code)
        if len(names) != len(re.findall(r"\b__global__\b", code)):
            raise ValueError(f"{path}: a __global__ function is not of the form `__global__ void name(`")
        for name in [name for name in names if name != "program_kernel"] + list(dict.fromkeys(_PROGRAM.findall(code))):
            file = str(path.relative_to(csrc))
            if name in kernels:
                raise ValueError(f"{file} and {kernels[name]['file']} both have a kernel {name}: rename one of them")
            kernels[name] = Kernel(file=file, source=source_digest(path, csrc))
    return dict(sorted(kernels.items(), key=lambda item: (item[1]["file"], item[0])))


def source_digest(path: Path, csrc: Path) -> str:
    """Return a digest of a file and of the headers of `csrc` that it includes, without comments and spaces."""
    files, seen = [path.resolve()], []
    while files:
        file = files.pop()
        if file not in seen:
            seen.append(file)
            for name in _INCLUDE.findall(_code(file)):
                found = [(folder / name).resolve() for folder in (file.parent, csrc)]
                files += [header for header in found if header.is_file()]
    digest = hashlib.sha256()
    for file in sorted(seen):
        digest.update(" ".join(_code(file).split()).encode())
    return digest.hexdigest()[:12]


def _code(path: Path) -> str:
    return _COMMENT.sub(" ", path.read_text(encoding="utf-8"))


def resolve_kernels(names: Iterable[str], known: Iterable[str]) -> set[str]:
    """Return the kernels for names as compilers, gcov or profilers print them.

    Args:
        names: Names, plain or demangled. Names of other libraries, such as CUB, are left out.
        known: Names of the package's kernels.

    Raises:
        ValueError: If a name of the package, or a plain name, is not the name of a kernel.
    """
    kernels, known = set(), set(known)
    for name in names:
        hits = known.intersection(re.findall(r"\w+", name))
        if len(hits) == 1:
            kernels |= hits
        elif hits or _KERNEL_NAME.search(name.replace("(anonymous namespace)::", "").partition("(")[0]):
            raise ValueError(f"{name!r} names {len(hits)} kernels of csrc/, it must name one of {sorted(known)}")
    return kernels


def read_build_log(log: str, kernels: dict[str, Kernel]) -> Evidence:
    """Return the evidence that ptxas printed, with `-Xptxas=-v`, in the output of a build.

    Args:
        log: Output of the build, which also names nvcc's version.
        kernels: The kernels of `csrc/`.

    Raises:
        ValueError: If the output does not name nvcc or a kernel.
    """
    nvcc = re.search(r"CUDA kernels on \(\S+ ([\d.]+)", log.replace("\n", " "))
    entries = _PTXAS.findall(log)
    if nvcc is None or not entries:
        raise ValueError("no line 'CUDA kernels on (nvcc …)', or nothing of ptxas: give the output of a build")
    mangled = "\n".join(dict.fromkeys(entry[0] for entry in entries))
    demangled = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout
    names = dict(zip(mangled.split("\n"), demangled.splitlines(), strict=True))
    capabilities: set[str] = set()
    registers: dict[str, list[int]] = {}
    spills: dict[str, int] = {}
    for symbol, capability, spilled, used in entries:
        for name in resolve_kernels([names[symbol]], kernels):
            capabilities.add(re.sub(r"(\d)(\D?)$", r".\1\2", capability))
            least, most = registers.get(name, [int(used)] * 2)
            registers[name] = [min(least, int(used)), max(most, int(used))]
            # Instances for float64 are for gradient checks, not for speed.
            if int(spilled) and not re.search(r"<double\b|, double[,>]", names[symbol]):
                spills[name] = max(spills.get(name, 0), int(spilled))
    return Evidence(
        kind="compiled",
        by=f"nvcc {nvcc[1]}",
        variants=sorted(capabilities, key=lambda text: [int(number) for number in re.findall(r"\d+", text)]),
        kernels={name: kernels[name]["source"] for name in sorted(registers)},
        registers=dict(sorted(registers.items())),
        spills=dict(sorted(spills.items())),
    )


def read_run(run: Any, kind: Literal["emulated", "proven"], kernels: dict[str, Kernel]) -> Evidence:
    """Return the evidence of a run of the emulation or of a GPU.

    Args:
        run: The JSON that the run wrote, as this module's docstring describes it.
        kind: "emulated" or "proven".
        kernels: The kernels of `csrc/`.

    Raises:
        ValueError: If a field is missing or malformed, or a kernel or file does not exist.
    """
    fields = {"by", "variants", "kernels"} | ({"files"} if kind == "emulated" else set())
    if not isinstance(run, dict) or not {"by", "variants", "kernels"} <= set(run) <= fields:
        raise ValueError(f"a run that is {kind} has the fields {sorted(fields)}, got {sorted(run)}")
    names = resolve_kernels(run["kernels"], kernels)
    if not (names and run["by"] and run["variants"] and all(isinstance(variant, str) for variant in run["variants"])):
        raise ValueError("by, variants and kernels must not be empty, and variants must be a list of strings")
    evidence = Evidence(
        kind=kind,
        by=run["by"],
        variants=list(run["variants"]),
        kernels={name: kernels[name]["source"] for name in sorted(names)},
    )
    for file, counts in run.get("files", {}).items():
        if not (ROOT / "csrc" / file).is_file():
            raise ValueError(f"files names {file!r}, which is not a file of csrc/")
        for count, pair in counts.items():
            if count not in ("lines", "mutants") or len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"{file}: {count} must be lines or mutants, as [reached, total], got {pair}")
    if "files" in run:
        evidence["files"] = dict(sorted(run["files"].items()))
    return evidence


def add_evidence(status: Status, evidence: Evidence) -> None:
    """Add evidence, in place of the evidence of the emulation, of an nvcc or of a GPU that it renews."""
    kept = [e for e in status["evidence"] if (e["kind"], e["by"]) != (evidence["kind"], evidence["by"])]
    if evidence["kind"] == "emulated":
        kept = [e for e in kept if e["kind"] != "emulated"]
    status["evidence"] = sorted([*kept, evidence], key=lambda e: (e["kind"], e["by"]))


def tables(status: Status) -> str:
    """Return the tables of `benchmarks/results/README.md`."""
    return "\n".join([*_kernel_table(status), "", *_file_table(status)]).rstrip() + "\n"


def _kernel_table(status: Status) -> Iterator[str]:
    registers, spills = {}, {}
    for evidence in status["evidence"]:
        registers |= evidence.get("registers", {})
        spills |= evidence.get("spills", {})
    yield "| kernel | file in `csrc/` | compiled | registers | emulated | run on a GPU |"
    yield "|---|---|---|---|---|---|"
    for name, kernel in kernel_status(status).items():
        used = "–".join(str(count) for count in dict.fromkeys(registers.get(name, [])))
        if name in spills:
            used += f", spills {spills[name]} bytes"
        cells = [f"`{name}`", f"`{kernel['file']}`", kernel["compiled"] or "no", used, kernel["emulated"] or "no"]
        yield f"| {' | '.join([*cells, kernel['proven'] or 'no'])} |"


def _file_table(status: Status) -> Iterator[str]:
    files = [item for evidence in status["evidence"] for item in evidence.get("files", {}).items()]
    if files:
        yield "| file in `csrc/` | lines that ran in the emulation | changes that a test noticed |"
        yield "|---|---|---|"
    for file, counts in files:
        cells = [" of ".join(map(str, counts.get(count, ["–"]))) for count in ("lines", "mutants")]
        yield f"| `{file}` | {' | '.join(cells)} |"


def page_with_tables(page: str, status: Status) -> str:
    """Return the page with the tables between its two marks replaced.

    Raises:
        ValueError: If a mark is missing.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE} must have one line {BEGIN!r} and one line {END!r}")
    return f"{page.partition(BEGIN)[0]}{BEGIN}\n\n{tables(status)}\n{END}{page.partition(END)[2]}"


def dumps(status: Status) -> str:
    """Return the text of `cuda_status.json`: a line per kernel and per field of evidence, for short diffs."""
    kernels = ",\n".join(f"    {json.dumps(name)}: {json.dumps(kernel)}" for name, kernel in status["kernels"].items())
    records = ",\n".join(
        "    {\n" + ",\n".join(f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in record.items()) + "\n    }"
        for record in status["evidence"]
    )
    records = f"[\n{records}\n  ]" if records else "[]"
    return f'{{\n  "kernels": {{\n{kernels}\n  }},\n  "evidence": {records}\n}}\n'


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=["compiled", "emulated", "proven"])
    parser.add_argument("path", nargs="?", type=Path, help="output of a build, or JSON of a run")
    arguments = parser.parse_args()
    if arguments.kind and arguments.path is None:
        parser.error(f"{arguments.kind} needs the path of its evidence")
    status = read_status() if STATUS_FILE.exists() else Status(kernels={}, evidence=[])
    status["kernels"] = find_kernels(ROOT / "csrc")
    for evidence in status["evidence"]:
        evidence["kernels"] = {k: v for k, v in evidence["kernels"].items() if k in status["kernels"]}
    if arguments.kind:
        text = arguments.path.read_text(encoding="utf-8")
        if arguments.kind == "compiled":
            add_evidence(status, read_build_log(text, status["kernels"]))
        else:
            add_evidence(status, read_run(json.loads(text), arguments.kind, status["kernels"]))
    STATUS_FILE.write_text(dumps(status), encoding="utf-8")
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8"), status), encoding="utf-8")


if __name__ == "__main__":
    main()
