"""The emergency stop: straight to the arm process, on a socket of its own, so that it works while the agent hangs."""

import asyncio
import contextlib
from typing import Any, Final

from agent.api.local import AsyncClient
from agent.clock import NS_PER_MS, Clock, nanoseconds
from agent.errors import AgentError, DeviceFault, NotRunning
from agent.messages import ArmEstop, ArmQuery, ArmReply, ArmReport
from agent.paths import Paths
from agent.transport import AsyncCommandClient, is_served

ANSWER_S: Final = 1.0
"""The arm answers within one tick plus one bus time-out, 50 ms; after a second it is not going to."""

VERIFY_S: Final = 1.0
"""For the read-back of all servos, which the arm does in the ticks after the stop."""

LOOK_S: Final = 0.01

TOLD_S: Final = 0.5
"""The agent is told only for its records; one that hangs must not keep a person waiting."""

POWER_OFF: Final = "Switch off the arm's power supply now."


async def stop(paths: Paths, daemon: AsyncClient, clock: Clock, cause: str) -> dict[str, Any]:
    """Stop and latch; returns when the servos were read back.

    Raises NotRunning or DeviceFault when the arm is not known to have stopped.
    """
    told = asyncio.create_task(_tell(daemon, cause), name="tell the agent")
    try:
        return await _stop_arm(paths, clock, cause)
    finally:
        await told


async def _stop_arm(paths: Paths, clock: Clock, cause: str) -> dict[str, Any]:
    client: AsyncCommandClient[ArmReport] = AsyncCommandClient(paths.arm_ctl, ArmReply)
    if not is_served(paths.arm_ctl):
        raise NotRunning("No arm process answers. The arm was NOT stopped.", POWER_OFF)
    began_ns = clock.now_ns()
    try:
        report = await client.ask_async(ArmEstop(cause), ANSWER_S)
        while report.estop_verified is not True and clock.now_ns() - began_ns < nanoseconds(VERIFY_S):
            await asyncio.sleep(LOOK_S)
            report = await client.ask_async(ArmQuery(), ANSWER_S)
    except NotRunning as error:
        raise NotRunning(f"{error.message} The arm was NOT stopped.", POWER_OFF) from error
    if report.estop_verified is not True:
        raise DeviceFault(f"The stop was sent, but the servos did not confirm it: {report.reason}.", POWER_OFF)
    took_ms = (clock.now_ns() - began_ns) / NS_PER_MS
    return {"verified": True, "took_ms": round(took_ms, 1), "reason": report.reason}


async def _tell(daemon: AsyncClient, cause: str) -> None:
    with contextlib.suppress(AgentError):  # it hears from the arm process, too
        await daemon.call("estop", {"cause": cause}, TOLD_S)
