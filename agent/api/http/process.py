"""The process that serves the page and the HTTP API. Nothing that happens here touches the daemon or the arm."""

import socket
import ssl
from typing import Final

import uvicorn

from agent.api.certificates import require_pair
from agent.api.http.app import create
from agent.clock import SystemClock
from agent.config import Http, StationConfig
from agent.errors import BadInput
from agent.telemetry import logger

KEEP_ALIVE_S: Final = 65
"""Longer than a page is silent: a stop must not wait for a new connection and its TLS handshake."""

LEAVE_S: Final = 1
"""For requests under way when the agent stops. Streams never end by themselves."""

MAX_REQUESTS: Final = 200
"""At once; more are answered with 503. A page has at most six."""


def main(config: StationConfig) -> None:
    """Entry point of the process. Runs until SIGTERM."""
    settings = config.http or Http()
    try:
        if settings.tls:
            require_pair(settings.tls.cert, settings.tls.key)
    except BadInput as error:
        logger.error("the page cannot be served", problem=error.message, hint=error.hint)
        raise SystemExit(error.exit_code) from error
    Server(server_config(config, settings)).run()


class Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            scheme = "https" if self.config.is_ssl else "http"
            logger.info("page", at=f"{scheme}://{self.config.host}:{self.config.port}")


def server_config(config: StationConfig, settings: Http) -> uvicorn.Config:
    return uvicorn.Config(
        create(config, settings, SystemClock()),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls.cert if settings.tls else None,
        ssl_keyfile=settings.tls.key if settings.tls else None,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        access_log=False,  # addresses would carry what people look at, and every renewal of control would be a line
        log_config=None,
        proxy_headers=False,  # whoever came through a proxy is never taken for somebody at this machine
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LEAVE_S,
        limit_concurrency=MAX_REQUESTS,
        ws="none",
    )
