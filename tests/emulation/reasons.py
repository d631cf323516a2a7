"""Committed explanations, one by one, of lines that no case reaches and of mutants that no case notices.

A file of them is TOML, an entry each:

    [[explained]]
    file = "csrc/background_pool/draw.cu"
    text = "return error; ¶ }"   # the line, with neighbours where it is not unique in its file (sources.place_text)
    kind = "barrier"             # of mutants
    count = 2                    # how many mutants of this kind the entry explains; 1 by default
    reason = "why none can be reached, or why the mutant computes the same"

Entries name text, not line numbers, so that edits elsewhere in a file leave them valid. A finding without an entry is a
problem, and so is an entry without its finding: a reason that no longer holds must go.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Finding:
    """A line that was not reached, or a mutant that was not noticed."""

    file: str
    text: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.text}" + (f" [{self.kind}]" if self.kind else "")


@dataclass(frozen=True)
class Reasons:
    """The entries of a file."""

    path: Path
    counts: dict[Finding, int]
    reasons: dict[Finding, str]

    @staticmethod
    def read(path: Path) -> Reasons:
        """Read a file of entries.

        Raises:
            ValueError: If an entry lacks a field, has one that is unknown, an empty reason, or appears twice.
        """
        counts: dict[Finding, int] = {}
        reasons: dict[Finding, str] = {}
        for entry in tomllib.loads(path.read_text()).get("explained", []):
            if unknown := set(entry) - {"file", "text", "kind", "count", "reason"}:
                raise ValueError(f"{path}: unknown field {sorted(unknown)[0]!r} in {entry}")
            if missing := {"file", "text", "reason"} - set(entry):
                raise ValueError(f"{path}: {entry} has no {sorted(missing)[0]}")
            finding = Finding(entry["file"], entry["text"], entry.get("kind", ""))
            if finding in counts:
                raise ValueError(f"{path}: two entries for {finding}: give one a count")
            if not entry["reason"].strip():
                raise ValueError(f"{path}: no reason for {finding}")
            counts[finding] = entry.get("count", 1)
            reasons[finding] = entry["reason"]
        return Reasons(path, counts, reasons)

    def problems(self, findings: Iterable[Finding], looked_at: Iterable[Finding] | None = None) -> list[str]:
        """Return a message for each finding without a reason and for each reason without its finding.

        Args:
            findings: Lines or mutants, repeated as often as they occur.
            looked_at: What a partial run could have found; entries of anything else are left alone. All by default.
        """
        counted = Counter(findings)
        possible = None if looked_at is None else set(looked_at)
        messages = []
        for finding in sorted(counted.keys() | self.counts.keys()):
            if possible is not None and finding not in possible:
                continue
            found, explained = counted[finding], self.counts.get(finding, 0)
            if found > explained:
                messages.append(
                    f"{finding}: {found} found, {explained} explained: let a case of the workload reach or notice it, "
                    f"or give a reason in {self.path.name}"
                )
            elif found < explained:
                messages.append(
                    f"{finding}: {explained} explained in {self.path.name}, {found} found: remove the entry, or lower "
                    "its count"
                )
        return messages
