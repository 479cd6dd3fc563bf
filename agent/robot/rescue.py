"""The follower's bus for a moment, without an arm process: is the arm under torque, and does it push against something?

Used when an agent was killed together with its arm process. The servos hold by themselves then, but nobody watches
them; a joint that was blocked goes on pushing. Imports neither lerobot nor torch: this must be done in a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import scservo_sdk as scs

from agent.messages import JOINTS
from agent.robot.port import GuardedPort, NoReply, PortLost
from agent.robot.registers import LIVE, SERVO_IDS, Live

TRIES: Final = 3

OFF_COUNTS: Final = round(3.0 * 4096 / 360)
"""A joint this far from its goal, in counts, is not merely sagging under its load (3 degrees): it is blocked."""

GOAL_POSITION: Final = LIVE.address + 2
SIGN: Final = 1 << 15

GRIPPER: Final = JOINTS[-1]
"""Not eased: a firm grip looks like a blocked joint, and its servo limits its own force."""


@dataclass(frozen=True)
class Rescue:
    """What was found and done. Joints by name."""

    answered: tuple[str, ...]
    under_torque: tuple[str, ...]
    eased: tuple[str, ...]  # their goals are where they are now


def ease(port: Path, timeout_ms: float) -> Rescue:
    """Let blocked joints hold where they are. Raises BadInput or DeviceFault where the port cannot be had."""
    with _open(port, timeout_ms) as bus:
        found = {name: live for name in JOINTS if (live := bus.look(name))}
        blocked = [
            name
            for name, live in found.items()
            if name != GRIPPER and live.torque_on and abs(live.goal - live.position) > OFF_COUNTS
        ]
        eased = tuple(name for name in blocked if bus.hold_here(name))
    if len(eased) < len(blocked):
        raise NoReply(f"{', '.join(set(blocked) - set(eased))} did not take a new goal.")
    return Rescue(tuple(found), tuple(name for name, live in found.items() if live.torque_on), eased)


class _Bus:
    def __init__(self, port: GuardedPort) -> None:
        self._port = port
        self._packets: Any = scs.PacketHandler(0)

    def look(self, name: str) -> Live | None:
        """What the servo does; None when it does not answer."""
        for _ in range(TRIES):
            size = LIVE.size + self._port.pad()
            data, result, _ = self._packets.readTxRx(self._port, SERVO_IDS[name], LIVE.address, size)
            if result == scs.COMM_SUCCESS and len(data) == size:
                return Live.parse(bytes(data[: LIVE.size]))
            self._port.reply_lost()
        return None

    def hold_here(self, name: str) -> bool:
        """Whether the goal is the present position now, by reading it back."""
        for _ in range(TRIES):
            live = self.look(name)
            if live is None:
                return False
            here = live.position if live.position >= 0 else -live.position | SIGN
            self._packets.write2ByteTxRx(self._port, SERVO_IDS[name], GOAL_POSITION, here)
            after = self.look(name)
            if after is not None and after.goal == live.position:
                return True
        return False


@contextmanager
def _open(path: Path, timeout_ms: float) -> Iterator[_Bus]:
    port = GuardedPort(str(path), timeout_ms)
    if not port.openPort():
        raise PortLost(f"The port {path} cannot be opened.")
    try:
        yield _Bus(port)
    finally:
        port.closePort()
