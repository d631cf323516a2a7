"""Compare two files of results: `python benchmarks/compare.py old.json new.json [--max-slowdown 1.10]`.

Ratios to peers are compared, not times: only a peer in the same run makes two runs comparable. Files that
differ in device, processor, threads or torch are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

MUST_MATCH = ("device", "gpu", "processor", "threads", "torch")


def load(path: Path) -> dict[str, Any]:
    """Read one file of results."""
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("schema") != 1:
        raise SystemExit(f"{path}: schema must be 1, got {content.get('schema')}")
    return content


def main(arguments: list[str] | None = None) -> int:
    """Print every ratio, old and new; return 1 if one fell by more than allowed or is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--max-slowdown", type=float, default=1.10, help="largest fall of a ratio (default 1.10)")
    options = parser.parse_args(arguments)
    old, new = load(options.old), load(options.new)
    for name in MUST_MATCH:
        before, after = old["metadata"].get(name), new["metadata"].get(name)
        if before != after:
            raise SystemExit(f"not comparable: {name} is {before!r} in {options.old} and {after!r} in {options.new}")
    rows = {(row["op"], row["shape"], row["dtype"]): row for row in old["rows"]}
    slower = 0
    missing = rows.keys() - {(row["op"], row["shape"], row["dtype"]) for row in new["rows"]}
    for key in sorted(missing):
        print("missing in the new file:", *key)
    for row in new["rows"]:
        before = rows.get((row["op"], row["shape"], row["dtype"]))
        for peer, timing in row["timings"].items():
            if before is None or peer == row["subject"] or peer not in before["timings"]:
                continue
            was, now = before["timings"][peer]["ratio"], timing["ratio"]
            fell = was / now > options.max_slowdown
            slower += fell
            print(f"{row['op']} {row['shape']} vs {peer}: {was:.2f} -> {now:.2f}{'  SLOWER' if fell else ''}")
    return 1 if slower or missing else 0


if __name__ == "__main__":
    sys.exit(main())
