"""`python -m fastood.data list`: the named data sets, and which of them are present."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fastood.console.names import expanded, printable
from fastood.data.sources.named_sets import NAMED_SETS, NamedSet
from fastood.data.sources.overlap import overlap_lists
from fastood.data.sources.torchvision_sets import TORCHVISION_SETS


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """Show all named data sets, and whether they are under the root."""

    root: Path = Path("data")
    """Folder of the data sets, as --data.root of `python -m fastood.train`."""

    def run(self) -> int:
        """Print the table.

        Returns:
            0, always.
        """
        console = Console()
        root = expanded(self.root)
        where = printable(str(root.resolve()) if root.is_dir() else f"{root}, which does not exist")
        console.print(f"Data sets under {where}", style="bold", markup=False, highlight=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("name", "images", "classes", "train", "test", "status"):
            number = column in ("classes", "train", "test")
            table.add_column(column, justify="right" if number else "left", no_wrap=column != "images")
        for name, named in NAMED_SETS.items():
            state = status(named, root)
            style = "green" if state.startswith("present") else "none"
            table.add_row(
                name, named.what, str(named.classes), *map(_count, named.images), f"[{style}]{state}[/{style}]"
            )
        console.print(table)
        console.print("downloadable: --data.download fetches it. Others must be downloaded by hand:", highlight=False)
        for name, named in NAMED_SETS.items():
            if named.how and status(named, root) != "present":
                console.print(f"{name}: {named.how}", markup=False, highlight=False, soft_wrap=True)
        lists = ", ".join(overlap_lists())
        console.print(f"Overlapping classes are left out by --data.exclude-overlap: {lists}", highlight=False)
        return 0


def status(named: NamedSet, root: Path) -> str:
    """Return whether a set is under `root`, and otherwise how to get it.

    Args:
        named: The data set.
        root: Folder of the data sets; need not exist.

    Returns:
        "present", "present: test" (or train, of a set that has both), "downloadable" (by torchvision), or "by hand".

    Example:
        >>> status(NAMED_SETS["mnist"], Path("nowhere"))
        'downloadable'
    """
    parts = named.present(root)
    if parts:
        return "present" if len(parts) == len(named.files) else f"present: {parts[0]}"
    return "downloadable" if named.torchvision and TORCHVISION_SETS[named.torchvision].downloads else "by hand"


def _count(images: int | None) -> str:
    return "–" if images is None else f"{images:,}"
