"""The parts of `so-agent status --json`; docs/command-line.md describes them."""

from typing import Any

import msgspec

from agent.clock import NS_PER_MS
from agent.config import Camera
from agent.messages import ArmReport, CameraReport
from agent.policy_messages import PolicyReport
from agent.supervisor import ChildState


def plain(message: msgspec.Struct, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A message as a JSON object, without its tag."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    for name in ("type", *without):
        fields.pop(name, None)
    return fields


def camera(settings: Camera, report: CameraReport | None, process: ChildState, now_ns: int) -> dict[str, Any]:
    if report is None:
        return {"state": "down", "reason": process.failed or process.last_exit or "starting", "age_ms": None}
    last_ns = report.last_capture_ns
    age_ms = None if last_ns is None else round((now_ns - last_ns) / NS_PER_MS, 1)
    return {**plain(report), "view": settings.view, "age_ms": age_ms}


def policy(report: PolicyReport, arm: ArmReport | None) -> dict[str, Any]:
    """What the policy process says, and how its chunks fare in the arm."""
    execution = arm.execution if arm else None
    return {**plain(report), "execution": plain(execution) if execution else None}


def child(state: ChildState) -> dict[str, Any]:
    return {"pid": state.pid, "restarts": state.restarts, "last_exit": state.last_exit, "failed": state.failed}
