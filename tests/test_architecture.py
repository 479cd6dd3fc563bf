"""What may import what, and what must stay out of the processes that have to start fast and stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "lerobot", "mujoco", "cv2", "pandas", "datasets", "transformers", "flwr", "matplotlib")


def test_arrows_point_down() -> None:
    """The layers of pyproject.toml, checked by import-linter."""
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", ["agent.daemon", "agent.cli", "agent.station", "agent.nursery", "agent.session"])
def test_the_daemon_and_the_command_line_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []


def test_nothing_is_ever_unpickled() -> None:
    """Data from another process or machine is decoded into declared types; pickle would run its code."""
    for path in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & set(names), path


def test_no_file_names_a_registry_or_this_machine() -> None:
    """The lock works with whatever registry pip is set up for."""
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--hash=sha256:" in lock
    for line in lock.splitlines():
        assert line.startswith((" ", "#")) or "==" in line, line
