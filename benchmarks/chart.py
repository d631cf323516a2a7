"""Draw a file of results: `python benchmarks/chart.py benchmarks/results/cpu-pool.json` writes cpu-pool.png next to it.

Every number is the time of a peer over ours. An op measured on a grid of N x K becomes a table per peer, others become
bars. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle

Row = dict[str, Any]

# An op with more rows than this is drawn as a grid.
MAX_BARS = 8
# With more peers than this, each bar carries the name of its peer instead of a legend, on a logarithmic axis.
MAX_LEGEND = 4
WIDTH = 9.0
COLORS = {"torch.compile": "#59a14f", "Liger-Kernel": "#b07aa1", "empty kernel": "#9c9c9c"}
OTHER_COLORS = ("#4e79a7", "#f28e2b")
# Red below 1, where a peer is faster; blue above, darker for larger ratios.
FASTER_SLOWER = LinearSegmentedColormap.from_list("faster", ["#d1604d", "#f7f4ee", "#2f6ea8"])
DEEPEST = 8.0


def main() -> None:
    """Draw the chart of a file and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    content = json.loads(path.read_text())
    figure = draw(content["rows"], content["metadata"])
    figure.savefig(path.with_suffix(".png"), dpi=130)
    print(path.with_suffix(".png"))


def draw(rows: list[Row], metadata: dict[str, Any]) -> Figure:
    """Draw all ops: grids one below the other first, then bars in two columns of panels."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["op"], row["dtype"]), []).append(row)
    grids = [(title(key, panels), rows) for key, rows in panels.items() if len(rows) > MAX_BARS]
    bars = [(title(key, panels), rows) for key, rows in panels.items() if len(rows) <= MAX_BARS]
    bars.sort(key=lambda panel: "x" not in panel[1][0]["shape"])  # what has no logits comes last
    few = [panel for panel in bars if len(all_peers(panel[1])) <= MAX_LEGEND]
    pairs = [few[i : i + 2] for i in range(0, len(few), 2)]
    pairs += [[panel] for panel in bars if panel not in few]
    heights = [grid_height(rows) for _, rows in grids]
    heights += [max(bars_height(rows) for _, rows in pair) for pair in pairs]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, hspace=0.02)
    outer = GridSpec(len(heights), 1, figure, height_ratios=heights)
    for i, (name, of_op) in enumerate(grids):
        draw_grid(figure, outer[i], name, of_op)
    for i, pair in enumerate(pairs, len(grids)):
        inner = outer[i].subgridspec(1, max(len(pair), 1 if len(all_peers(pair[0][1])) > MAX_LEGEND else 2))
        for j, (name, of_op) in enumerate(pair):
            draw_bars(figure.add_subplot(inner[j]), name, of_op)
    device = metadata.get(
        "gpu", f"{metadata['processor']}, {metadata['threads']} thread{'s'[: metadata['threads'] > 1]}"
    )
    subject = rows[0]["subject"]
    figure.suptitle(
        f"How many times faster {subject} is than its peers (median over rounds, 20-80 %)\n"
        f"{device} · torch {metadata['torch']} · {metadata['git_sha'][:9]}",
        fontsize=9.5,
    )
    return figure


def title(key: tuple[str, str], panels: dict[tuple[str, str], list[Row]]) -> str:
    """Return the name of the op, with its dtype if the chart has several."""
    op, dtype = key
    return op if len({dtype for _, dtype in panels}) == 1 else f"{op}, {dtype}"


def peers_of(row: Row) -> list[str]:
    """Return the peers of a row; variants of the subject that do less (a call without autograd) are not peers."""
    return [name for name in row["timings"] if not name.startswith(row["subject"])]


def all_peers(rows: list[Row]) -> list[str]:
    """Return the peers of all rows, in order of appearance."""
    return list(dict.fromkeys(peer for row in rows for peer in peers_of(row)))


def rows_and_classes(row: Row) -> tuple[int, int]:
    n, k = row["shape"].split("x")
    return int(n), int(k)


def grid_height(rows: list[Row]) -> float:
    return 0.75 + 0.36 * len({rows_and_classes(row)[0] for row in rows})


def draw_grid(figure: Figure, place: Any, name: str, rows: list[Row]) -> None:
    """Draw one panel per peer with N downwards, K to the right and the ratio in each cell that was measured."""
    cells = {rows_and_classes(row): row for row in rows}
    batch_sizes, classes = (sorted(set(axis)) for axis in zip(*cells, strict=True))
    peers = peers_of(rows[0])
    axes = place.subgridspec(1, len(peers)).subplots(sharey=True, squeeze=False)[0]
    norm = TwoSlopeNorm(0, -1, math.log2(DEEPEST))
    for panel, peer in zip(axes, peers, strict=True):
        for (n, k), row in cells.items():
            timing = row["timings"][peer]
            level = norm(math.log2(timing["ratio"]))
            x, y = classes.index(k), batch_sizes.index(n)
            panel.add_patch(cell(x, y, FASTER_SLOWER(level)))
            ink = "white" if level > 0.85 else "0.1"
            panel.text(x, y - 0.14, times(timing["ratio"]), ha="center", va="center", fontsize=9, color=ink)
            spread = f"{short(timing['ratio_p20'])}-{short(timing['ratio_p80'])}"
            panel.text(x, y + 0.27, spread, ha="center", va="center", fontsize=6.5, color=ink)
        panel.set_xlim(-0.5, len(classes) - 0.5)
        panel.set_ylim(len(batch_sizes) - 0.5, -0.5)
        panel.set_xticks(range(len(classes)), [f"{k:,}" for k in classes], fontsize=8.5)
        panel.set_yticks(range(len(batch_sizes)), [f"{n:,}" for n in batch_sizes], fontsize=8.5)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        panel.set_title(f"{name if peer == peers[0] else ''}\n", loc="left", fontsize=9.5, linespacing=1.6)
        panel.set_title(f"vs {peer}", fontsize=9)
        panel.set_xlabel("classes K", fontsize=8.5)
    axes[0].set_ylabel("rows N", fontsize=8.5)


def bars_height(rows: list[Row]) -> float:
    return 1.0 + sum(0.15 * len(peers_of(row)) + 0.1 for row in rows)


def draw_bars(axes: Axes, name: str, rows: list[Row]) -> None:
    """Draw a group of bars per shape, one bar per peer, with whiskers from the 20th to the 80th percentile."""
    peers = all_peers(rows)
    named = len(peers) > MAX_LEGEND
    colors = dict(zip([p for p in peers if p not in COLORS], itertools.cycle(OTHER_COLORS), strict=False)) | COLORS
    longest = max(row["timings"][peer]["ratio"] for row in rows for peer in peers_of(row))
    limit = 20 * longest if named else 1.45 * max(longest, 1)
    step = 1 / (len(peers) + 0.6)
    for peer in peers:
        having = [(i, row["timings"][peer]) for i, row in enumerate(rows) if peer in row["timings"]]
        positions = [i + (peers.index(peer) - (len(peers) - 1) / 2) * step for i, _ in having]
        ratios = [t["ratio"] for _, t in having]
        ends = [min(t["ratio_p80"], limit) for _, t in having]
        axes.barh(positions, ratios, step * 0.9, label=peer, color=colors[peer])
        axes.hlines(positions, [t["ratio_p20"] for _, t in having], ends, color="0.25", linewidth=0.9)
        for y, ratio, end in zip(positions, ratios, ends, strict=True):
            x = 1.1 * end if named else min(max(end, ratio) + 0.02 * limit, 0.86 * limit)
            on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            label = f"{times(ratio)}  {peer}" if named else times(ratio)
            axes.text(x, y, label, va="center", fontsize=8, bbox=on_white)
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set_xlim(0.5 if named else 0, limit)
    if named:
        axes.set_xscale("log")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [label_of(row, rows) for row in rows], fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(textwrap.fill(name, 48), loc="left", fontsize=9.5, pad=4 if named else 20)
    if named:
        return
    axes.legend(
        fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=len(peers),
        handlelength=0.9, handletextpad=0.4, columnspacing=1.0, borderpad=0,
    )  # fmt: skip


def label_of(row: Row, rows: list[Row]) -> str:
    """Return the shape, with the number of threads if the rows differ in it."""
    several = len({other["threads"] for other in rows}) > 1
    return f"{row['shape']}, {row['threads']} thr" if several else row["shape"]


def cell(x: float, y: float, color: Any) -> Rectangle:
    """Return the rectangle of one cell, with a margin."""
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=color, linewidth=0)


def short(ratio: float) -> str:
    """Format a ratio with two or three digits."""
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def times(ratio: float) -> str:
    """Format a ratio with a multiplication sign."""
    return f"{short(ratio)}×"


if __name__ == "__main__":
    main()
