"""The half-duplex servo bus at packet level: Feetech protocol 0 in, status packets out."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from agent.virtual.faults import Faults
from agent.virtual.servo import Register, Servo

BROADCAST_ID: Final = 0xFE
BYTE_TIME_S: Final = 1e-5  # ten bits at 1 Mbaud
RETURN_DELAY_STEP_S: Final = 2e-6
WIRE_LOG_PACKETS: Final = 500_000  # an hour and a half at 100 Hz; older packets fall out
_HEADER: Final = b"\xff\xff"
_SHORTEST: Final = 6

type Goals = tuple[tuple[int, int], ...]
"""Servo id and raw goal, for every goal of one packet."""

type Present = tuple[int | None, ...]
"""Where each of them was, raw; None where no servo answers to the id."""


class Instruction(IntEnum):
    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


_NAMES: Final = {instruction.value: instruction.name.lower() for instruction in Instruction}


class Reply(NamedTuple):
    """Bytes that leave `delay_s` after the request arrived."""

    delay_s: float
    data: bytes


class GoalWrite(NamedTuple):
    """One goal that was on the wire."""

    at_ns: int  # CLOCK_MONOTONIC when the packet had arrived
    servo_id: int
    raw: int  # the register's two bytes, sign still encoded


class WireLog:
    """Every goal position written to the bus, packet by packet, whether or not a servo listened."""

    def __init__(self) -> None:
        self._packets: deque[tuple[int, Goals]] = deque(maxlen=WIRE_LOG_PACKETS)
        self.count = 0  # packets with goals so far
        self.sink: Callable[[int, Goals, Present], None] | None = None  # also told of every packet

    def append(self, at_ns: int, goals: Goals, present: Present) -> None:
        """`present`: where each of these servos was when the packet had arrived."""
        self._packets.append((at_ns, goals))
        self.count += 1
        if self.sink:
            self.sink(at_ns, goals, present)

    def packets(self) -> list[tuple[int, dict[int, int]]]:
        """(time in ns, servo id -> raw goal) of every logged packet, oldest first."""
        return [(at_ns, dict(goals)) for at_ns, goals in list(self._packets)]

    def writes(self) -> list[GoalWrite]:
        return [GoalWrite(at_ns, servo, raw) for at_ns, goals in list(self._packets) for servo, raw in goals]

    def since(self, count: int) -> list[tuple[int, dict[int, int]]]:
        """Packets number `count` and later (those that still are in memory)."""
        fresh = self.count - count
        return self.packets()[-fresh:] if fresh > 0 else []


class ServoBus:
    """Servos on one wire. `feed` takes whatever bytes arrived and returns the replies, in wire order.

    A servo that is missing from a SYNC READ leaves its slot empty, and those behind it still answer: each waits
    for its predecessor's slot to pass, not for its answer. `lock` guards the servos; a plant takes it to step.
    """

    def __init__(self, servos: Sequence[Servo], *, paced: bool = False) -> None:
        self.servos = list(servos)
        self.faults = Faults()
        self.goals = WireLog()
        self.lock = threading.RLock()
        self.bad_checksums = 0
        self._paced = paced
        self._buffer = bytearray()

    def servo(self, servo_id: int) -> Servo | None:
        """The servo that answers to this id now; None when there is none."""
        return next((servo for servo in self.servos if servo.id == servo_id and servo.reachable), None)

    def feed(self, data: bytes) -> list[Reply]:
        self._buffer += data
        replies: list[Reply] = []
        while (packet := self._next_packet()) is not None:
            with self.lock:
                replies += self._timed(len(packet), self._execute(packet[2], packet[4], packet[5:-1]))
        return replies

    def _next_packet(self) -> bytes | None:
        """The next whole packet with a right checksum. Anything else in front of it is thrown away."""
        buffer = self._buffer
        while True:
            start = buffer.find(_HEADER)
            if start < 0:
                del buffer[: max(0, len(buffer) - 1)]
                return None
            del buffer[:start]
            if len(buffer) < _SHORTEST:
                return None
            if buffer[2] == 0xFF or buffer[3] < 2:
                del buffer[:1]
                continue
            length = buffer[3] + 4
            if len(buffer) < length:
                return None
            packet = bytes(buffer[:length])
            if ~sum(packet[2:-1]) & 255 != packet[-1]:
                self.bad_checksums += 1
                del buffer[:1]
                continue
            del buffer[:length]
            return packet

    def _timed(self, request_bytes: int, replies: list[tuple[Servo, Reply]]) -> list[Reply]:
        if not self._paced:
            return [reply for _, reply in replies]
        at_s = request_bytes * BYTE_TIME_S
        timed = []
        for servo, reply in replies:
            at_s += servo.byte(Register.RETURN_DELAY) * RETURN_DELAY_STEP_S + len(reply.data) * BYTE_TIME_S
            timed.append(Reply(at_s + reply.delay_s, reply.data))
        return timed

    def _execute(self, servo_id: int, instruction: int, parameters: bytes) -> list[tuple[Servo, Reply]]:
        match instruction:
            case Instruction.SYNC_READ if len(parameters) > 2:
                address, length = parameters[0], parameters[1]
                listed = [servo for each in parameters[2:] if (servo := self.servo(each))]
                return [
                    (servo, reply)
                    for servo in listed
                    for reply in self._status(servo, servo.read(address, length), instruction)
                ]
            case Instruction.SYNC_WRITE if len(parameters) > 2:
                self._sync_write(parameters[0], parameters[1], parameters[2:])
                return []
            case Instruction.ACTION:
                self._action(servo_id)
            case Instruction.WRITE if len(parameters) > 1:
                self._log_goals(parameters[0], [(servo_id, parameters[1:])])
        answers: list[tuple[Servo, Reply]] = []
        for servo in self._addressed(servo_id):
            answers += [(servo, reply) for reply in self._single(servo, servo_id, instruction, parameters)]
        return answers

    def _single(self, servo: Servo, servo_id: int, instruction: int, parameters: bytes) -> list[Reply]:
        content = b""
        asked = instruction in (Instruction.PING, Instruction.READ)
        match instruction:
            case Instruction.PING | Instruction.ACTION:
                pass
            case Instruction.READ if len(parameters) == 2:
                content = servo.read(parameters[0], parameters[1])
            case Instruction.WRITE if len(parameters) > 1:
                servo.write(parameters[0], parameters[1:])
            case Instruction.REG_WRITE if len(parameters) > 1:
                servo.pending = (parameters[0], parameters[1:])
            case _:
                return []  # unknown or malformed: a real servo stays silent
        if servo_id == BROADCAST_ID and instruction != Instruction.PING:
            return []
        if not asked and servo.byte(Register.RESPONSE_LEVEL) == 0:
            return []
        return self._status(servo, content, instruction)

    def _addressed(self, servo_id: int) -> list[Servo]:
        if servo_id == BROADCAST_ID:
            return [servo for servo in self.servos if servo.reachable]
        servo = self.servo(servo_id)
        return [servo] if servo else []

    def _status(self, servo: Servo, content: bytes, instruction: int) -> list[Reply]:
        body = bytes([servo.id, len(content) + 2, servo.status()]) + content
        packet = _HEADER + body + bytes([~sum(body) & 255])
        after = self.faults.apply(servo.id, _NAMES[instruction], packet)
        return [] if after is None else [Reply(*after)]

    def _sync_write(self, address: int, length: int, rows: bytes) -> None:
        stride = length + 1
        writes = [(rows[at], rows[at + 1 : at + stride]) for at in range(0, len(rows) - length, stride)]
        self._log_goals(address, writes)
        for servo_id, data in writes:
            if servo := self.servo(servo_id):
                servo.write(address, data)

    def _action(self, servo_id: int) -> None:
        for servo in self._addressed(servo_id):
            if servo.pending:
                address, data = servo.pending
                servo.pending = None
                self._log_goals(address, [(servo.id, data)])
                servo.write(address, data)

    def _log_goals(self, address: int, writes: Sequence[tuple[int, bytes]]) -> None:
        first = Register.GOAL_POSITION - address
        if first < 0:
            return
        goals = [(servo_id, data[first] | data[first + 1] << 8) for servo_id, data in writes if len(data) > first + 1]
        if goals:
            servos = [self.servo(servo_id) for servo_id, _ in goals]
            present = tuple(servo.present_position() if servo else None for servo in servos)
            self.goals.append(time.monotonic_ns(), tuple(goals), present)
