"""What Flower sends to stations carries settings and no code, and is told from what does."""

import io
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from flwr.supercore.object_ref import load_app

from agent.fl.app import COMPONENTS, is_ours, pyproject, write_app

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def fab() -> bytes:
    """As `flwr run .` and `flwr build` make it of the repository; without walking through its environment."""
    parts = ("*", "agent/**/*", "policies/**/*", "docs/*", "configs/**/*", "tests/fl/**/*")
    files = {path.relative_to(REPOSITORY).as_posix(): path for part in parts for path in REPOSITORY.glob(part)}
    return build_fab_from_files({name: path for name, path in files.items() if path.is_file()})[0]


def members(fab: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(fab)) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def test_the_repositorys_app_is_small_and_carries_no_code(fab: bytes) -> None:
    assert is_ours(fab)
    assert set(members(fab)) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert len(fab) < 20_000


def test_an_installed_package_can_make_it_without_the_repository(tmp_path: Path) -> None:
    folder = write_app(tmp_path / "app")
    made = build_fab_from_disk(folder)
    assert is_ours(made)
    whole = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    mine = tomllib.loads(pyproject())
    assert mine["tool"]["flwr"]["app"] == whole["tool"]["flwr"]["app"]
    assert mine["project"]["version"] == whole["project"]["version"]


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("agent/fl/client_app.py", lambda _: "import os"),
        ("agent/__init__.py", lambda _: ""),
        ("sitecustomize.py", lambda _: ""),
        ("LICENSE", lambda _: None),
        ("pyproject.toml", lambda text: change(text, "agent.fl.client_app:app", "os:system")),
        ("pyproject.toml", lambda text: change(text, 'name = "so-agent"', 'name = "other"')),
        ("pyproject.toml", lambda text: change(text, 'version = "0.1.0"', 'version = "../../x"')),
        ("pyproject.toml", lambda text: change(text, 'publisher = "so-agent"', 'publisher = "../x"')),
        ("pyproject.toml", lambda _: "not toml ="),
        ("pyproject.toml", lambda _: "#" * 2_000_000),
    ],
)
def test_what_could_run_other_code_is_not_ours(fab: bytes, file: str, spoil: Any) -> None:
    files = members(fab)
    new = spoil(files.get(file, b"").decode())
    if new is None:
        del files[file]
    else:
        files[file] = new.encode()
    assert not is_ours(packed(files))


def test_what_is_no_bundle_is_not_ours(fab: bytes) -> None:
    assert not is_ours(b"")
    assert not is_ours(fab[: len(fab) // 2])
    twice = io.BytesIO(fab)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as file:
        file.writestr("pyproject.toml", "")
    assert not is_ours(twice.getvalue())


def test_flower_loads_the_installed_app_from_a_folder_without_code(tmp_path: Path) -> None:
    """Contract with flwr 1.42: components are looked for in the app's folder first, then where Python looks."""
    for reference in COMPONENTS.values():
        assert load_app(reference, RuntimeError, write_app(tmp_path / "app")) is not None


@pytest.mark.parametrize("module", ["app", "layout", "adapter", "exchange", "settings", "allowed", "dataset", "base"])
def test_the_daemon_can_ask_what_a_round_costs_without_torch_or_flwr(module: str) -> None:
    code = (
        f"import sys, agent.fl.{module}\n"
        "heavy = {'torch', 'lerobot', 'flwr', 'pyarrow', 'datasets'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_server_needs_no_torch() -> None:
    code = "import sys, agent.fl.server_app; sys.exit('torch' in sys.modules or 'lerobot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
