"""Who asks: somebody at this machine, or somebody with a token."""

import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.datastructures import Headers

from agent.api.http.access.sessions import Sessions
from agent.api.http.access.throttle import Throttle
from agent.api.http.access.tokens import Role, Token, TokenStore
from agent.api.http.problems import NeedsLogin, NotAllowed, TooMany
from agent.api.schemas import Access
from agent.clock import Clock
from agent.config import Http
from agent.paths import Paths

FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""A request with one of these came through a proxy on this machine: who asked is somewhere else."""

LOCAL_NAMES: Final = ("127.0.0.1", "localhost", "::1")

HOW_TO_LOG_IN: Final = "Make a token on the station with `so-agent token create`, then open its link."


@dataclass(frozen=True)
class Visitor:
    """Whoever sent a request. `name` is shown to others as the holder of control."""

    name: str
    role: Role | None  # None: nobody known
    local: bool = False

    def require(self, access: Access) -> None:
        """Raises NeedsLogin or NotAllowed."""
        if self.role is None:
            raise NeedsLogin("This station wants to know who is asking.", HOW_TO_LOG_IN)
        if access in (Access.CONTROL, Access.MOVE) and self.role is not Role.CONTROL:
            raise NotAllowed(
                f"The token {self.name} may look at the station and stop it, nothing else.",
                "Make one that may control it: `so-agent token create NAME --control`.",
            )


LOCAL_USER: Final = "local user"
"""How others are told about somebody at the station itself."""

NOBODY: Final = Visitor("", None)


class Visitors:
    """Tells who sent a request, from its address, its cookie and its headers."""

    def __init__(self, settings: Http, paths: Paths, clock: Clock) -> None:
        self._settings = settings
        self.tokens = TokenStore(paths.access)
        self.sessions = Sessions(paths.access, self.tokens, clock)
        self._throttle = Throttle(clock)
        self.cookie_name = "__Host-so" if settings.tls else "so"

    def of(self, address: str, host: str, headers: Headers) -> Visitor:
        """Raises NeedsLogin for a token that is wrong, and TooMany for too many of them."""
        given = headers.get("authorization")
        if given is not None:
            scheme, _, text = given.partition(" ")
            return _known(self._checked(text.strip() if scheme.lower() == "bearer" else "", address))
        session = self.sessions.visitor(self._cookie(headers))
        if session is not None:
            return _known(session)
        if self._settings.login == "network" and is_local(address, host, headers):
            return Visitor(LOCAL_USER, Role.CONTROL, local=True)
        return NOBODY

    def log_in(self, text: str, address: str) -> tuple[Token, str]:
        """The token and the cookie of a new session. Raises NeedsLogin or TooMany."""
        self._refuse_if_too_many(address)
        token = self._checked(text, address)
        return token, self.sessions.begin(token)

    def _checked(self, text: str, address: str) -> Token:
        token = self.tokens.check(text)
        if token is None:
            self._refuse_if_too_many(address)
            self._throttle.failed(address)
            raise NeedsLogin("This is not a token of this station, or it was revoked.", HOW_TO_LOG_IN)
        self._throttle.succeeded(address)
        return token

    def _refuse_if_too_many(self, address: str) -> None:
        wait_s = self._throttle.wait_s(address)
        if wait_s > 0:
            raise TooMany("Too many wrong tokens came from here.", f"Try again in {wait_s:.0f} s.", wait_s)

    def _cookie(self, headers: Headers) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return ""
        return found.value if found else ""


def _known(token: Token) -> Visitor:
    return Visitor(token.name, token.role)


def is_local(address: str, host: str, headers: Headers) -> bool:
    """Whether a person at this machine asks: directly, under a name that only this machine has."""
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
    return loopback and host in LOCAL_NAMES and not any(name in headers for name in FORWARDED)
