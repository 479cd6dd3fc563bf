"""What every request passes before anything else: right name, right origin, a bounded body, safe headers.

Written as plain ASGI, because a stream must go through it piece by piece.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.api.http.access.visitors import LOCAL_NAMES, Visitors
from agent.api.http.problems import NotAllowed, TooLarge, respond
from agent.config import Http
from agent.errors import AgentError

MAX_BODY_BYTES: Final = 64 * 1024
"""Far above any request that this surface knows."""

SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types so-worker"
)

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), screen-wake-lock=(self), fullscreen=(self)",
}


class Gate:
    """Wraps the application. Leaves the `Visitor` in the request's state, and how to ask again who it is."""

    def __init__(self, app: ASGIApp, settings: Http, visitors: Visitors) -> None:
        self._app = app
        self._visitors = visitors
        self._names = {*LOCAL_NAMES, *(name.lower() for name in settings.names)}
        self._scheme = "https" if settings.tls else "http"
        if settings.host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            self._names.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        guarded = self._with_headers(send)
        try:
            host = self._check_host(headers)
            self._check_origin(scope["method"], headers)
            client = scope.get("client")
            known = partial(self._visitors.of, client[0] if client else "", host, headers)
            scope.setdefault("state", {}).update(visitor=known(), known=known)
            bounded = receive if scope["method"] in SAFE_METHODS else await _whole(receive)
        except AgentError as error:
            await respond(error)(scope, receive, guarded)
            return
        await self._app(scope, bounded, guarded)

    def _check_host(self, headers: Headers) -> str:
        """The host name without its port. A name that was made to point here (DNS rebinding) is none of ours."""
        host = headers.get("host", "").lower()
        name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name not in self._names:
            raise NotAllowed(
                f"This station is not served under the name {name[:100]!r}.",
                "Add it to http.names in the station's configuration.",
            )
        return name

    def _check_origin(self, method: str, headers: Headers) -> None:
        """A page of somebody else's must neither act on this station nor read it, whatever cookies come along."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        own = origin is None or origin.lower() == f"{self._scheme}://{headers.get('host', '').lower()}"
        lead_here = method in SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate"
        if own and (site in ("same-origin", "none") or lead_here):
            return
        raise NotAllowed("Requests from other web pages are refused.", "Open the station's own page.")

    def _with_headers(self, send: Send) -> Send:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # No Strict-Transport-Security: it holds for every port of a host, so also for what else a home serves
                # on this machine without TLS; and on this port nothing answers without.
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        return guarded


async def _whole(receive: Receive) -> Receive:
    """The same, after the body has been read. Raises TooLarge for one that is longer than it may be."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # hung up before it was all here
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"The body of a request may hold {MAX_BODY_BYTES} bytes.")
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def whole() -> Message:
        return waiting.pop() if waiting else await receive()

    return whole
