"""The STS3215's memory as this process reads it: two blocks per servo, each in one transaction.

Addresses and sign bits are those of lerobot's `motors/feetech/tables.py`; reading a whole block instead of
a register at a time costs one round trip instead of ten, and gives values of the same instant.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from agent.messages import JOINTS

RESOLUTION: Final = 4096
"""Encoder counts of one turn."""

SERVO_IDS: Final = {name: number for number, name in enumerate(JOINTS, start=1)}
"""Fixed by lerobot's SOFollower and SOLeader, in the order of the cable from the base."""

MODEL_NUMBER: Final = 777  # STS3215

STATUS_VOLTAGE: Final = 1
STATUS_HEAT: Final = 4
STATUS_OVERLOAD: Final = 32


class Block(NamedTuple):
    """A run of consecutive registers. `size` in bytes."""

    address: int
    size: int


SETTINGS: Final = Block(0, 40)  # the EPROM area
LIVE: Final = Block(40, 31)  # torque switch to present current


@dataclass(frozen=True)
class Settings:
    """What a servo keeps without power. Positions and offset in counts."""

    firmware: tuple[int, int]
    model: int
    return_delay: int
    range_min: int
    range_max: int
    max_torque: int
    phase: int
    p: int
    d: int
    i: int
    protection_current: int
    homing_offset: int
    operating_mode: int
    overload_torque: int

    @classmethod
    def parse(cls, data: bytes) -> "Settings":
        return cls(
            firmware=(data[0], data[1]),
            model=_word(data, 3),
            return_delay=data[7],
            range_min=_word(data, 9),
            range_max=_word(data, 11),
            max_torque=_word(data, 16),
            phase=data[18],
            p=data[21],
            d=data[22],
            i=data[23],
            protection_current=_word(data, 28),
            homing_offset=_signed(_word(data, 31), 11),
            operating_mode=data[33],
            overload_torque=data[36],
        )


@dataclass(frozen=True)
class Live:
    """What a servo does now. Positions in counts, load in percent of stall torque (signed)."""

    torque_on: bool
    acceleration: int
    goal: int
    position: int
    velocity: int
    load_pct: float
    voltage_v: float
    temperature_c: float
    status_bits: int

    @classmethod
    def parse(cls, data: bytes) -> "Live":
        return cls(
            torque_on=data[0] == 1,
            acceleration=data[1],
            goal=_signed(_word(data, 2), 15),
            position=_signed(_word(data, 16), 15),
            velocity=_signed(_word(data, 18), 15),
            load_pct=_signed(_word(data, 20), 10) / 10,
            voltage_v=data[22] / 10,
            temperature_c=float(data[23]),
            status_bits=data[25],
        )


def _word(data: bytes, offset: int) -> int:
    return data[offset] | data[offset + 1] << 8


def _signed(value: int, sign_bit: int) -> int:
    magnitude = value & ((1 << sign_bit) - 1)
    return -magnitude if value >> sign_bit & 1 else magnitude
