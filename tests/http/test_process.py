"""The process itself, on a network as far as loopback can be one: TLS, cookies, signals."""

import asyncio
import datetime
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from agent.api.http.access.tokens import Role, TokenStore
from agent.api.http.app import create
from agent.clock import SystemClock
from agent.config import Http, StationConfig
from agent.errors import Exit
from tests.station.live import ROOT, free_ports, wait_for

START_S = 60.0
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what a phone needs
PROGRAM = """
import sys
from agent.api.http.process import main
from agent.config import StationConfig
from agent.telemetry import configure
config = StationConfig.model_validate_json(sys.argv[1])
configure(config.logging, "web")
main(config)
"""


def certificate(folder: Path) -> dict[str, str]:
    """A self-signed one for this machine, as docs/page.md makes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "arm.local")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "station.pem").write_bytes(made.public_bytes(pem))
    (folder / "station.key").write_bytes(key.private_bytes(pem, *plain))
    return {"cert": str(folder / "station.pem"), "key": str(folder / "station.key")}


class Served:
    """The process, started as its nursery starts it."""

    def __init__(self, config: StationConfig) -> None:
        assert config.http
        self.config = config
        self.url = f"https://127.0.0.1:{config.http.port}"
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, config.model_dump_json()], cwd=ROOT)

    def client(self, **how: Any) -> httpx.Client:
        assert self.config.http
        assert self.config.http.tls
        return httpx.Client(
            base_url=self.url, verify=ssl.create_default_context(cafile=self.config.http.tls.cert), timeout=20, **how
        )

    def answers(self) -> bool:
        assert self.process.poll() is None
        try:
            with self.client() as http:
                return http.get("/").is_success
        except httpx.TransportError:
            return False


@pytest.fixture
def served(make_config: Any, short_dir: Path) -> Iterator[Served]:
    [port] = free_ports(1)
    tls = certificate(short_dir)
    served = Served(make_config(http={"host": EVERYWHERE, "port": port, "names": ["arm.local"], "tls": tls}))
    try:
        wait_for("the page is served", served.answers, START_S)
        yield served
    finally:
        served.process.kill()
        served.process.wait()


def test_a_network_is_served_over_tls_only_and_its_cookie_is_bound_to_it(served: Served) -> None:
    _, secret = TokenStore(served.config.paths.access).create("phone", Role.READ)
    with served.client(headers={"X-Forwarded-For": "192.0.2.7"}) as http:
        assert http.get("/api/v1/session").status_code == 401
        answer = http.post("/api/v1/session", json={"token": secret})
        assert answer.status_code == 200, answer.text
        assert answer.headers["set-cookie"].startswith("__Host-so=")
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "strict-transport-security" not in answer.headers, "would bind the other ports of this host, too"
        assert http.get("/api/v1/session").json()["name"] == "phone"
        origin = {"Origin": f"http://127.0.0.1:{served.url.rpartition(':')[2]}"}
        assert http.post("/api/v1/estop", json={}, headers=origin).status_code == 403, "not from the page without TLS"
        assert http.get("/", headers={"Host": "arm.local"}).status_code == 200
        assert http.get("/", headers={"Host": EVERYWHERE}).status_code == 403
    with pytest.raises(httpx.TransportError):
        httpx.get(served.url.replace("https", "http"))


def test_without_an_agent_it_says_so_and_leaves_when_it_is_told(served: Served) -> None:
    with served.client() as http:
        assert http.get("/healthz").status_code == 503
        stopped = http.post("/api/v1/estop", json={})
        assert (stopped.status_code, stopped.json()["code"]) == (503, "not-running")
        assert "NOT stopped" in stopped.json()["detail"]
        assert "power supply" in stopped.json()["hint"]
        with http.stream("GET", "/api/v1/live") as stream:
            assert stream.status_code == 200
            began_s = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(20)
            assert time.monotonic() - began_s < 10, "a stream that never ends keeps nothing from stopping"


def test_a_certificate_that_is_missing_is_named_in_the_log(make_config: Any, short_dir: Path) -> None:
    tls = {"cert": str(short_dir / "none.pem"), "key": str(short_dir / "none.key")}
    config = make_config(http={"host": EVERYWHERE, "port": free_ports(1)[0], "tls": tls})
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, config.model_dump_json()], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == Exit.BAD_INPUT
    assert f"{short_dir}/none.pem cannot be read: No such file or directory." in said
    assert "Traceback" not in said


def test_a_network_without_tls_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"http\.tls must be given"):
        Http(host=EVERYWHERE)


async def test_a_page_whose_background_work_failed_ends(make_config: Any) -> None:
    """It would look alive without being so. The supervisor starts it again."""
    config = make_config(http={})
    app = create(config, config.http, SystemClock())

    async def fail() -> None:
        raise ValueError("made to fail")

    app.state.surface.live._look_at_status = fail
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        async with app.router.lifespan_context(app):
            deadline_s = time.monotonic() + 10
            while not told and time.monotonic() < deadline_s:  # noqa: ASYNC110 - a signal ends it
                await asyncio.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]


def test_the_surface_imports_nothing_heavy() -> None:
    """It is forked from a process that has torch; alone it must start without, in a second."""
    heavy = ("torch", "lerobot", "mujoco", "cv2", "pandas", "transformers", "flwr")
    code = f"import sys, agent.api.http.process; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT, env=os.environ
    )
    assert result.stdout.split() == []
