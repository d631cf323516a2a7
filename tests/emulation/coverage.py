"""Coverage by line of the CUDA code, from the counters of the variant `coverage`.

    python -m tests.emulation.coverage FOLDER_OF_VARIANT

reads the `.gcda` files that processes with the variant left, by `gcov --json-format`. A line counts if it is executed
in any instantiation of its template, in any launch. Of the objects of kernels all files of csrc/ count, of
`op_cuda.cpp` those of CUDA alone: the checks that it shares with the CPU op are tested there. `uncovered.toml` explains
the lines that nothing reaches.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.emulation.reasons import Finding, Reasons
from tests.emulation.sources import is_device_code, line_text, place_text, relative

UNCOVERED = Path(__file__).with_name("uncovered.toml")
LEAST = 0.99
_KERNEL = re.compile(r"\w+_kernel\b")
_PROGRAM = re.compile(r"\bprogram_kernel<(?:\w+::)*(\w+)")


@dataclass(frozen=True)
class Coverage:
    """Executions of each line of each file."""

    counts: dict[str, dict[int, int]]
    """Executions by file, `csrc/…`, and line."""
    functions: frozenset[str] = frozenset()
    """Demangled names of the functions of kernels that were executed."""

    @property
    def num_lines(self) -> int:
        """Lines with code."""
        return sum(len(lines) for lines in self.counts.values())

    @property
    def num_covered(self) -> int:
        """Lines that were executed."""
        return sum(count > 0 for lines in self.counts.values() for count in lines.values())

    @property
    def fraction(self) -> float:
        """Part of the lines that was executed; 0 where there is none."""
        return self.num_covered / self.num_lines if self.num_lines else 0.0

    def by_file(self) -> dict[str, list[int]]:
        """Return executed lines and lines with code of each file."""
        return {
            file: [sum(count > 0 for count in lines.values()), len(lines)]
            for file, lines in sorted(self.counts.items())
        }

    def kernels(self) -> list[str]:
        """Return the names of the kernels that were executed, or of the program that `program_kernel` ran."""
        names = set()
        for function in self.functions:
            head = function.replace("(anonymous namespace)::", "").partition("(")[0]
            if program := _PROGRAM.search(head):
                names.add(program[1])
            elif kernel := _KERNEL.search(head):
                names.add(kernel[0])
        return sorted(names)

    def uncovered(self) -> list[tuple[str, int]]:
        """Return file and number of the lines that were not executed, in order."""
        return [(file, n) for file, lines in sorted(self.counts.items()) for n, c in sorted(lines.items()) if c == 0]

    def findings(self) -> list[Finding]:
        """Return the lines that were not executed, by text."""
        return [Finding(file, place_text(file, line)) for file, line in self.uncovered()]


def read(folder: Path) -> Coverage:
    """Read the counters below the folder of a variant.

    Raises:
        FileNotFoundError: If there is no gcov, or if no process has left counters.
        RuntimeError: If gcov fails.
    """
    gcov = shutil.which("gcov")
    if gcov is None:
        raise FileNotFoundError("coverage needs gcov, of the compiler g++: install it (Debian: apt install gcc)")
    data = sorted(folder.resolve().rglob("*.gcda"))
    if not data:
        raise FileNotFoundError(f"no .gcda below {folder}: run the tests with its fastood_emulated.so first")
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    functions: set[str] = set()
    for path in data:
        command = [gcov, "--json-format", "--stdout", str(path)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)
        if ran.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {ran.stderr.strip()}")
        for document in ran.stdout.splitlines():
            if document.strip():
                files = json.loads(document)["files"]
                _add(files, counts, of_kernels="op_cuda" not in path.name)
                called = (function for file in files for function in file["functions"])
                functions |= {function["demangled_name"] for function in called if function["execution_count"]}
    return Coverage(dict(counts), frozenset(functions))


def _add(files: Iterable[dict[str, object]], counts: dict[str, dict[int, int]], *, of_kernels: bool) -> None:
    """Add the lines of an object's files, without headers of the emulation, of torch and of the library."""
    for entry in files:
        file = relative(str(entry["file"]))
        if file is None or file.startswith("csrc/emulation/") or not (of_kernels or is_device_code(file)):
            continue
        lines = entry["lines"]
        assert isinstance(lines, list)
        for line in lines:
            number = line["line_number"]
            counts[file][number] = counts[file].get(number, 0) + line["count"]


def reset(folder: Path) -> None:
    """Remove the counters below the folder of a variant."""
    for path in folder.rglob("*.gcda"):
        path.unlink()


def report(coverage: Coverage, reasons: Reasons) -> list[str]:
    """Return what is wrong: lines without a reason, reasons without a line, too few lines executed."""
    problems = reasons.problems(coverage.findings())
    if coverage.fraction < LEAST:
        problems.append(f"{100 * coverage.fraction:.2f} % of the lines are executed, fewer than {100 * LEAST:g} %")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the coverage by file and what is not reached; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulation.coverage", description="Read the coverage.")
    parser.add_argument("folder", type=Path, help="folder of the variant `coverage`, after tests ran with it")
    options = parser.parse_args(arguments)
    coverage = read(options.folder)
    for file, (covered, total) in coverage.by_file().items():
        print(f"{100 * covered / total:6.1f} % of {total:4d} lines  {file}")
    for file, line in coverage.uncovered():
        print(f"not reached: {file}:{line}: {line_text(file, line)}")
    problems = report(coverage, Reasons.read(UNCOVERED))
    print(*problems, sep="\n")
    print(f"coverage {100 * coverage.fraction:.2f} % of {coverage.num_lines} lines")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
