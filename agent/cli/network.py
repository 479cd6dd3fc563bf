"""What the page and the broker need besides the configuration: certificates, names, a password."""

import datetime
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from agent.cli.finding import Finding, Level
from agent.cli.locate import answers
from agent.errors import BadInput

if TYPE_CHECKING:
    from agent.config import Http, Mqtt, StationConfig


def check_network(config: "StationConfig") -> list[Finding]:
    """Nothing is said of what is switched off."""
    return [
        *(_page(config.http) if config.http else ()),
        *(_port(config.http) if config.http and not answers(config.paths.agent_socket) else ()),
        *(_broker(config.mqtt) if config.mqtt else ()),
    ]


def _page(http: "Http") -> Iterator[Finding]:
    from agent.api.certificates import about, require_pair
    from agent.api.http.access.link import EVERY_ADDRESS

    if http.tls is None:
        host = f"[{http.host}]" if ":" in http.host else http.host
        yield Finding("http", Level.OK, f"http://{host}:{http.port}, for this machine only")
        return
    if problem := _problem("http.tls", lambda: require_pair(http.tls.cert, http.tls.key)):  # type: ignore[union-attr]
        yield problem
        return
    names = http.names or (() if http.host in EVERY_ADDRESS else (http.host,))
    if not names:
        yield Finding(
            "http.names",
            Level.WARNING,
            "Other machines reach the page, but under no name: what they ask for is refused.",
            "Add the host name or address under which they open it, e.g. names: [arm.local].",
        )
    found = about(http.tls.cert)
    until = f"{found.expires_at:%Y-%m-%d}"
    if found.expires_at <= datetime.datetime.now(datetime.UTC):
        yield Finding("http.tls", Level.WARNING, f"{http.tls.cert} has expired on {until}.", "See docs/page.md.")
    elif others := [name for name in names if not found.covers(name)]:
        yield Finding(
            "http.tls",
            Level.WARNING,
            f"{http.tls.cert} is not for {', '.join(others)}, and browsers will warn.",
            f"It is for {', '.join(found.names) or 'no name at all'}. Make one for the names in http.names.",
        )
    elif names:
        yield Finding("http", Level.OK, f"https://{names[0]}:{http.port}, certificate until {until}")


def _port(http: "Http") -> Iterator[Finding]:
    """Whether another program has it: often the page of another station on this machine."""
    with socket.socket(socket.AF_INET6 if ":" in http.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page's own server does
        try:
            probe.bind((http.host, http.port))
            probe.listen()
        except OSError as error:
            yield Finding(
                "http.port",
                Level.ERROR,
                f"The page cannot have port {http.port} of {http.host}: {error.strerror}.",
                "Give each station on this machine an http.port of its own, above 1023.",
            )


def _broker(mqtt: "Mqtt") -> Iterator[Finding]:
    from agent.api.certificates import require_authority, require_pair, require_readable

    def require() -> None:
        if mqtt.tls:
            require_authority(mqtt.tls.ca)
            if mqtt.tls.cert and mqtt.tls.key:
                require_pair(mqtt.tls.cert, mqtt.tls.key)
        if mqtt.password_file:
            require_readable(mqtt.password_file)

    yield _problem("mqtt", require) or Finding("mqtt", Level.OK, f"{mqtt.host}:{mqtt.port}")


def _problem(name: str, require: Callable[[], None]) -> Finding | None:
    """Files that this account may not read may be the service's: that is no error."""
    try:
        require()
    except BadInput as error:
        level = Level.WARNING if isinstance(error.__cause__, PermissionError) else Level.ERROR
        return Finding(name, level, error.message, error.hint)
    return None
