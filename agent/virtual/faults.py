"""What can go wrong on demand, as typed requests: replies that get lost, and rules that decide which."""

import random
import threading
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from agent.errors import BadInput
from agent.messages import JOINTS

type ArmName = Literal["follower", "leader"]
type InstructionName = Literal["ping", "read", "write", "reg_write", "action", "sync_read"]

GARBAGE_BYTES: Final = 5
MAX_DELAY_MS: Final = 10_000


class ReplyFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which replies suffer. Without `count` it lasts until it is cleared."""

    arm: ArmName = "follower"
    servo: int | str | None = None  # id or joint name; None: every servo
    instruction: InstructionName | None = None
    count: Annotated[int, Meta(ge=1)] | None = None
    probability: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: int = 0
    delay_ms: Annotated[float, Meta(ge=0, le=MAX_DELAY_MS)] = 30.0  # for "delay" only


type ReplyFaultKind = Literal["drop", "corrupt", "truncate", "delay", "garbage"]


def servo_id(servo: int | str) -> int:
    """A servo's id from its id or its joint name. Raises BadInput for one that no arm has."""
    if isinstance(servo, str) and servo in JOINTS:
        return JOINTS.index(servo) + 1
    if isinstance(servo, int) and 1 <= servo <= len(JOINTS):
        return servo
    raise BadInput(f"There is no servo {servo!r}.", f"Use an id from 1 to {len(JOINTS)} or one of {', '.join(JOINTS)}.")


class _Rule:
    def __init__(self, kind: ReplyFaultKind, fault: ReplyFault) -> None:
        self.kind = kind
        self.fault = fault
        self.servo = None if fault.servo is None else servo_id(fault.servo)
        self.left = fault.count
        self.random = random.Random(fault.seed)  # noqa: S311 -- reproducible faults, not secrets

    def hits(self, servo: int, instruction: str) -> bool:
        if self.servo not in (None, servo) or self.fault.instruction not in (None, instruction) or self.left == 0:
            return False
        if self.fault.probability < 1 and self.random.random() >= self.fault.probability:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Faults:
    """The reply faults of one bus. Safe to change from another thread while the bus runs."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self.hits = 0  # replies changed or swallowed so far

    def add(self, kind: ReplyFaultKind, fault: ReplyFault | None = None) -> None:
        rule = _Rule(kind, fault or ReplyFault())
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def apply(self, servo: int, instruction: str, packet: bytes) -> tuple[float, bytes] | None:
        """The reply after all faults as (extra delay in s, bytes); None when it is lost."""
        if not self._rules:
            return 0.0, packet
        delay_s = 0.0
        with self._lock:
            for rule in self._rules:
                if not rule.hits(servo, instruction):
                    continue
                self.hits += 1
                match rule.kind:
                    case "drop":
                        return None
                    case "corrupt":
                        packet = packet[:-1] + bytes([packet[-1] ^ 0x55])
                    case "truncate":
                        packet = packet[: len(packet) // 2]
                    case "delay":
                        delay_s += rule.fault.delay_ms / 1000
                    case "garbage":
                        packet = rule.random.randbytes(GARBAGE_BYTES) + packet
            self._rules = [rule for rule in self._rules if rule.left != 0]
        return delay_s, packet
