"""A real Chromium before a station that acts as if: real agent, real recorder, real HTTP process, no arm."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from agent.api.local import Client
from agent.config import StationConfig
from tests.station.live import ROOT, free_ports, wait_for
from tests.web.play import MARK, make_config

LEASE_S = 1.0
"""Two times what a station gives by default: a browser that starts takes all cores of a small machine."""

START_S = 150.0
WAIT_MS = 30_000
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NONE = "NOT TESTED: the operator page. No Chromium was found; install one (Debian: apt install chromium)."

expect.set_options(timeout=WAIT_MS)


class Playing:
    """The station, and what a test may do to it."""

    def __init__(self, folder: Path) -> None:
        [port] = free_ports(1)
        self.config: StationConfig = make_config(folder, port, lease_s=LEASE_S)
        self.url = f"http://127.0.0.1:{port}"
        self.agent = Client(self.config.paths.agent_socket)
        self.log = folder / "play.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.web.play", str(folder), str(port), str(LEASE_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", MARK: str(folder)},
        )
        self._until("ready")

    def tell(self, order: str) -> None:
        """Make something go wrong, or right again; see `tests.web.play`."""
        assert self._process.stdin
        self._process.stdin.write(f"{order}\n".encode())
        self._process.stdin.flush()
        self._until("done")

    def _until(self, word: str) -> None:
        assert self._process.stdout
        line = self._process.stdout.readline().decode()
        assert line.startswith(word), self.log.read_text()[-3000:]

    def status(self) -> dict[str, Any]:
        return self.agent.call("status")

    def wait_mode(self, *modes: str) -> dict[str, Any]:
        return wait_for(
            f"mode {' or '.join(modes)}",
            lambda: status if (status := self.status())["mode"] in modes else None,
            WAIT_MS / 1000,
        )

    def calm(self) -> None:
        """Idle, nothing recorded, nobody in control."""
        for order in ("resume", "thaw front", "thaw wrist", "verified"):
            self.tell(order)
        status = self.status()
        if status["task"]:
            self.agent.call("task.stop")
        if status["recording"]:
            self.agent.call("record.discard")
        if status["mode"] in ("estop", "fault"):
            self.agent.call("reset")
        self.agent.call("release")  # as this machine's operator, who takes control from whoever has it
        self.wait_mode("idle")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="package")
def shared_station() -> Iterator[Playing]:
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    try:
        with contextlib.closing(Playing(folder)) as playing:
            yield playing
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def station(shared_station: Playing) -> Playing:
    shared_station.calm()
    return shared_station


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        warnings.warn(NONE, stacklevel=1)  # stands in the summary even where skips are not shown
        pytest.skip(NONE)
    with sync_playwright() as playwright:
        # Without its own sandbox, which a container's root may not use; the page under test is our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A browser of somebody's own. Whatever the page complains about fails the test."""

    def __init__(self, browser: Browser, station: Playing, **how: Any) -> None:
        self.context: BrowserContext = browser.new_context(**how)
        self.context.set_default_timeout(WAIT_MS)
        self.context.set_default_navigation_timeout(WAIT_MS)
        self.station = station
        self.complaints: list[str] = []
        self.expected: tuple[str, ...] = ()

    def open(self, path: str = "/", ready: bool = True) -> Page:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.goto(f"{self.station.url}{path}")
        if ready:
            page.wait_for_selector("body[data-ready]")
        return page

    def close(self) -> None:
        self.context.close()
        unexpected = [each for each in self.complaints if not any(word in each for word in self.expected)]
        assert unexpected == []


@pytest.fixture
def visit(chromium: Browser, station: Playing) -> Iterator[Any]:
    """Makes visitors; keyword arguments are a browser context's."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(contextlib.closing(Visitor(chromium, station, **how)))


@pytest.fixture
def http(station: Playing) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=station.url, timeout=30) as http:
        yield http
