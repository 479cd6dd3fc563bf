"""The inference benchmark: its arithmetic, and that it runs from end to end with a tiny policy."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.inference_bench.table import HEAD, markdown, row

JOINTS = (0.5, 0.01, 0.0, 1.234, 3e-5, 0.1)


def profile(chunk: float) -> dict[str, float]:
    return {"chunk": chunk, "vision": chunk / 2, "prefix": chunk / 10, "step": chunk / 100, "cpu": chunk * 0.9}


def test_a_chunk_is_compared_with_stock_s_chunk_of_the_same_round() -> None:
    """A host that slows down in the middle slows both sides, and the ratio stays."""
    stock = [profile(chunk) for chunk in (8.0, 24.0, 8.0)]
    mine = [profile(chunk) for chunk in (2.0, 6.0, 2.0)]
    found = row("exact", 1, mine, stock, JOINTS)
    assert found.ratio == found.cpu_ratio == 4.0
    assert found.ms["chunk"] == 2000.0
    assert found.spread == 3.0


def test_a_side_that_was_timed_once_is_compared_with_the_first_round() -> None:
    found = row("bf16", 1, [profile(16.0)], [profile(8.0), profile(80.0)], JOINTS)
    assert (found.ratio, found.chunks) == (0.5, 1)


def test_the_table_has_a_column_for_each_cell() -> None:
    one = row("exact", 2, [profile(0.5)], [profile(1.0)], JOINTS)
    assert len(one.cells) == len(HEAD)
    assert one.cells[:7] == ("exact", "2", "250", "50.0", "5.0", "500", "2.00x")
    assert one.cells[-6:] == ("0.50", "0.01", "0", "1.23", "3e-05", "0.10")
    assert markdown([one]).count("|") == 3 * (len(HEAD) + 1)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.inference", "--quick", "--repeats", "1", "--threads", "1"]
    subprocess.run([*command, "--markdown", str(file)], check=True, timeout=110, capture_output=True)
    table = file.read_text()
    for engine in ("lerobot fp32", "exact", "bf16", "int8"):
        assert f"| {engine} | 1 |" in table
