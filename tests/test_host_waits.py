"""Host waits of public calls on a device are those that docs/host_waits.md states."""

import re
from pathlib import Path

import pytest
import torch

import fastood
from tests.emulation.device import emulated_cuda
from tests.emulation.waits import count_host_waits
from tests.support.host_wait_calls import calls
from tests.support.one_process import one_process

PAGE = Path(fastood.__file__).parents[1] / "docs" / "host_waits.md"
ROW = re.compile(r"\| `(?P<call>[^`]+)` \| (?P<waits>\d+) \| (?P<reason>.*?) *\|")


def stated() -> dict[str, tuple[int, str]]:
    """Waits and reasons of the page, by call."""
    rows = [ROW.fullmatch(line) for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert all(rows), "a row of the page is not: | `call` | number | reason |"
    found = {row["call"]: (int(row["waits"]), row["reason"]) for row in rows if row}
    assert len(found) == len(rows), "a call has two rows"
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_page_states_what_every_call_waits_for(tmp_path: Path) -> None:
    counted: dict[str, int] = {}
    causes = ""
    # The inputs are the same in every run: how many values tie or are undefined can decide whether a call waits.
    with torch.random.fork_rng(devices=[]), emulated_cuda(), one_process():
        torch.random.default_generator.manual_seed(0)
        for of_package in calls(tmp_path).values():
            for name, call in of_package.items():
                torch.cuda.synchronize()  # the device has passed the steps before
                with count_host_waits() as waits:
                    call()
                counted[name] = len(waits)
                causes += f"{name}\n{waits}\n"
    page = stated()
    assert {name: waits for name, (waits, _) in page.items()} == counted, causes
    unexplained = [name for name, (waits, reason) in page.items() if waits and not reason]
    assert not unexplained, f"docs/host_waits.md does not say why these wait: {unexplained}"
