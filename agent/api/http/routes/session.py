"""Who is asking: what they may do, and how the page logs in."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from agent import __version__
from agent.api import schemas
from agent.api.http.access.sessions import LIFETIME_S
from agent.api.http.access.visitors import Visitor
from agent.api.http.problems import COMMON
from agent.api.http.surface import Shared, Surface, Who
from agent.api.schemas import Access, Reply
from agent.config import StationConfig
from agent.errors import BadInput
from agent.messages import JOINTS
from agent.robot.calibration import GRIPPER, Scale, load
from agent.robot.safety import Limits
from agent.task_text import TASK_MAX_CHARS

routes = APIRouter(prefix="/api/v1/session", tags=["session"], responses=COMMON)

TOKEN_MAX_CHARS = 200


class Joint(Reply):
    name: str
    unit: Literal["°", "%"]
    low: Annotated[float | None, Field(description="Calibrated range, less the margin; null without a calibration.")]
    high: float | None


class About(Reply):
    """What does not change while the agent runs."""

    model: str
    has_leader: bool
    estop: Annotated[str, Field(description="`hold` keeps torque on; `limp` drops the arm.")]
    joints: list[Joint]
    max_temperature_c: float
    min_voltage_v: float
    recording_fps: int
    max_episode_s: float
    min_free_gb: float
    dataset: str
    task_max_chars: int
    share_statistics: Annotated[bool, Field(description="Whether mean and spread of the joints may leave, too.")]


class Session(Reply):
    """What the page has to know before anything else."""

    station: str
    version: str
    name: str
    role: Literal["read", "control"]
    local: Annotated[bool, Field(description="Somebody at this machine; no token was needed.")]
    may_reset: bool
    preview_fps: float
    lease_s: float
    cameras: Annotated[list[str], Field(description="In the order of their views.")]
    about: About


class Login(schemas.Request):
    token: Annotated[str, Field(max_length=TOKEN_MAX_CHARS, description="As `so-agent token create` showed it.")]


@routes.get("", operation_id="session", response_model=Session)
async def session(surface: Shared, visitor: Who) -> dict[str, Any]:
    """Who I am here, and what I may do."""
    visitor.require(Access.LOOK)
    return _describe(surface, visitor)


@routes.post("", operation_id="login", response_model=Session)
async def login(surface: Shared, request: Request, response: Response, body: Login) -> dict[str, Any]:
    """Begin a session of the page: the token becomes a cookie that scripts cannot read. Programs need none of this;
    they send `Authorization: Bearer TOKEN`."""
    address = request.client.host if request.client else ""
    token, cookie = surface.visitors.log_in(body.token, address)
    response.set_cookie(
        surface.visitors.cookie_name,
        cookie,
        max_age=LIFETIME_S,
        path="/",
        secure=surface.settings.tls is not None,
        httponly=True,
        samesite="strict",
    )
    return _describe(surface, Visitor(token.name, token.role))


@routes.delete("", operation_id="logout", status_code=204)
async def logout(surface: Shared, response: Response) -> None:
    """Forget this browser's session."""
    response.delete_cookie(
        surface.visitors.cookie_name,
        path="/",
        secure=surface.settings.tls is not None,
        httponly=True,
        samesite="strict",
    )


def _describe(surface: Surface, visitor: Visitor) -> dict[str, Any]:
    return {
        "station": surface.config.station,
        "version": __version__,
        "name": visitor.name,
        "role": visitor.role,
        "local": visitor.local,
        "may_reset": visitor.local or surface.settings.remote_reset,
        "preview_fps": surface.settings.preview_fps,
        "lease_s": surface.settings.lease_s,
        "cameras": list(surface.config.views().values()),
        "about": _about(surface.config),
    }


def _about(config: StationConfig) -> dict[str, Any]:
    low, high = _range(config)
    units = ["%" if name == GRIPPER else "°" for name in JOINTS]
    return {
        "model": config.robot.model,
        "has_leader": config.robot.leader is not None,
        "estop": config.safety.estop,
        "joints": [
            {"name": name, "unit": unit, "low": down, "high": up}
            for name, unit, down, up in zip(JOINTS, units, low, high, strict=True)
        ],
        "max_temperature_c": config.safety.max_temperature_c,
        "min_voltage_v": config.safety.min_voltage_v,
        "recording_fps": config.recording.fps,
        "max_episode_s": config.recording.max_episode_s,
        "min_free_gb": config.recording.min_free_gb,
        "dataset": config.recording.dataset,
        "task_max_chars": TASK_MAX_CHARS,
        "share_statistics": config.federation.share_statistics,
    }


def _range(config: StationConfig) -> tuple[Sequence[float | None], Sequence[float | None]]:
    try:
        calibration = load(config.paths.follower_calibration)
    except BadInput:
        calibration = None  # the mode says so, too
    if calibration is None:
        nothing = [None] * len(JOINTS)
        return nothing, nothing
    limits = Limits.of(config.safety, Scale(calibration))
    return limits.low, limits.high
