"""Recording as a switch: what Home Assistant can offer, which keeps no lease and knows no task text."""

from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from agent.api.mqtt.link import Link
from agent.api.schemas import RecordStart, Request
from agent.errors import AgentError, BadInput, Refused
from agent.telemetry import logger

OWNER: Final = "the recording switch"
LEASE_S: Final = 10.0
"""For one request; given back at once."""

ANSWER_S: Final = 60.0

STATUS_ANSWER_S: Final = 3.0


class RecordSwitch(Request):
    on: bool
    task: Annotated[
        str | None, Field(description="null: what the arm executes, or what was recorded last.", max_length=200)
    ] = None


async def switch(link: Link, args: dict[str, Any]) -> dict[str, Any]:
    """Start one episode, or commit the one that runs. Raises what the station answers."""
    if not args["on"]:
        return await link.call("record.stop", {}, ANSWER_S)
    task = args.get("task") or await _known_task(link)
    try:
        start = RecordStart(task=task).args()
    except ValidationError as error:  # what a policy is told may be longer than what a data set keeps
        raise BadInput(f"{task[:60]!r} cannot be recorded: {error.errors()[0]['msg']}.", "Give `task` too.") from error
    lease = await link.call("lease.take", {"owner": OWNER, "ttl_s": LEASE_S}, ANSWER_S)
    try:
        return await link.call("record.start", start | {"lease": lease["token"]}, ANSWER_S)
    finally:
        try:
            await link.call("lease.release", {"token": lease["token"]}, ANSWER_S)
        except AgentError as error:  # somebody took over; or it ends by itself
            logger.info("the lease of the recording switch was over already", problem=error.message)


async def _known_task(link: Link) -> str:
    """A data set learns from its task texts: none is made up here."""
    status = await link.call("status", {}, STATUS_ANSWER_S)
    task, recorder = status.get("task"), status.get("recorder") or {}
    text = task["task"] if task else (recorder.get("last") or {}).get("task")
    if not text:
        raise Refused(
            "Nobody said what the arm is doing, and nothing was recorded before.",
            "Record the first episode from the page or the command line, with a task text.",
        )
    return str(text)
