"""Health, metrics, diagnostics, policies, and the page's own files."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.api.http.diagnostics import HIDDEN, without_secrets
from agent.api.http.metrics import exposition
from agent.api.schemas import Status
from agent.config import StationConfig
from tests.cli.test_status import STATUS
from tests.http.conftest import Bench

ROOT = Path(__file__).resolve().parents[2]


async def test_health_says_that_the_agent_is_gone(bench: Bench, config: StationConfig) -> None:
    config.paths.agent_socket.unlink()
    answer = await bench.http.get("/healthz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not-running")


async def test_the_status_has_the_keys_that_are_described_and_no_other(bench: Bench) -> None:
    status = (await bench.http.get("/api/v1/status")).json()
    assert list(Status.model_validate(status).model_extra or {}) == []
    assert status.keys() == Status.model_fields.keys()


async def test_metrics_are_prometheus_text(bench: Bench) -> None:
    answer = await bench.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    modes = {sample.labels["mode"]: sample.value for sample in families["so_mode"].samples}
    assert modes["idle"] == 1
    assert sum(modes.values()) == 1
    assert families["so_torque_on"].samples[0].value == 0


def test_metrics_of_a_busy_station() -> None:
    text = exposition(STATUS | {"lease": None, "arm": STATUS["arm"] | {"ticks": 5}}).decode()
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["so_recording",] == 1
    assert values["so_camera_streaming", "front"] == 1
    assert values["so_episodes",] == 12
    assert any(name == "so_servo_temperature_celsius" for name, *_ in values)
    assert all(not name.endswith("_created") for name, *_ in values)


async def test_diagnostics_hold_what_a_helper_needs_and_no_secrets(bench: Bench) -> None:
    os.write(2, b"camera opened at rtsp://ada:pw@cam/1\n")
    answer = await bench.http.get("/api/v1/diagnostics")
    assert answer.headers["content-disposition"] == 'attachment; filename="so-agent-test.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name: archive.read(name).decode() for name in archive.namelist()}
    assert json.loads(found["status.json"])["mode"] == "idle"
    assert json.loads(found["events.json"])["events"]
    assert yaml.safe_load(found["config.yaml"])["station"] == "test"
    assert "fastapi" in json.loads(found["machine.json"])["packages"]
    assert f"camera opened at rtsp://{HIDDEN}@cam/1" in found["log.txt"]


async def test_diagnostics_come_without_an_agent_too(bench: Bench, config: StationConfig) -> None:
    config.paths.agent_socket.unlink()
    answer = await bench.http.get("/api/v1/diagnostics")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert "No agent answers" in json.loads(archive.read("status.json"))["problem"]


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"mqtt": {"username": "ada", "host": "b"}}, {"mqtt": {"username": HIDDEN, "host": "b"}}),
        ({"password_file": "/x"}, {"password_file": HIDDEN}),
        ({"options": {"url": "rtsp://ada:pw@cam/1"}}, {"options": {"url": f"rtsp://{HIDDEN}@cam/1"}}),
        ({"list": ["rtsp://a:b@c", 1, None]}, {"list": [f"rtsp://{HIDDEN}@c", 1, None]}),
    ],
)
def test_secrets_of_the_settings_are_hidden(setting: dict[str, Any], shown: dict[str, Any]) -> None:
    assert without_secrets(setting) == shown


async def test_policies_are_listed_and_chosen(bench: Bench, config: StationConfig) -> None:
    assert (await bench.http.get("/api/v1/policies")).json() == {"policies": []}
    answer = await bench.http.post("/api/v1/policies/nothing/use")
    assert answer.status_code == 404
    (config.paths.policies / "broken").mkdir(parents=True)
    [entry] = (await bench.http.get("/api/v1/policies")).json()["policies"]
    assert (entry["name"], entry["in_use"]) == ("broken", False)
    assert entry["problem"]
    answer = await bench.http.post("/api/v1/policies/broken/use")
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-input")


async def test_the_page_is_served_whole_and_nothing_else_is(bench: Bench) -> None:
    answer = await bench.http.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for name in ("js/main.js", "css/base.css", "icon.svg", "manifest.webmanifest"):
        assert f"/{name}" in answer.text
        found = await bench.http.get(f"/{name}")
        assert found.status_code == 200
        again = await bench.http.get(f"/{name}", headers={"If-None-Match": found.headers["etag"]})
        assert again.status_code == 304
    for path in ("/../config.yaml", "/js/../../schemas.py", "/%2e%2e/local.py", "/js", "/js/", "//etc/passwd", "/.env"):
        async with httpx.AsyncClient(base_url=bench.url) as http:
            assert (await http.get(path)).status_code == 404, path


def test_the_page_needs_no_network_and_no_build_step() -> None:
    """Everything that it loads lies beside it; modules import each other by relative names."""
    for path in (ROOT / "agent" / "api" / "web").rglob("*"):
        if path.suffix in (".js", ".css", ".html", ".webmanifest"):
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, path
            assert "innerHTML" not in text, path
            assert "eval(" not in text, path
