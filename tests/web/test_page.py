"""What people do with the page, in a real browser."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from agent.api.http.access.tokens import Role, TokenStore
from tests.station.live import wait_for
from tests.web.conftest import LEASE_S, PHONE, Playing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VIEWS = ("operate", "episodes", "learning", "events", "station")
REFUSED = "status of 409"
AWAY = {"X-Forwarded-For": "192.0.2.7"}
"""A browser that comes through a proxy, and so from another machine."""


def mode(page: Page, name: str) -> None:
    expect(page.locator("#mode-name")).to_have_text(name)


def stopped(page: Page) -> None:
    """The page says so, and how long it took."""
    said = page.locator(".alarm[data-tone=good]")
    expect(said).to_be_visible()
    expect(said).to_contain_text("Read back from the servos")


def teleop(page: Page) -> None:
    page.get_by_role("button", name="Start teleop").click()
    mode(page, "Teleop")


def test_from_the_first_visit_to_a_recorded_episode_and_back(visit: Any, station: Playing) -> None:
    page = visit().open()
    mode(page, "Idle")
    expect(page.locator(".camera[data-drawn]")).to_have_count(2)
    expect(page.get_by_role("button", name="Record", exact=True)).to_be_disabled()
    teleop(page)
    expect(page.locator("#who")).to_contain_text("You have control")
    page.get_by_label("What does the arm do?").fill("pick up the red cube")
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.locator(".big-time")).to_be_visible()
    wait_for("two seconds of frames", lambda: (station.status()["recording"] or {}).get("frames", 0) > 60)
    page.get_by_role("button", name="Keep: success").click()
    notice = page.locator(".notice").filter(has_text="is kept")
    notice.get_by_role("button", name="Look at it").click()

    # Both cameras show the episode, in step, and its joints are drawn.
    videos = page.locator("video")
    expect(videos).to_have_count(2)
    expect(page.locator("#player-title")).to_contain_text("pick up the red cube")
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".time")).not_to_contain_text("0:00.0 /")
    expect(page.locator(".plot")).to_have_count(6)
    expect(page.get_by_role("button", name="Success")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Failure").click()
    expect(page.get_by_role("button", name="Failure")).to_have_attribute("aria-pressed", "true")
    [episode] = station.agent.call("episodes.list")["episodes"]  # the first test of these: there was none before
    assert (episode["task"], episode["success"]) == ("pick up the red cube", False)

    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".episode-line")).to_have_count(0)
    assert station.agent.call("episodes.list")["episodes"] == []
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".episode-line")).to_have_count(1)
    assert len(station.agent.call("episodes.list")["episodes"]) == 1


def test_the_stop_works_from_every_view_whoever_has_control_and_under_load(
    visit: Any, station: Playing, http: httpx.Client
) -> None:
    """Four more pages with all their pictures and streams; the arm moves for one of them, another one stops it."""
    mover = visit()
    moving = mover.open()
    others = [visit().open() for _ in range(3)]
    page = visit().open()
    for view in VIEWS:
        if view == "operate":
            teleop(moving)
        else:
            moving.get_by_role("button", name="Start teleop").click()
            mode(moving, "Teleop")
        page.goto(f"{station.url}/#/{view}")
        stop = page.locator("#stop")
        expect(stop).to_be_in_viewport(ratio=1)
        if view in ("episodes", "events"):
            page.keyboard.press("Space")
        elif view == "learning":
            page.keyboard.press("Escape")
        else:
            stop.click()
        stopped(page)
        assert station.status()["mode"] == "estop"
        for other in (*others, moving):
            mode(other, "Stopped")
        moving.get_by_role("button", name="Reset…").click()
        moving.locator("dialog").get_by_role("button", name="It is safe: reset").click()
        mode(page, "Hold")


def test_the_stop_works_in_browsers_of_some_years_ago(visit: Any, station: Playing) -> None:
    visitor = visit(**PHONE)
    visitor.context.add_init_script("delete AbortSignal.any; delete AbortSignal.timeout; delete Iterator.prototype.map")
    page = visitor.open()
    teleop(page)
    page.locator("#stop").tap()
    stopped(page)
    assert station.status()["mode"] == "estop"


SLOW_STATUS = """
const listen = EventSource.prototype.addEventListener;
EventSource.prototype.addEventListener = function (kind, act) {
  return listen.call(this, kind, kind === "status" ? (told) => setTimeout(() => act(told), 1000) : act);
};
"""


def test_a_verified_stop_stays_said_while_the_status_is_behind(visit: Any, station: Playing) -> None:
    visitor = visit()
    visitor.context.add_init_script(SLOW_STATUS)
    page = visitor.open()
    mode(page, "Idle")
    page.locator("#stop").click()
    stopped(page)
    mode(page, "Stopped")
    stopped(page)
    station.agent.call("reset")
    expect(page.locator(".alarm[data-tone=good]")).to_be_hidden()


def test_one_press_of_the_stop_sends_one(visit: Any, station: Playing) -> None:
    page = visit().open()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/estop") else None)
    page.locator("#stop").hover()
    page.mouse.down()
    stopped(page)
    page.mouse.up()
    page.locator("#stop").focus()
    assert len(sent) == 1
    # A second later it is another press.
    wait_for("another one", lambda: page.keyboard.press("Enter") or len(sent) > 1, 5.0)


def test_a_stop_arrives_while_every_core_is_busy(visit: Any, station: Playing) -> None:
    page = visit().open()
    teleop(page)
    cores = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        page.keyboard.press("Space")
        stopped(page)
        assert station.status()["mode"] == "estop"
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_session_with_the_keyboard_alone(visit: Any, station: Playing) -> None:
    page = visit().open()
    page.keyboard.press("t")
    mode(page, "Teleop")
    page.get_by_label("What does the arm do?").fill("tidy up the table")  # an R or a T in a text is a letter
    mode(page, "Teleop")
    page.keyboard.press("Tab")
    page.keyboard.press("r")
    expect(page.locator(".big-time")).to_be_visible()
    wait_for("a second of frames", lambda: (station.status()["recording"] or {}).get("frames", 0) > 30)
    page.keyboard.press("R")
    expect(page.locator(".notice").filter(has_text="is kept")).to_be_visible()
    page.keyboard.press("t")
    mode(page, "Hold")
    for key, view in zip("2345", VIEWS[1:], strict=True):
        page.keyboard.press(key)
        expect(page.locator(f".{view}")).to_be_visible()

    episode = station.agent.call("episodes.list")["episodes"][-1]
    assert (episode["task"], episode["success"]) == ("tidy up the table", True)
    page.goto(f"{station.url}/#/episodes/{episode['episode']}")
    expect(page.locator("video")).to_have_count(2)
    time_line = page.locator(".time")
    expect(time_line).to_contain_text("0:00.0 /")
    for _ in range(6):  # frames of a thirtieth of a second
        page.keyboard.press("ArrowRight")
    expect(time_line).to_contain_text("0:00.2 /")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(time_line).to_contain_text("0:00.1 /")
    page.keyboard.press("k")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("k")
    # Beside a question, keys ask for nothing but a stop.
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("1")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    stopped(page)
    assert len(station.agent.call("episodes.list")["episodes"]) > 0


def test_an_episode_is_recorded_with_a_thumb_on_a_phone(visit: Any, station: Playing) -> None:
    page = visit(**PHONE).open()
    stop = page.locator("#stop")
    page.get_by_role("button", name="Start teleop").tap()
    mode(page, "Teleop")
    page.get_by_label("What does the arm do?").fill("wipe the table")
    expect(stop).to_be_in_viewport(ratio=1)  # wherever the form has scrolled to
    page.get_by_role("button", name="Record", exact=True).tap()
    wait_for("a second of frames", lambda: (station.status()["recording"] or {}).get("frames", 0) > 30)
    expect(stop).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Keep: failure").tap()
    page.locator(".notice").filter(has_text="is kept").get_by_role("button", name="Look at it").tap()
    expect(page.locator("#player-title")).to_contain_text("wipe the table")
    expect(page.get_by_role("button", name="Failure")).to_have_attribute("aria-pressed", "true")
    expect(stop).to_be_in_viewport(ratio=1)
    stop.tap()
    stopped(page)
    assert station.status()["mode"] == "estop"
    assert station.agent.call("episodes.list")["episodes"][-1]["success"] is False


def test_an_episode_is_not_thrown_away_by_a_slip_of_the_finger(visit: Any, station: Playing) -> None:
    page = visit(**PHONE).open()
    page.get_by_role("button", name="Start teleop").tap()
    mode(page, "Teleop")
    page.get_by_label("What does the arm do?").fill("stack the cups")
    page.get_by_role("button", name="Record", exact=True).tap()
    expect(page.locator(".big-time")).to_be_visible()
    episodes = len(station.agent.call("episodes.list")["episodes"])
    page.get_by_role("button", name="Discard…").tap()
    page.locator("dialog").get_by_role("button", name="Cancel").tap()
    assert station.status()["recording"]
    page.get_by_role("button", name="Discard…").tap()
    page.locator("dialog").get_by_role("button", name="Throw it away").tap()
    expect(page.locator(".notice").filter(has_text="Discarded")).to_be_visible()
    assert len(station.agent.call("episodes.list")["episodes"]) == episodes
    assert station.status()["recording"] is None


def test_a_stop_that_the_servos_do_not_confirm_says_to_cut_the_power(visit: Any, station: Playing) -> None:
    visitor = visit()
    visitor.expected = ("status of 503",)
    page = visitor.open()
    station.tell("unverified")
    page.locator("#stop").click()
    alarm = page.locator(".alarm[data-tone=bad]")
    expect(alarm).to_contain_text("switch off the arm's power supply now")
    station.tell("verified")
    stopped(page)


def test_a_lost_connection_is_said_and_the_stop_arrives_when_it_is_back(visit: Any, station: Playing) -> None:
    visitor = visit()
    visitor.expected = ("Failed to load resource", "net::ERR", REFUSED)
    page = visitor.open()
    teleop(page)
    station.tell("pause")  # the HTTP process answers nothing any more; the arm's process goes on
    station.wait_mode("hold")  # the page's control ended with its silence
    expect(page.locator("body")).to_have_attribute("data-link", "stale")
    expect(page.locator(".banner")).to_contain_text("No connection")
    expect(page.locator(".camera .badge").first).to_contain_text("No connection")
    page.keyboard.press("Space")
    expect(page.locator(".alarm[data-tone=bad]")).to_contain_text("switch off the arm's power supply now")
    station.tell("resume")
    stopped(page)
    station.wait_mode("estop")
    expect(page.locator("body")).to_have_attribute("data-link", "fresh")
    expect(page.locator(".banner")).to_be_hidden()


def test_the_arm_holds_when_the_page_is_closed(visit: Any, station: Playing) -> None:
    page = visit().open()
    teleop(page)
    began_s = time.monotonic()
    page.close(run_before_unload=True)
    station.wait_mode("hold")
    assert time.monotonic() - began_s < LEASE_S + 2
    assert station.status()["lease"] is None


def test_control_passes_from_one_page_to_another(visit: Any, station: Playing) -> None:
    first_visitor, second_visitor = visit(), visit(**PHONE)
    first_visitor.expected = (REFUSED,)
    first, second = first_visitor.open(), second_visitor.open()
    teleop(first)
    expect(second.locator("#who")).to_contain_text("has control")
    second.get_by_role("button", name="Take over", exact=True).tap()
    dialog = second.locator("dialog")
    expect(dialog).to_contain_text("It holds as soon as control is yours")
    dialog.get_by_role("button", name="Take over").tap()
    expect(second.locator("#who")).to_contain_text("You have control")
    mode(second, "Hold")
    expect(first.locator(".notice")).to_contain_text("You have no control any more")
    second.get_by_role("button", name="Give back").tap()
    expect(first.locator("#who")).to_contain_text("Nobody has control")


def test_a_camera_that_freezes_is_marked(visit: Any, station: Playing) -> None:
    page = visit().open()
    wrist = page.locator(".camera").filter(has_text="wrist")
    expect(wrist).to_have_attribute("data-state", "good")
    station.tell("freeze wrist")
    expect(wrist.locator(".badge")).to_contain_text("Frozen")
    expect(page.locator(".camera").filter(has_text="front").locator(".badge")).to_be_hidden()
    station.tell("thaw wrist")
    expect(wrist.locator(".badge")).to_be_hidden()


def test_a_task_shows_how_well_the_policy_keeps_up(visit: Any, station: Playing) -> None:
    page = visit().open()
    page.get_by_label("What shall it do?").fill("touch the red disc")
    page.get_by_label("Policy").select_option("pick-cube")
    page.get_by_role("button", name="Start the task").click()
    mode(page, "Executing")
    card = page.locator("section").filter(has=page.locator("#task-title"))
    for words in ("touch the red disc", "pick-cube", "31 actions ahead", "121 ms usual"):
        expect(card).to_contain_text(words)
    page.get_by_role("button", name="Take over with the leader").click()
    mode(page, "Teleop")
    expect(card).to_contain_text("A person has the arm")
    page.get_by_role("button", name="Stop: failure").click()
    mode(page, "Hold")
    expect(card).to_contain_text("Before: touch the red disc")


def test_a_link_with_a_token_lets_a_phone_in_and_leaves_no_trace(visit: Any, station: Playing) -> None:
    _, secret = TokenStore(station.config.paths.access).create("phone", Role.READ)
    visitor = visit(**PHONE, extra_http_headers=AWAY)
    visitor.expected = ("status of 401",)
    page = visitor.open(ready=False)
    expect(page.get_by_role("heading", name="This station wants to know you")).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()
    page.get_by_label("Token").fill("so_1_2")
    page.get_by_role("button", name="Open the station").click()
    expect(page.get_by_role("alert").filter(has_text="not a token")).to_be_visible()
    page.close()
    page = visitor.open(f"/#token={secret}")
    mode(page, "Idle")
    assert secret not in page.url
    expect(page.locator("#who")).to_contain_text("You may look and stop")
    expect(page.get_by_role("button", name="Take control")).to_be_hidden()
    expect(page.get_by_role("button", name="Start teleop")).to_be_disabled()
    page.locator("#stop").tap()
    stopped(page)
    assert station.status()["reason"] == "STOP on the page (phone)"
    TokenStore(station.config.paths.access).revoke("phone")


def test_consent_is_asked_for_before_anything_is_shared(visit: Any, station: Playing) -> None:
    page = visit().open("/#/learning")
    expect(page.get_by_role("heading", name="What leaves the house")).to_be_visible()
    box = page.get_by_label("drawer")
    box.click()
    page.locator("dialog").get_by_role("button", name="Cancel").click()
    expect(box).not_to_be_checked()
    box.click()
    page.locator("dialog").get_by_role("button", name="I agree").click()
    expect(page.locator("label").filter(has_text="drawer")).to_contain_text("since")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    box.click()
    expect(page.locator("label").filter(has_text="drawer")).to_contain_text("not used")


def test_diagnostics_are_downloaded(visit: Any, tmp_path: Path) -> None:
    page = visit(accept_downloads=True).open("/#/station")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download diagnostics").click()
    download.value.save_as(tmp_path / "d.zip")
    assert (tmp_path / "d.zip").read_bytes()[:2] == b"PK"


def test_events_are_told_newest_first_and_as_they_come(visit: Any, station: Playing) -> None:
    page = visit().open("/#/events")
    expect(page.locator(".event").first).to_be_visible()
    station.agent.call("estop", {"cause": "hand in the way"})
    expect(page.locator(".event").first).to_contain_text("hand in the way")
    page.get_by_label("Show").select_option("episode")
    expect(page.locator(".event").filter(has_text="hand in the way")).to_have_count(0)


@pytest.mark.parametrize("how", [PHONE, {"viewport": {"width": 1280, "height": 800}}], ids=["phone", "desktop"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_fits_the_screen_can_be_touched_and_read(visit: Any, how: dict[str, Any], theme: str) -> None:
    """Evaluating scripts needs a page without its content policy; every other test has it."""
    page = visit(**how, color_scheme=theme, bypass_csp=True).open()
    for view in VIEWS:
        page.goto(page.url.partition("#")[0] + f"#/{view}")
        page.wait_for_selector(f".{view}")
        expect(page.locator("#stop")).to_be_in_viewport(ratio=1)
        found = page.evaluate(LOOK)
        assert found["seen"] > 10, f"{view} shows next to nothing"
        assert found["wide"] == 0, f"{view} scrolls sideways by {found['wide']} px"
        assert found["small"] == [], view
        assert found["nameless"] == [], view
        assert found["faint"] == [], view


LOOK = """() => {
  const shown = (e) => e.checkVisibility() && e.getBoundingClientRect().width > 1;
  const name = (e) => (e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent || "").trim();
  const about = (e) => `${e.tagName} ${e.className} ${name(e)}`.slice(0, 80);
  const controls = [...document.querySelectorAll("button, a[href], select, input, summary")].filter(shown);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const css = (c) => `rgb(${c.join(" ")})`;
  const behind = (e) => e ? rgb(getComputedStyle(e).backgroundColor, css(behind(e.parentElement))) : [255, 255, 255];
  const light = (c) => {
    const [r, g, b] = c.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (e) => {
    const back = behind(e), front = rgb(getComputedStyle(e).color, css(back));
    const [a, b] = [light(back), light(front)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const dim = (e) => { for (; e; e = e.parentElement) if (Number(getComputedStyle(e).opacity) < 1) return true; };
  const words = [...document.querySelectorAll("body *")].filter(
    (e) => shown(e) && !dim(e) && !e.closest(".camera, .clip, video, svg, select, .skip") &&
      [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return {
    seen: words.length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    small: controls.filter((e) => {
      const { width, height } = (e.closest("label.check") || e).getBoundingClientRect();
      return (Math.min(width, height) < 44 - 0.5) && e.type !== "checkbox" && !e.matches("p a, .skip, .tab");
    }).map(about),
    nameless: controls.filter((e) => !name(e)).map(about),
    faint: words.filter((e) => contrast(e) < 4.5).map((e) => `${contrast(e).toFixed(1)} ${about(e)}`),
  };
}"""
