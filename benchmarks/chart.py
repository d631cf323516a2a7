"""Draw a file of results: `python benchmarks/chart.py results/cpu.json` writes `results/cpu.png`.

Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    """One panel per op: the ratio of every peer's time to ours, by shape, with its spread over rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    content = json.loads(path.read_text())
    rows, metadata = content["rows"], content["metadata"]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    counts = [sum(row["op"] == op for row in rows) for op in ops]
    figure = Figure(figsize=(9, 1.6 + 0.55 * sum(counts)), layout="constrained")
    panels = figure.subplots(len(ops), 1, squeeze=False, gridspec_kw={"height_ratios": counts})[:, 0]
    for op, axes in zip(ops, panels, strict=True):
        of_op = [row for row in rows if row["op"] == op]
        # What does less than the subject (a call without autograd) is no peer of it.
        peers = [p for p in of_op[0]["timings"] if not p.startswith(of_op[0]["subject"])]
        height = 0.8 / len(peers)
        for j, peer in enumerate(peers):
            timings = [row["timings"][peer] for row in of_op]
            ratios = [t["ratio"] for t in timings]
            spread = [
                [r - t["ratio_p20"] for r, t in zip(ratios, timings, strict=True)],
                [t["ratio_p80"] - r for r, t in zip(ratios, timings, strict=True)],
            ]
            positions = [i + j * height for i in range(len(of_op))]
            bars = axes.barh(positions, ratios, height * 0.92, xerr=spread, label=peer, color=f"C{j}", ecolor="0.35")
            axes.bar_label(bars, [f"{r:.1f}×" for r in ratios], padding=14, fontsize=7)
        axes.set_yticks([i + 0.4 - height / 2 for i in range(len(of_op))], [row["shape"] for row in of_op])
        axes.invert_yaxis()
        axes.axvline(1, color="0.2", linewidth=1)
        axes.set_xlim(0, 1.18 * max(t["ratio_p80"] for row in of_op for p, t in row["timings"].items() if p in peers))
        axes.set_title(op, loc="left", fontsize=10)
        axes.set_xlabel(f"time of the peer / time of {of_op[0]['subject']} (bars: 20-80 % over rounds)", fontsize=8)
        axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(peers))
        axes.spines[["top", "right"]].set_visible(False)
    device = metadata.get("gpu", f"{metadata['processor']}, {metadata['threads']} threads")
    figure.suptitle(f"{device} · torch {metadata['torch']} · {metadata['git_sha'][:9]}", fontsize=9)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
