"""Who gets in, who does not, and what is kept of a token."""

import json
import os
import stat
from pathlib import Path

import httpx
import pytest

from agent.api.http.access.sessions import LIFETIME_S, Sessions
from agent.api.http.access.throttle import ATTEMPTS, MAX_ADDRESSES, WINDOW_S, Throttle
from agent.api.http.access.tokens import Role, TokenStore
from agent.clock import nanoseconds
from agent.errors import BadInput
from agent.messages import Drive
from tests.http.conftest import Bench

FOREIGN = "https://evil.example"


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.s = 1_000_000.0

    def now_ns(self) -> int:
        return nanoseconds(self.s)

    def wall_s(self) -> float:
        return self.s


# --- tokens ----------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "access"
    token, secret = TokenStore(folder).create("phone", Role.CONTROL)
    kept = "".join(path.read_text() for path in folder.iterdir())
    assert secret.rpartition("_")[2] not in kept
    assert secret not in kept
    assert TokenStore(folder).check(secret) == token
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_wrong_token_is_none(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)
    _, secret = store.create("phone", Role.READ)
    for wrong in (
        "",
        "so",
        "so__",
        secret[:-1],
        secret + "x",
        secret.replace("so_", "os_"),
        f"so_00000000_{secret}",
        "ü",
    ):
        assert store.check(wrong) is None, wrong


def test_a_token_that_is_revoked_elsewhere_is_gone_at_once(tmp_path: Path) -> None:
    here, elsewhere = TokenStore(tmp_path), TokenStore(tmp_path)
    token, secret = here.create("phone", Role.READ)
    assert elsewhere.check(secret) == token
    here.revoke("phone")
    assert elsewhere.check(secret) is None
    assert elsewhere.all() == ()
    with pytest.raises(BadInput, match="no token"):
        elsewhere.revoke("phone")


@pytest.mark.parametrize("name", ["", " ", "x" * 41, "a\nb", "phone"])
def test_names_of_tokens_are_short_printable_and_used_once(tmp_path: Path, name: str) -> None:
    store = TokenStore(tmp_path)
    store.create("phone", Role.READ)
    with pytest.raises(BadInput):
        store.create(name, Role.READ)


def test_a_file_of_tokens_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(BadInput, match="Cannot read"):
        TokenStore(tmp_path).check("so_00000000_x")


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another account")
def test_what_root_makes_for_a_service_can_be_read_by_the_service(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    _, secret = TokenStore(tmp_path / "access").create("phone", Role.READ)
    made = [tmp_path / "access", *(tmp_path / "access").iterdir()]
    assert {path.name for path in made} == {"access", "lock", "tokens.json"}
    assert {path.stat().st_uid for path in made} == {NOBODY}
    assert TokenStore(tmp_path / "access").check(secret)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_another_account_is_told_whose_tokens_they_are(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "state" / "access")
    store.create("phone", Role.READ)
    tmp_path.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        for ask in (store.all, lambda: store.create("display", Role.READ), lambda: store.revoke("phone")):
            with pytest.raises(BadInput, match="may not look into"):
                ask()
    finally:
        os.seteuid(0)


def test_a_session_ends_with_its_time_and_with_its_token(tmp_path: Path) -> None:
    clock, store = Clock(), TokenStore(tmp_path)
    token, _ = store.create("phone", Role.READ)
    sessions = Sessions(tmp_path, store, clock)
    cookie = sessions.begin(token)
    assert Sessions(tmp_path, store, clock).visitor(cookie) == token, "also after a restart"
    assert sessions.visitor(cookie[:-3] + "AAA") is None
    assert sessions.visitor("") is None
    clock.s += LIFETIME_S + 1
    assert sessions.visitor(cookie) is None
    clock.s -= LIFETIME_S
    assert sessions.visitor(cookie) == token
    store.revoke(token.id)
    assert sessions.visitor(cookie) is None


def test_wrong_tokens_make_wait_and_cost_no_memory() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(ATTEMPTS):
        assert throttle.wait_s("here") == 0
        throttle.failed("here")
    assert throttle.wait_s("here") == pytest.approx(WINDOW_S)
    assert throttle.wait_s("there") == 0
    clock.s += WINDOW_S
    assert throttle.wait_s("here") == 0
    for number in range(3 * MAX_ADDRESSES):
        throttle.failed(str(number))
    assert len(throttle._failures) == MAX_ADDRESSES


# --- on this machine ---------------------------------------------------------------------------------------


async def test_somebody_at_the_station_needs_no_token(bench: Bench) -> None:
    session = (await bench.http.get("/api/v1/session")).json()
    assert (session["name"], session["role"], session["local"], session["may_reset"]) == (
        "local user",
        "control",
        True,
        True,
    )


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "[::2]:80", ""])
async def test_a_name_that_was_made_to_point_here_is_refused(bench: Bench, host: str) -> None:
    """DNS rebinding: the browser believes to talk to evil.example, whose scripts may read the answer."""
    for path in ("/", "/api/v1/status", "/healthz", "/metrics", "/api/v1/openapi.json"):
        answer = await bench.http.get(path, headers={"Host": host})
        assert answer.status_code in (400, 403), path
        assert "idle" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": FOREIGN},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": FOREIGN, "Content-Type": "text/plain"},
    ],
)
async def test_other_web_pages_can_do_nothing(bench: Bench, headers: dict[str, str]) -> None:
    lease = await bench.take()
    for path in ("estop", "teleop/start", "lease", "session"):
        answer = await bench.http.post(f"/api/v1/{path}", json={}, headers=headers | lease)
        assert answer.status_code == 403, path
    assert (await bench.http.get("/api/v1/status", headers=headers)).status_code == 403
    assert bench.arm.drives == [Drive.LIMP]
    assert bench.arm.drive is Drive.LIMP


async def test_a_link_on_another_page_may_lead_here(bench: Bench) -> None:
    answer = await bench.http.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    assert answer.status_code == 200


async def test_whoever_comes_through_a_proxy_is_not_at_the_station(bench: Bench) -> None:
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
        answer = await bench.http.get("/api/v1/status", headers={header: "127.0.0.1"})
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_every_answer_carries_what_keeps_a_browser_safe(bench: Bench) -> None:
    for path in ("/", "/api/v1/status", "/nothing", "/js/main.js"):
        headers = (await bench.http.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


async def test_bodies_are_bounded(bench: Bench) -> None:
    async def endless() -> object:
        for _ in range(100):
            yield b"x" * 4096

    for content in ("x" * 100_000, endless()):
        answer = await bench.http.post("/api/v1/estop", content=content, headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"


# --- with a token ------------------------------------------------------------------------------------------


async def test_a_token_that_may_look_may_also_stop_and_nothing_else(bench: Bench, access: Path) -> None:
    _, secret = TokenStore(access).create("display", Role.READ)
    async with bench.as_token(secret) as http:
        assert (await http.get("/api/v1/status")).status_code == 200
        for path, body in (("lease", {}), ("teleop/start", {}), ("episodes/0/mark", {"success": True})):
            answer = await http.post(f"/api/v1/{path}", json=body)
            assert answer.status_code == 403, path
            assert answer.json()["code"] == "not-allowed"
        assert (await http.delete("/api/v1/episodes/0")).status_code == 403
        stopped = await http.post("/api/v1/estop", json={})
        assert stopped.json()["verified"] is True
    assert bench.arm.reason == "e-stop from a distance (display)"


async def test_an_e_stop_is_cleared_at_the_station_only(bench: Bench, access: Path) -> None:
    _, secret = TokenStore(access).create("phone", Role.CONTROL)
    await bench.http.post("/api/v1/estop", json={})
    async with bench.as_token(secret) as http:
        lease = await bench.take(http)
        answer = await http.post("/api/v1/reset", headers=lease)
        assert (answer.status_code, answer.json()["code"]) == (409, "refused")
        assert "at the station" in answer.json()["detail"]
        await http.post("/api/v1/lease/release", headers=lease)
    assert bench.arm.drive is Drive.ESTOP
    answer = await bench.http.post("/api/v1/reset", headers=await bench.take())
    assert answer.status_code == 200, answer.text
    assert bench.arm.drive is Drive.HOLD


async def test_the_page_logs_in_with_a_cookie_that_scripts_cannot_read(bench: Bench, access: Path) -> None:
    _, secret = TokenStore(access).create("phone", Role.CONTROL)
    away = {"X-Forwarded-For": "192.0.2.7"}
    async with httpx.AsyncClient(base_url=bench.url, headers=away) as http:
        assert (await http.get("/api/v1/session")).status_code == 401
        answer = await http.post("/api/v1/session", json={"token": secret})
        assert answer.json()["name"] == "phone"
        cookie = answer.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
        assert secret not in answer.text + answer.headers["set-cookie"]
        assert (await http.get("/api/v1/session")).json()["role"] == "control"
        TokenStore(access).revoke("phone")
        assert (await http.get("/api/v1/session")).status_code == 401
        assert (await http.delete("/api/v1/session")).status_code == 204


async def test_who_tries_tokens_has_to_wait_and_who_has_one_has_not(bench: Bench, access: Path) -> None:
    _, secret = TokenStore(access).create("phone", Role.READ)
    for _ in range(ATTEMPTS):
        assert (await bench.http.post("/api/v1/session", json={"token": "so_1_2"})).status_code == 401
    answer = await bench.http.post("/api/v1/session", json={"token": "so_1_2"})
    assert (answer.status_code, answer.json()["code"]) == (429, "too-many")
    assert 0 < int(answer.headers["retry-after"]) <= WINDOW_S
    async with bench.as_token("so_1_2") as http:
        assert (await http.get("/api/v1/status")).status_code == 429
    async with bench.as_token(secret) as http:
        assert (await http.get("/api/v1/status")).status_code == 200


async def test_nothing_secret_is_logged(bench: Bench, access: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, secret = TokenStore(access).create("phone", Role.CONTROL)
    await bench.http.post("/api/v1/session", json={"token": secret})
    async with bench.as_token(secret) as http:
        lease = await bench.take(http)
        await http.post("/api/v1/lease/renew", headers=lease)
        await http.post("/api/v1/session", json={"token": secret, "color": 1})
    out, err = capfd.readouterr()
    for word in (secret, secret.rpartition("_")[2], lease["X-Lease"]):
        assert word not in out + err


class TestRemoteReset:
    """With `remote_reset: true` a person who has control clears an e-stop from a distance, too."""

    @pytest.fixture
    def http_settings(self) -> dict[str, bool]:
        return {"remote_reset": True}

    async def test_it_needs_control_all_the_same(self, bench: Bench, access: Path) -> None:
        _, secret = TokenStore(access).create("phone", Role.CONTROL)
        await bench.http.post("/api/v1/estop", json={})
        async with bench.as_token(secret) as http:
            assert (await http.post("/api/v1/reset")).json()["code"] == "no-control"
            assert bench.arm.drive is Drive.ESTOP
            assert (await http.post("/api/v1/reset", headers=await bench.take(http))).status_code == 200
        assert bench.arm.drive is Drive.HOLD


class TestAlways:
    """With `login: always` people at the station need a token, too."""

    @pytest.fixture
    def http_settings(self) -> dict[str, str]:
        return {"login": "always"}

    async def test_a_token_is_needed_here_too(self, bench: Bench, access: Path) -> None:
        for path in ("/api/v1/status", "/metrics", "/api/v1/diagnostics", "/api/v1/live", "/api/v1/episodes"):
            assert (await bench.http.get(path)).status_code == 401, path
        assert (await bench.http.post("/api/v1/estop", json={})).status_code == 401
        assert (await bench.http.get("/healthz")).status_code == 200
        assert (await bench.http.get("/")).status_code == 200
        _, secret = TokenStore(access).create("here", Role.READ)
        async with bench.as_token(secret) as http:
            assert (await http.get("/api/v1/status")).status_code == 200


def test_a_validation_error_does_not_repeat_what_was_sent() -> None:
    from agent.api.http.problems import _sentence

    told = _sentence({"loc": ("body", "token"), "msg": "Value error, too long", "input": "so_1_secret"})
    assert told == "token: too long."
    assert "secret" not in json.dumps(told)
