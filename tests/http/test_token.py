"""`so-agent token`: shown once, as text, as a link and as a picture for a phone."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from agent.api.http.access.link import link, qr_lines
from agent.api.http.access.tokens import TokenStore
from agent.cli import execute
from agent.config import Http, load
from agent.errors import Exit
from tests.station.live import ROOT

CELL = re.compile(r"\x1b\[(\d+);(\d+)m▀")


@pytest.fixture
def station(tmp_path: Path) -> Path:
    values = yaml.safe_load((ROOT / "configs" / "so101" / "station.yaml").read_text())
    values |= {"state_dir": str(tmp_path / "state"), "http": {"port": 8642, "names": ["arm.local"]}}
    file = tmp_path / "station.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_token_is_made_listed_and_revoked(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["token", "list", "-c", str(station)]) == Exit.DONE
    assert "this machine only" in capsys.readouterr().out
    assert execute(["token", "create", "phone", "--control", "--json", "-c", str(station)]) == Exit.DONE
    made = json.loads(capsys.readouterr().out)
    store = TokenStore(load(station).paths.access)
    token = store.check(made["token"])
    assert token
    assert (token.name, token.role) == ("phone", "control")
    assert made["link"] == f"http://arm.local:8642/#token={made['token']}"
    assert execute(["token", "list", "--json", "-c", str(station)]) == Exit.DONE
    listed = capsys.readouterr().out
    assert json.loads(listed) == [{"id": token.id, "name": "phone", "role": "control", "created_at": token.created_at}]
    assert execute(["token", "create", "phone", "-c", str(station)]) == Exit.BAD_INPUT
    assert "Choose another name" in capsys.readouterr().err
    assert execute(["token", "revoke", "phone", "-c", str(station)]) == Exit.DONE
    assert store.check(made["token"]) is None


def test_without_a_page_there_is_a_token_and_no_link() -> None:
    assert link(None, "so_1_2") is None
    assert link(Http(host="::1"), "so_1_2") == "http://[::1]:8642/#token=so_1_2"


def test_who_makes_a_token_is_told_when_nobody_could_use_it(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(station.read_text())
    tls = {"cert": "/etc/c.pem", "key": "/etc/k.pem"}
    everywhere = {"host": "0.0.0.0", "tls": tls}  # noqa: S104 - what a phone needs
    for name, http, note in (
        ("one", None, "add `http`"),
        ("two", {"port": 8642}, "Only this machine"),
        ("three", everywhere, "http.names"),
        ("four", everywhere | {"names": ["arm.local"]}, None),
    ):
        station.write_text(yaml.safe_dump(values | {"http": http}))
        assert execute(["token", "create", name, "-c", str(station)]) == Exit.DONE
        shown = capsys.readouterr().out
        assert "docs/page.md" not in shown if note is None else note in shown


def test_a_phone_can_read_the_picture() -> None:
    text = f"https://arm.local:8642/#token=so_01234567_{'x' * 43}"
    rows: list[list[bool]] = []
    for line in qr_lines(text):
        cells = CELL.findall(line)
        rows += [[upper == "97" for upper, _ in cells], [lower == "107" for _, lower in cells]]
    modules = np.array(rows, np.uint8) * 255
    picture = np.kron(modules, np.ones((8, 8), np.uint8))
    read, _, _ = cv2.QRCodeDetector().detectAndDecode(picture)
    assert read == text
