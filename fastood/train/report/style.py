"""Common style of all figures: colours that colour-blind readers can distinguish, plain axes, no global state."""

from collections.abc import Iterable, Sequence, Set
from io import BytesIO
from textwrap import wrap
from typing import Any

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple

from fastood.console.names import printable_lines

INK = "#222222"
QUIET = "#6b6b6b"
ID_COLOUR = "#9a9a9a"
DPI = 160

ArmStyle = tuple[str, tuple[float, tuple[float, ...]]]
"""Colour, and line style as matplotlib's (offset, on-off lengths)."""

SOLID = (0.0, ())
DOTTED = (0.0, (1.2, 1.2))
DASHED = (0.0, (5.0, 1.5))
DASH_DOTTED = (0.0, (6.0, 1.2, 1.2, 1.2))

# Colours of Okabe & Ito, which stay distinct under every common colour blindness. These arms keep theirs in every
# report; their line styles differ as well, for prints in grey.
GREEN, SKY, VERMILION, BLUE, PURPLE, ORANGE = "#009e73", "#56b4e9", "#d55e00", "#0072b2", "#cc79a7", "#e69f00"
_ARM_STYLES: dict[str, ArmStyle] = {
    **dict.fromkeys(("none", "msp", "plain", "softmax"), (GREEN, DOTTED)),
    **dict.fromkeys(("random", "oe", "odin"), (SKY, DASHED)),
    **dict.fromkeys(("resampled", "reject", "ice", "bal"), (VERMILION, SOLID)),
    **dict.fromkeys(("full", "energy", "bal-p2"), (BLUE, DASH_DOTTED)),
}
_OTHER_STYLES: tuple[ArmStyle, ...] = (
    (PURPLE, SOLID),
    (ORANGE, DASHED),
    ("#5d3a9b", DOTTED),
    ("#7a5c00", DASH_DOTTED),
)


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """Return colour and line style of each arm; no two arms share a colour.

    Args:
        arms: Names of the arms.

    Example:
        >>> arm_styles(["random"])
        {'random': ('#56b4e9', (0.0, (5.0, 1.5)))}
    """
    styles: dict[str, ArmStyle] = {}
    others = []
    for arm in arms:
        style = _ARM_STYLES.get(arm)
        if style is None or style in styles.values():
            others.append(arm)
        styles[arm] = style or _OTHER_STYLES[0]
    taken = {styles[arm][0] for arm in styles if arm not in others}
    free = iter(_OTHER_STYLES if len(others) <= len(_OTHER_STYLES) else _many_styles(len(others), taken))
    return styles | {arm: next(free) for arm in others}


def _many_styles(count: int, taken: Set[str]) -> list[ArmStyle]:
    """Return `count` styles: colours along a rainbow, dark enough for lines on white, and line styles in turn."""
    rainbow = colormaps["turbo"]
    styles: list[ArmStyle] = []
    for position in range(count):
        red, green, blue, _ = rainbow(0.04 + 0.92 * position / max(count - 1, 1))
        # Yellow and green are too light for a line: darken by luminance, with the weights of the eye.
        light = 0.3 * red + 0.59 * green + 0.11 * blue
        shade = min(1.0, 0.55 / light)
        colour = to_hex((shade * red, shade * green, shade * blue))
        while colour in taken or colour in (other for other, _ in styles):
            colour = f"#{(int(colour[1:], 16) + 1) % 0x1000000:06x}"
        styles.append((colour, (SOLID, DASHED, DOTTED, DASH_DOTTED)[position % 4]))
    return styles


def new_figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """Create a figure of rows × columns plain axes without pyplot's global state.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#bbbbbb")
        ax.tick_params(labelsize=8, colors=QUIET, length=3, width=0.8)
    return figure, [list(row) for row in axes]


def literal(name: str) -> str:
    """Return a name escaped for matplotlib, where a $ would start a formula; line breaks are kept."""
    return printable_lines(name).replace("$", r"\$")


def in_two_lines(name: str, width: int) -> str:
    """Break a name into at most two lines of `width` characters, escaped for matplotlib."""
    return literal("\n".join(wrap(name, width, max_lines=2, placeholder="…")))


def legend_above(figure: Figure, entries: Sequence[tuple[Artist | tuple[Artist, ...], str]]) -> None:
    """Add a legend above all axes, where it covers no data; a tuple of artists is drawn side by side."""
    # Width of an entry in inches: its sample, and about 0.08 per character at this font size.
    widths = [0.8 + 0.08 * len(label) for _, label in entries]
    fits = sum(widths) <= figure.get_figwidth()
    columns = len(entries) if fits else max(1, int(figure.get_figwidth() / max(widths)))
    handles: list[Any] = [handle for handle, _ in entries]
    figure.legend(
        handles=handles,
        labels=[label for _, label in entries],
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.2)},
    )


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG; equal figures give equal bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
