"""Output of detector results: tables in the terminal, and files in the run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastood.common.files import write_atomically
from fastood.train.report.detector_figure import detectors_figure
from fastood.train.report.detector_table import detector_tables, notes
from fastood.train.report.style import png
from fastood.train.report.table_layout import open_console, print_tables
from fastood.train.run_folder import RunFolder


def print_detectors(document: Mapping[str, Any]) -> None:
    """Print the tables of each arm and the notes on them, as wide as the terminal, COLUMNS or 110 columns."""
    console = open_console()
    print_tables(detector_tables(document, width=console.width))
    for line in notes(document):
        console.print(line, markup=False, highlight=False)


def write_detectors(folder: RunFolder, document: Mapping[str, Any]) -> list[Path]:
    """Write detectors.json, and detectors.png if an arm has any detector.

    Args:
        folder: Folder of the run.
        document: Contents of detectors.json.

    Returns:
        Paths of the files.
    """
    written = []
    if any(arm["detectors"] for arm in document["arms"].values()):
        written.append(folder.path / "detectors.png")
        write_atomically(written[-1], png(detectors_figure(document)))
    written.append(folder.path / "detectors.json")
    write_atomically(written[-1], (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    return written
