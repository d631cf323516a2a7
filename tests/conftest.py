"""Devices and the rule that a GPU run cannot look green by skipping."""

import os
from collections.abc import Iterator

# A cached graph would hide a change of a fake kernel. Read when torch is imported.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pytest
import torch

REQUIRE_CUDA = os.environ.get("FASTOOD_REQUIRE_CUDA") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or REQUIRE_CUDA:
        return
    skip = pytest.mark.skip(reason="no GPU (FASTOOD_REQUIRE_CUDA=1 makes this a failure)")
    for item in items:
        if "needs_cuda" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """With FASTOOD_REQUIRE_CUDA=1 a CUDA test that skips, for whatever reason, has failed."""
    report = yield
    if REQUIRE_CUDA and "needs_cuda" in item.keywords and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, but FASTOOD_REQUIRE_CUDA=1: {report.longrepr}"
    return report


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, here and in processes that are started from here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without figures, which take longer than the training of tests."""
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
