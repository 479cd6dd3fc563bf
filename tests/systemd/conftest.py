"""One machine with one station as its service, for all tests of this folder that need a systemd."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.systemd.bench import Bench
from tests.systemd.root import Unavailable


@pytest.fixture(scope="package")
def installed() -> Iterator[Bench]:
    """The machine with the station installed. Where that is not possible, tests are skipped, and loudly."""
    if os.geteuid() != 0:
        _skip("only root may boot a container")
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    bench: Bench | None = None
    try:
        bench = Bench(folder)
        bench.start()
    except Unavailable as error:
        if bench:
            bench.close()
        shutil.rmtree(folder, ignore_errors=True)
        _skip(str(error))
    assert bench
    try:
        bench.install()
        yield bench
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bench(installed: Bench) -> Bench:
    """The station running and idle, whatever the test before did."""
    installed.calm()
    return installed


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """A run that leaves them out says so."""
    if left := sum(item.get_closest_marker("booted") is not None for item in items):
        reason = f"NOT TESTED in this run under a real systemd: {left} tests. `make test-service` is the run for them."
        warnings.warn(reason, stacklevel=2)


def _skip(why: str) -> None:
    reason = f"NOT TESTED under a real systemd: {why}"
    warnings.warn(reason, stacklevel=2)  # stands in the summary even where skips are not shown
    pytest.skip(reason)
