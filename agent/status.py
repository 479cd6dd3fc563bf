"""The parts of `so-agent status --json`; docs/command-line.md describes them."""

from typing import Any, Final

import msgspec

from agent.clock import NS_PER_MS, NS_PER_S
from agent.config import Camera
from agent.messages import ArmReport, CameraReport
from agent.policy_messages import PolicyReport
from agent.supervisor import ChildState

REPORTS_APART_NS: Final = 3 * NS_PER_S // 2
"""A camera's process speaks of itself once a second; later than this it has fallen silent."""


def plain(message: msgspec.Struct, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A message as a JSON object, without its tag."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    for name in ("type", *without):
        fields.pop(name, None)
    return fields


def camera(settings: Camera, report: CameraReport | None, process: ChildState, now_ns: int) -> dict[str, Any]:
    if report is None:
        return {"state": "down", "reason": process.failed or process.last_exit or "starting", "age_ms": None}
    # Time since the last report is no age of its newest frame, which goes to others meanwhile.
    seen_ns = report.at_ns if now_ns - report.at_ns < REPORTS_APART_NS else now_ns
    last_ns = report.last_capture_ns
    age_ms = None if last_ns is None else round((seen_ns - last_ns) / NS_PER_MS, 1)
    return {**plain(report), "view": settings.view, "age_ms": age_ms}


def policy(report: PolicyReport, arm: ArmReport | None) -> dict[str, Any]:
    """What the policy process says, and how its chunks fare in the arm."""
    execution = arm.execution if arm else None
    return {**plain(report), "execution": plain(execution) if execution else None}


def child(state: ChildState) -> dict[str, Any]:
    return {"pid": state.pid, "restarts": state.restarts, "last_exit": state.last_exit, "failed": state.failed}
