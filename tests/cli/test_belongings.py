"""What root does for a service's station, whose account must be able to go on with it."""

import os
from pathlib import Path

import pytest
import yaml

from agent.errors import Exit
from tests.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
SERVICE = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another account")


@pytest.fixture
def state(short_dir: Path) -> Path:
    """A station's folder, of an account that is not root."""
    folder = short_dir / "state"
    folder.mkdir()
    os.chown(folder, SERVICE, SERVICE)
    values = yaml.safe_load((ROOT / "configs" / "so101" / "station.yaml").read_text())
    (short_dir / "station.yaml").write_text(yaml.safe_dump(values | {"state_dir": str(folder)}))
    return folder


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in folder.rglob("*")}


def test_what_root_makes_belongs_to_the_account_of_the_station(cli: Cli, state: Path) -> None:
    made = state / "policies" / "cube"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"")
    assert cli("token", "create", "phone", "-c", state.with_name("station.yaml")).code == Exit.DONE
    assert owners(state) == {SERVICE}


def test_also_when_it_went_wrong(cli: Cli, state: Path) -> None:
    (state / "half").write_text("")
    assert cli("token", "revoke", "nobody", "-c", state.with_name("station.yaml")).code == Exit.BAD_INPUT
    assert owners(state) == {SERVICE}


def test_nobody_is_given_what_a_link_leads_to(cli: Cli, state: Path) -> None:
    secret = state.with_name("secret")
    secret.write_text("root's own")
    (state / "soft").symlink_to(secret)
    (state / "folder").symlink_to(state.parent)
    os.link(secret, state / "hard")
    assert cli("token", "list", "-c", state.with_name("station.yaml")).code == Exit.DONE
    assert secret.stat().st_uid == 0
    assert state.parent.stat().st_uid == 0
    assert (state / "soft").lstat().st_uid == 0
