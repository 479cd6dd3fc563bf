"""An arm process without an arm: answers on the real socket, and does at once what takes an arm a while."""

import threading
import time
from pathlib import Path
from typing import Any

from agent.messages import (
    ArmCommand,
    ArmDrive,
    ArmEstop,
    ArmReport,
    ArmReset,
    Drive,
    Problem,
)
from tests.stand_in import StandIn


class FakeArm(StandIn):
    """`refuse` is answered to the next drive command. `held` is set when it was asked to hold, at `held_at_ns`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ArmCommand)
        self.drive = Drive.LIMP
        self.reason = "torque is off"
        self.refuse: Problem | None = None
        self.verified: bool | None = True  # what is read back after an e-stop
        self.drives: list[Drive] = []
        self.held = threading.Event()
        self.held_at_ns = 0

    def answer(self, command: Any) -> ArmReport | Problem:
        match command:
            case ArmDrive() if self.refuse:
                refused, self.refuse = self.refuse, None
                return refused
            case ArmDrive():
                self.drives.append(command.drive)
                self._enter(Drive.FOLLOW if command.drive is Drive.ALIGN else command.drive, command.cause)
            case ArmEstop():
                self._enter(Drive.ESTOP, command.cause)
            case ArmReset():
                self._enter(Drive.HOLD, command.cause)
        return self.report()

    def report(self) -> ArmReport:
        torque = self.drive is not Drive.LIMP
        verified = self.verified if self.drive is Drive.ESTOP else None
        return ArmReport(
            time.monotonic_ns(), 1, self.drive, self.reason, True, True, torque_on=torque, estop_verified=verified
        )

    def _enter(self, drive: Drive, reason: str) -> None:
        self.drive, self.reason = drive, reason
        if drive is Drive.HOLD:
            self.held_at_ns = time.monotonic_ns()
            self.held.set()
        else:
            self.held.clear()
