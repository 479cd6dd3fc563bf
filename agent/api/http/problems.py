"""Errors as `application/problem+json` (RFC 9457), with the same codes, sentences and hints as the command line."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent.api.schemas import Problem
from agent.errors import AgentError, BadInput, EstopLatched, Fatal, NotRunning, Refused, Safety, Transient
from agent.telemetry import logger

MEDIA_TYPE: Final = "application/problem+json"


class NotFound(BadInput):
    """There is no such thing at this address."""


class TooLarge(BadInput):
    """The body is longer than any request here."""


class NeedsLogin(Refused):
    """Nobody is known to be asking."""

    code = "needs-login"


class NotAllowed(Refused):
    """Known, but not allowed to."""

    code = "not-allowed"


class TooMany(Transient):
    """Asked too often."""

    code = "too-many"

    def __init__(self, message: str, hint: str, wait_s: float) -> None:
        super().__init__(message, hint)
        self.wait_s = wait_s


STATUS: Final[tuple[tuple[type[AgentError], HTTPStatus], ...]] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (NeedsLogin, HTTPStatus.UNAUTHORIZED),
    (NotAllowed, HTTPStatus.FORBIDDEN),
    (TooMany, HTTPStatus.TOO_MANY_REQUESTS),
    (BadInput, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Refused, HTTPStatus.CONFLICT),
    (EstopLatched, HTTPStatus.CONFLICT),
    (Safety, HTTPStatus.CONFLICT),
    (NotRunning, HTTPStatus.SERVICE_UNAVAILABLE),
    (Transient, HTTPStatus.SERVICE_UNAVAILABLE),
    (Fatal, HTTPStatus.CONFLICT),
)
"""The first that fits. What is left is a bug of the agent: 500."""


def status_of(error: AgentError) -> HTTPStatus:
    return next((status for kind, status in STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def respond(error: AgentError) -> JSONResponse:
    """The answer to a request that was not carried out."""
    headers = {}
    match error:
        case TooMany():
            headers["Retry-After"] = str(max(1, round(error.wait_s)))
        case NeedsLogin():
            headers["WWW-Authenticate"] = 'Bearer realm="so-agent"'
    return _answer(status_of(error), error.code, error.message, error.hint, headers)


def _answer(
    status: int, code: str, message: str, hint: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=message, code=code, hint=hint)
    return JSONResponse(problem.model_dump(), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error of this application leave in this form."""

    async def on_agent_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AgentError)  # noqa: S101 - registered for nothing else
        return respond(error)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
        sentences = [_sentence(detail) for detail in error.errors()]
        hint = "See /api/v1/openapi.json for what is expected."
        return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, BadInput.code, " ".join(sentences), hint)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
        code = BadInput.code if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else AgentError.code
        headers = dict(error.headers or {})
        return _answer(error.status_code, code, f"{error.detail}.", headers=headers)

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("request failed", path=request.url.path, error=repr(error))
        sentence = f"The HTTP surface failed on this request: {type(error).__name__}."
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, AgentError.code, sentence, "See its log.")

    app.add_exception_handler(AgentError, on_agent_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_bug)


def _sentence(detail: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"] if part != "body") or "the body"
    return f"{where}: {detail['msg'].removeprefix('Value error, ')}."


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: these may come, all in the form of `Problem`."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        int(status): {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses
    }


COMMON: Final = documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""What any request may be answered with."""
