"""Translate the CUDA sources of csrc/ into C++, line for line: `translate.py CSRC OUT [--mutants]`.

OUT receives a copy of the headers and of the `.cu` files, each as `name.cu.cpp`. Two things are rewritten, for which no
macro is enough:

- `kernel<<<grid, block, shared, stream>>>(arguments)` becomes `::emulation::launch(…, kernel, arguments)`
- `__shared__ T name[n];` becomes a reference to memory of the emulated block

A `#line` directive gives messages of compilers, sanitizers and gcov the lines of the original. With `--mutants`
barriers, fences, masks, guards, bounds and sums of device code are numbered and can be spoiled at run time
(mutants.py). A file is only written if its text changed, so that ninja compiles what it must.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import features
import mutants
from source_text import TranslationError, closing, code_of

SKIPPED = ("emulation", "tests")
"""Folders of csrc/ that are no part of a CUDA build."""

_SHARED = re.compile(r"__shared__\s+(?P<type>[^;\[\]=]+?)\s+(?P<name>\w+)\s*(?P<sizes>(?:\s*\[[^\]]+\])*)\s*;")
_DEVICE = re.compile(r"__device__|__global__|__CUDACC__|__CUDA_ARCH__|\bFASTOOD_HD\b|#include <cuda")


def split_arguments(code: str) -> list[str]:
    """Return the arguments of a call, split at commas outside of any brackets."""
    parts, depth, angles, start = [], 0, 0, 0
    for i, letter in enumerate(code):
        depth += (letter in "([{") - (letter in ")]}")
        # clang-format writes blanks around comparisons, and none before the arguments of a template.
        angles += letter == "<" and code[i - 1 : i].isalnum()
        angles -= letter == ">" and angles > 0
        if letter == "," and depth == angles == 0:
            parts.append(code[start:i])
            start = i + 1
    return [*parts, code[start:]]


def kernel_start(code: str, end: int) -> int:
    """Return where the expression `name<arguments>` begins that ends before `end`."""
    i = end
    while code[i - 1].isspace():
        i -= 1
    if code[i - 1] == ">":
        depth = 0
        while True:
            i -= 1
            depth += (code[i] == ">") - (code[i] == "<")
            if depth == 0:
                break
    while re.match(r"[\w:]", code[i - 1]):
        i -= 1
    return i


def translate_launches(text: str, name: str) -> str:
    """Return the text with every launch as a call."""
    # From the last to the first, so that positions in `code` stay valid.
    code = code_of(text)
    for match in reversed(list(re.finditer("<<<", code))):
        at = match.start()
        line = code.count("\n", 0, at) + 1
        end = code.find(">>>", at)
        begin = kernel_start(code, at)
        kernel = text[begin:at].strip()
        after = re.compile(r"\s*\(").match(code, end + 3)
        arguments = split_arguments(code[at + 3 : end])
        if end < 0 or not kernel or after is None or not 2 <= len(arguments) <= 4:
            raise TranslationError(
                f"{name}:{line}: error: this form of a launch is not emulated: k<<<grid, block, shared, stream>>>(…)"
            )
        stop = closing(code, after.end() - 1)
        config = text[at + 3 : end]
        passed = text[after.end() : stop - 1]
        base = kernel.split("<")[0]
        # Template arguments that are given may name what an enclosing lambda has; deduced ones need a call.
        function = f"&{kernel}" if "<" in kernel else f"[](auto... emulated) {{ {kernel}(emulated...); }}"
        comma = ", " if passed.strip() else ""
        call = f'::emulation::launch(::emulation::Config({config}), "{base}", {function}{comma}{passed})'
        breaks = text[begin:stop].count("\n")
        text = text[:begin] + " ".join(call.split()) + "\n" * breaks + text[stop:]
    return text


def translate_shared(text: str, name: str) -> str:
    """Return the text with every shared variable as a reference to memory of the block."""
    count = 0

    def reference(match: re.Match[str]) -> str:
        nonlocal count
        if re.sub(r"<[^;]*>", "", match["type"]).count(","):
            return match[0]
        count += 1
        declared = match["type"] + match["sizes"]
        variable = match["name"]
        made = f"static char {variable}_key; auto& {variable} = ::emulation::shared<{declared}>(&{variable}_key);"
        return made + "\n" * (match[0].count("\n") - made.count("\n"))

    text = _SHARED.sub(reference, text)
    left = code_of(text).find("__shared__")
    if left >= 0:
        line = text.count("\n", 0, left) + 1
        raise TranslationError(
            f"{name}:{line}: error: this form of __shared__ is not emulated: one variable without initialiser each"
        )
    return text


def translate(text: str, name: str, sites: mutants.Sites | None = None) -> str:
    """Return a CUDA source as C++ with as many lines; `name` stands for it in messages."""
    features.check(text, name)
    if sites is not None:
        text = sites.number(text, name)
    return translate_shared(translate_launches(text, name), name)


def write_if_changed(path: Path, text: str) -> None:
    """Write the file, unless it has this text already."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def translate_tree(csrc: Path, out: Path, with_mutants: bool) -> None:
    """Translate all CUDA sources of a folder, and copy its other headers."""
    sites = mutants.Sites() if with_mutants else None
    written = set()
    for path in sorted(csrc.rglob("*")):
        relative = path.relative_to(csrc)
        if relative.parts[0] in SKIPPED or path.suffix not in (".cu", ".cuh", ".h"):
            continue
        text = path.read_text()
        name = f"csrc/{relative.as_posix()}"
        if path.suffix != ".h" or _DEVICE.search(text):
            is_program = path.suffix in (".cu", ".cuh") or path.name.startswith("cuda_")
            text = translate(text, name, sites if is_program else None)
        target = out / (relative.as_posix() + (".cpp" if path.suffix == ".cu" else ""))
        write_if_changed(target, f'#line 1 "{path}"\n{text}')
        written.add(target)
    for path in out.rglob("*"):
        if path.is_file() and path not in written:
            path.unlink()
    if sites is not None:
        write_if_changed(out.parent / "sites.txt", sites.listing())


def main() -> None:
    """Run the translator as a program."""
    parser = argparse.ArgumentParser(description="Translate the CUDA sources of csrc/ into C++.")
    parser.add_argument("csrc", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mutants", action="store_true", help="number what can be spoiled, and list it in sites.txt")
    options = parser.parse_args()
    try:
        translate_tree(options.csrc.resolve(), options.out, options.mutants)
    except (features.NotEmulatedError, TranslationError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
