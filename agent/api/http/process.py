"""The process that serves the page and the HTTP API. Nothing that happens here touches the daemon or the arm."""

import ssl
from typing import Final

import uvicorn

from agent.api.http.app import create
from agent.clock import SystemClock
from agent.config import Http, StationConfig
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
    server = uvicorn.Server(server_config(config, settings))
    where = f"{'https' if settings.tls else 'http'}://{settings.host}:{settings.port}"
    logger.info("page", at=where)
    server.run()


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
