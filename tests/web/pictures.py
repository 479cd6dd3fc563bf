"""The pictures of docs/page.md: the real page before the virtual station.

python -m tests.web.pictures [FOLDER]
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.station.live import ROOT, LiveStation, free_ports, wait_for
from tests.web.conftest import NAMES, PHONE
from tests.web.test_live_station import served, url

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PICTURE_S = 3.0
TIMEOUT_MS = 90_000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    where = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    [port] = free_ports(1)
    settings = {"port": port, "lease_s": 10.0, "preview_width": 640}
    station = LiveStation(where, http=settings, recording__max_repeat_pct=100)
    path = next(found for name in NAMES if (found := shutil.which(name)))
    try:
        station.start_virtual("--seed", "1", "--disc", "red", "--disc", "blue")
        station.start_agent()
        wait_for("the page is served", lambda: served(url(station)), 60.0)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            take(browser, station, folder)
            browser.close()
    finally:
        station.close()
        shutil.rmtree(where, ignore_errors=True)


def take(browser: Browser, station: LiveStation, folder: Path) -> None:
    desk = opened(browser, station, color_scheme="light", **DESKTOP)
    phone = opened(browser, station, color_scheme="dark", **PHONE)
    station.inject(operator="pause")
    desk.get_by_role("button", name="Start teleop").click()
    desk.wait_for_selector('#mode-name:text-is("Teleop")')
    station.inject(operator="resume")
    desk.get_by_label("What does the arm do?").fill("touch both discs")
    desk.get_by_role("button", name="Record", exact=True).click()
    wait_for("some seconds of frames", lambda: seconds(station) > 6, 60.0)
    shoot(desk, folder / "page-recording.png")
    desk.get_by_role("button", name="Keep: success").click()
    desk.wait_for_selector(".notice")
    desk.get_by_role("button", name="Stop teleop").click()
    desk.wait_for_selector('#mode-name:text-is("Hold")')
    desk.get_by_role("button", name="Give back").click()
    phone.get_by_role("button", name="Start teleop").tap()
    phone.wait_for_selector('#mode-name:text-is("Teleop")')
    phone.get_by_label("What does the arm do?").fill("touch both discs")
    phone.get_by_role("button", name="Record", exact=True).tap()
    wait_for("some seconds of frames", lambda: seconds(station) > 6, 60.0)
    shoot(phone, folder / "page-phone.png")
    phone.get_by_role("button", name="Keep: success").tap()
    phone.wait_for_selector(".notice")
    dark = opened(browser, station, color_scheme="dark", **DESKTOP)
    dark.goto(f"{url(station)}/#/episodes/0")
    dark.wait_for_selector("video")
    dark.get_by_role("button", name="Play").click()
    dark.wait_for_timeout(PICTURE_S * 1000)
    dark.get_by_role("button", name="Pause").click()
    shoot(dark, folder / "page-episode.png")
    phone.locator("#stop").tap()
    phone.wait_for_selector(".alarm[data-tone=good]")
    shoot(phone, folder / "page-stopped.png")


def opened(browser: Browser, station: LiveStation, **how: Any) -> Page:
    page = browser.new_page(**how)
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(url(station))
    page.wait_for_selector(".camera[data-drawn]")
    return page


def seconds(station: LiveStation) -> float:
    return float(((station.status() or {}).get("recording") or {}).get("seconds", 0))


def shoot(page: Page, path: Path) -> None:
    page.bring_to_front()
    page.wait_for_timeout(PICTURE_S * 1000)  # pictures that are as fresh as a person sees them
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
