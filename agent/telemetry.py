"""Structured logs: one line an event, JSON for machines, readable on a terminal."""

import logging
import os
import sys
from typing import Any

import structlog

from agent.config import Logging

JOURNAL_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""sd-daemon(3): a line that begins with `<4>` is kept at that level, and `journalctl -p warning` finds it."""

logger: structlog.stdlib.BoundLogger = structlog.get_logger()


def configure(settings: Logging, process: str) -> None:
    """Set up logging of this process to stderr. Libraries' own loggers come through at warning."""
    level = getattr(logging, settings.level.upper())
    as_text = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Any] = (
        [structlog.dev.ConsoleRenderer()]
        if as_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    if _stderr_is_the_journal():
        render.append(_with_priority)
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=process)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


def _stderr_is_the_journal() -> bool:
    """systemd names the device and inode of what it connected; stderr may have been redirected since."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _with_priority(_: Any, method: str, line: str) -> str:
    return f"<{JOURNAL_PRIORITY.get(method, JOURNAL_PRIORITY['error'])}>{line}"
