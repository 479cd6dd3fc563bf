"""The page before the virtual station: the servos' wire, the cameras and the daemon's own children are all there."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from agent.api.schemas import Status
from tests.station.live import LiveStation, free_ports, wait_for
from tests.web.conftest import WAIT_MS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LEASE_S = 1.0


@pytest.fixture(scope="module")
def live() -> Iterator[LiveStation]:
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    [port] = free_ports(1)
    station = LiveStation(folder, http={"port": port, "lease_s": LEASE_S}, recording__max_repeat_pct=100)
    try:
        station.start_virtual("--seed", "1")
        station.start_agent()
        wait_for("the page is served", lambda: served(url(station)), 60.0)
        yield station
    finally:
        station.close()
        shutil.rmtree(folder, ignore_errors=True)


def url(station: LiveStation) -> str:
    assert station.config.http
    return f"http://127.0.0.1:{station.config.http.port}"


def served(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/healthz").is_success
    return False


def test_an_episode_is_recorded_from_the_page_and_the_arm_holds_when_it_is_closed(
    live: LiveStation, chromium: Browser
) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(2 * WAIT_MS)
    page = context.new_page()
    page.goto(url(live))
    expect(page.locator(".camera[data-drawn]")).to_have_count(2, timeout=2 * WAIT_MS)
    live.inject(operator="pause")  # a leader that is kept still is reached
    page.get_by_role("button", name="Start teleop").click()
    expect(page.locator("#mode-name")).to_have_text("Teleop", timeout=2 * WAIT_MS)
    live.inject(operator="resume")
    page.get_by_label("What does the arm do?").fill("reach the disc")
    page.get_by_role("button", name="Record", exact=True).click()
    wait_for("two seconds of frames", lambda: (recording(live) or {}).get("frames", 0) > 60, 60.0)
    page.get_by_role("button", name="Keep: success").click()
    expect(page.locator(".notice").filter(has_text="is kept")).to_be_visible()
    [episode] = live.client.call("episodes.list")["episodes"]
    assert (episode["task"], episode["success"]) == ("reach the disc", True)
    # The page goes away, without a word, while the arm follows.
    gone_s = time.monotonic()
    context.close()
    live.wait_mode("hold")
    assert time.monotonic() - gone_s < LEASE_S + 2
    Status.model_validate(live.status())


def recording(live: LiveStation) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (live.status() or {}).get("recording")
    return found


def test_an_http_process_that_is_killed_comes_back_and_the_arm_does_not_notice(live: LiveStation) -> None:
    live.calm()
    live.teleop()
    before = live.wire()
    pid = live.child_pid("web")
    os.kill(pid, signal.SIGKILL)
    wait_for("another HTTP process serves", lambda: live.child_pid("web") != pid and served(url(live)), 60.0)
    status = live.status()
    assert status
    assert status["mode"] == "teleop"
    assert status["children"]["arm"]["restarts"] == 0
    assert len(live.wire(len(before))) > 0, "goals went on meanwhile"
    assert httpx.post(f"{url(live)}/api/v1/estop", json={}).json()["verified"] is True
    live.wait_mode("estop")
    live.client.call("reset")
