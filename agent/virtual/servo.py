"""One Feetech STS3215: its register file and what its firmware does with it.

Positions are counts of the magnetic encoder (4096 a turn). Inside, `position` is unwrapped and in the encoder's own
frame; registers show `Present_Position = encoder - Homing_Offset`, wrapped to one turn, as the firmware does.
Register addresses and sign bits follow Feetech's STS/SMS memory table (the one lerobot's `tables.py` cites).
"""

from enum import IntEnum
from typing import Final

COUNTS_PER_TURN: Final = 4096
MODEL_NUMBER: Final = 777
FIRMWARE: Final = (3, 10)
MAX_SPEED_COUNTS_S: Final = 3072.0  # 45 rpm without load: the data sheet's 0.222 s for 60 degrees
STALL_CURRENT_A: Final = 2.7
CURRENT_STEP_A: Final = 0.0065
NOMINAL_VOLTAGE_V: Final = 7.4
SUPPLY_SAG_V: Final = 0.3  # what full load takes off the supply; the usual thin cables do this
AMBIENT_C: Final = 30.0
HEATING_C: Final = 50.0  # rise above ambient that stall torque would reach; load counts squared, as in copper
THERMAL_TIME_CONSTANT_S: Final = 90.0
REFERENCE_P: Final = 16  # the P coefficient that lerobot's follower writes; stiffness is relative to it
MOVING_COUNTS_S: Final = 20.0
MIDDLE_CALIBRATION: Final = 128  # written to Torque_Enable: make the present position read 2048


class Register(IntEnum):
    """Addresses. Two-byte registers are little endian and named by their first byte."""

    FIRMWARE_MAJOR = 0
    FIRMWARE_MINOR = 1
    MODEL = 3
    ID = 5
    BAUD_RATE = 6
    RETURN_DELAY = 7
    RESPONSE_LEVEL = 8
    MIN_POSITION = 9
    MAX_POSITION = 11
    MAX_TEMPERATURE = 13
    MAX_VOLTAGE = 14
    MIN_VOLTAGE = 15
    MAX_TORQUE = 16
    PHASE = 18
    UNLOADING = 19
    LED_ALARM = 20
    P = 21
    D = 22
    I = 23  # noqa: E741
    MIN_STARTUP_FORCE = 24
    CW_DEAD_ZONE = 26
    CCW_DEAD_ZONE = 27
    PROTECTION_CURRENT = 28
    RESOLUTION = 30
    HOMING_OFFSET = 31
    MODE = 33
    PROTECTIVE_TORQUE = 34
    PROTECTION_TIME = 35
    OVERLOAD_TORQUE = 36
    TORQUE_ENABLE = 40
    ACCELERATION = 41
    GOAL_POSITION = 42
    GOAL_TIME = 44
    GOAL_VELOCITY = 46
    TORQUE_LIMIT = 48
    LOCK = 55
    PRESENT_POSITION = 56
    PRESENT_VELOCITY = 58
    PRESENT_LOAD = 60
    PRESENT_VOLTAGE = 62
    PRESENT_TEMPERATURE = 63
    STATUS = 65
    MOVING = 66
    PRESENT_CURRENT = 69
    GOAL_POSITION_2 = 71
    MAX_ACCELERATION = 85


class Status(IntEnum):
    """Alarm bits: register 65, and the error byte of every reply. (An IntFlag would cost a fifth of a core.)"""

    VOLTAGE = 1
    ANGLE = 2
    HEAT = 4
    CURRENT = 8
    OVERLOAD = 32


EPROM_END: Final = 40
"""Registers below survive a loss of power, if they were written while Lock was 0."""

_READ_ONLY: Final = frozenset(range(5)) | frozenset(range(56, 73))
_SIGN_BIT: Final = {
    Register.HOMING_OFFSET: 11,
    Register.GOAL_POSITION: 15,
    Register.GOAL_VELOCITY: 15,
    Register.PRESENT_POSITION: 15,
    Register.PRESENT_VELOCITY: 15,
    Register.PRESENT_LOAD: 10,
    Register.GOAL_POSITION_2: 15,
}
_FACTORY_BYTES: Final = {
    Register.FIRMWARE_MAJOR: FIRMWARE[0],
    Register.FIRMWARE_MINOR: FIRMWARE[1],
    Register.RETURN_DELAY: 250,
    Register.RESPONSE_LEVEL: 1,
    Register.MAX_TEMPERATURE: 70,
    Register.MAX_VOLTAGE: 140,
    Register.MIN_VOLTAGE: 40,
    Register.PHASE: 12,
    Register.UNLOADING: Status.HEAT | Status.CURRENT | Status.OVERLOAD,
    Register.LED_ALARM: 47,
    Register.P: 32,
    Register.D: 32,
    Register.I: 0,
    Register.CW_DEAD_ZONE: 1,
    Register.CCW_DEAD_ZONE: 1,
    Register.RESOLUTION: 1,
    Register.PROTECTIVE_TORQUE: 20,
    Register.PROTECTION_TIME: 200,
    Register.OVERLOAD_TORQUE: 80,
}
_FACTORY_WORDS: Final = {
    Register.MODEL: MODEL_NUMBER,
    Register.MAX_POSITION: COUNTS_PER_TURN - 1,
    Register.MAX_TORQUE: 1000,
    Register.MIN_STARTUP_FORCE: 16,
    Register.PROTECTION_CURRENT: 500,
}


def encode_signed(value: int, sign_bit: int) -> int:
    """Sign-magnitude, as the firmware stores signed registers. Magnitudes that do not fit are cut off."""
    magnitude = min(abs(value), (1 << sign_bit) - 1)
    return magnitude | (1 << sign_bit) if value < 0 else magnitude


def decode_signed(raw: int, sign_bit: int) -> int:
    magnitude = raw & ((1 << sign_bit) - 1)
    return -magnitude if raw & (1 << sign_bit) else magnitude


class Servo:
    """Register file and firmware. A plant moves `position`, `velocity` and `effort`, then calls `advance`."""

    def __init__(
        self,
        servo_id: int,
        homing_offset: int = 0,
        range_min: int = 0,
        range_max: int = COUNTS_PER_TURN - 1,
        position: float = 2048.0,
    ) -> None:
        self.position = position  # counts, encoder frame
        self.velocity = 0.0  # counts/s
        self.effort = 0.0  # signed fraction of stall torque
        self.temperature_c = AMBIENT_C
        self.supply_v = NOMINAL_VOLTAGE_V
        self.present = True  # False: not on the bus (fault)
        self.powered = True  # False: the bus has no power (fault)
        self.stalled = False  # True: something blocks the joint (fault)
        self.hot_c: float | None = None  # a temperature held by a fault
        self.pending: tuple[int, bytes] | None = None  # a REG WRITE waiting for ACTION
        self._latched = 0
        self._overload_s = 0.0
        self._overload_side = 0.0  # sign of the effort that tripped the protection; 0: it was injected
        self._bytes = bytearray(256)
        for register, value in _FACTORY_BYTES.items():
            self._bytes[register] = value
        for register, value in _FACTORY_WORDS.items():
            self.set(register, value)
        self._bytes[Register.ID] = servo_id
        self.set(Register.HOMING_OFFSET, homing_offset)
        self.set(Register.MIN_POSITION, range_min)
        self.set(Register.MAX_POSITION, range_max)
        self._eprom = bytes(self._bytes[:EPROM_END])
        self.power_cycle()

    @property
    def id(self) -> int:
        return self._bytes[Register.ID]

    def byte(self, register: int) -> int:
        return self._bytes[register]

    def get(self, register: int) -> int:
        """A two-byte register, its sign decoded."""
        raw = self._bytes[register] | (self._bytes[register + 1] << 8)
        bit = _SIGN_BIT.get(register)  # type: ignore[call-overload]
        return raw if bit is None else decode_signed(raw, bit)

    def set(self, register: int, value: int) -> None:
        """Store a two-byte register, encoding its sign. Used by the firmware; packets go through `write`."""
        bit = _SIGN_BIT.get(register)  # type: ignore[call-overload]
        raw = value if bit is None else encode_signed(value, bit)
        self._bytes[register] = raw & 255
        self._bytes[register + 1] = (raw >> 8) & 255

    @property
    def reachable(self) -> bool:
        """Whether the servo answers at all."""
        return self.present and self.powered

    @property
    def torque_enabled(self) -> bool:
        return self._bytes[Register.TORQUE_ENABLE] == 1

    @property
    def driving(self) -> bool:
        """Whether the motor is really driven: enabled, powered, and not unloaded by a protection."""
        tripped = self._latched & self._bytes[Register.UNLOADING] & (Status.HEAT | Status.CURRENT)
        return self.torque_enabled and self.powered and not tripped

    @property
    def stiffness(self) -> float:
        """P coefficient relative to the one the actuator model was fitted at."""
        return self._bytes[Register.P] / REFERENCE_P

    @property
    def damping(self) -> float:
        """D coefficient relative to the default."""
        return self._bytes[Register.D] / 32

    @property
    def torque_limit(self) -> float:
        """Fraction of stall torque that the firmware allows now."""
        limit = min(self.get(Register.TORQUE_LIMIT), self.get(Register.MAX_TORQUE)) / 1000
        if self._latched & self._bytes[Register.UNLOADING] & Status.OVERLOAD:
            limit = min(limit, self._bytes[Register.PROTECTIVE_TORQUE] / 100)
        return limit

    @property
    def speed_limit(self) -> float:
        """Counts/s; Goal_Velocity 0 means as fast as the motor can."""
        wanted = abs(self.get(Register.GOAL_VELOCITY))
        return min(wanted, MAX_SPEED_COUNTS_S) if wanted else MAX_SPEED_COUNTS_S

    def present_position(self) -> int:
        """What Present_Position shows: counts after the homing offset."""
        shown = round(self.position) - self.get(Register.HOMING_OFFSET)
        return shown if self._bytes[Register.PHASE] & 0x10 else shown % COUNTS_PER_TURN

    def target(self) -> float | None:
        """Where the motor drives to, in encoder counts; None when it does not drive.

        The goal is clamped to the angle limits, and approached within the turn that the registers show: a goal on
        the far side of the wrap is reached the long way round, as on the real servo.
        """
        if not self.driving:
            return None
        goal = self.get(Register.GOAL_POSITION)
        low, high = self.get(Register.MIN_POSITION), self.get(Register.MAX_POSITION)
        if high > low:
            goal = min(high, max(low, goal))
        fraction = self.position - round(self.position)
        return self.position - fraction + goal - self.present_position()

    def status(self) -> int:
        bits = self._latched
        decivolts = self._decivolts()
        if not self._bytes[Register.MIN_VOLTAGE] <= decivolts <= self._bytes[Register.MAX_VOLTAGE]:
            bits |= Status.VOLTAGE
        if self._temperature() > self._bytes[Register.MAX_TEMPERATURE]:
            bits |= Status.HEAT
        return bits

    def read(self, address: int, length: int) -> bytes:
        """Register bytes, the present ones measured now."""
        if address + length > Register.PRESENT_POSITION:
            self._measure()
        return bytes(self._bytes[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        """What a WRITE packet does. Read-only registers keep their value, as on the real servo."""
        for offset, value in enumerate(data):
            if address + offset not in _READ_ONLY and address + offset < len(self._bytes):
                self._bytes[address + offset] = value
        if address <= Register.TORQUE_ENABLE < address + len(data):
            self._torque_written(self._bytes[Register.TORQUE_ENABLE])
        if address < EPROM_END and not self._bytes[Register.LOCK]:
            self._eprom = bytes(self._bytes[:EPROM_END])

    def power_cycle(self) -> None:
        """Reboot: EPROM comes back, SRAM is cleared, torque is off, the goal is where the joint is."""
        self._bytes[:EPROM_END] = self._eprom
        self._bytes[EPROM_END:] = bytes(len(self._bytes) - EPROM_END)
        self.set(Register.TORQUE_LIMIT, self.get(Register.MAX_TORQUE))
        self._bytes[Register.LOCK] = 1
        self._bytes[Register.MAX_ACCELERATION] = 254
        self._latched = 0
        self._overload_s = 0.0
        self.pending = None
        self.set(Register.GOAL_POSITION, self.present_position())

    def latch(self, bits: int) -> None:
        """Raise alarms that stay until torque is switched off."""
        self._latched |= bits
        self._overload_side = 0.0

    def unlatch(self) -> None:
        self._latched = 0
        self._overload_s = 0.0

    def restore(self) -> None:
        """End every injected condition: there, powered, free, cool, supplied, without an alarm."""
        self.present = self.powered = True
        self.stalled = False
        self.hot_c = None
        self.supply_v = NOMINAL_VOLTAGE_V
        self.unlatch()

    def advance(self, dt_s: float) -> None:
        """Let time pass for what the firmware watches: winding temperature and overload."""
        rise = HEATING_C * self.effort * self.effort
        self.temperature_c += (AMBIENT_C + rise - self.temperature_c) * min(1.0, dt_s / THERMAL_TIME_CONSTANT_S)
        if self._temperature() > self._bytes[Register.MAX_TEMPERATURE]:
            self._latched |= Status.HEAT
        if self.driving and abs(self.effort) * 100 > self._bytes[Register.OVERLOAD_TORQUE]:
            self._overload_s += dt_s
        else:
            self._overload_s = 0.0
        if self._overload_s * 100 >= self._bytes[Register.PROTECTION_TIME] > 0:  # the register counts 10 ms
            self._latched |= Status.OVERLOAD
            self._overload_side = self.effort
        elif self._latched & Status.OVERLOAD and self._backs_off():
            self._latched &= ~Status.OVERLOAD

    def _backs_off(self) -> bool:
        """A goal on the other side releases the overload protection, as a torque off does."""
        target = self.target()
        return target is not None and (target - self.position) * self._overload_side < 0

    def _torque_written(self, value: int) -> None:
        if value == MIDDLE_CALIBRATION:
            self.set(Register.HOMING_OFFSET, round(self.position) % COUNTS_PER_TURN - COUNTS_PER_TURN // 2)
            self._bytes[Register.TORQUE_ENABLE] = 0
        elif value == 0:
            self.unlatch()

    def _temperature(self) -> float:
        return self.temperature_c if self.hot_c is None else self.hot_c

    def _decivolts(self) -> int:
        return round((self.supply_v - SUPPLY_SAG_V * abs(self.effort)) * 10)

    def _measure(self) -> None:
        self.set(Register.PRESENT_POSITION, self.present_position())
        self.set(Register.PRESENT_VELOCITY, round(self.velocity))
        self.set(Register.PRESENT_LOAD, round(max(-1.0, min(1.0, self.effort)) * 1000))
        self._bytes[Register.PRESENT_VOLTAGE] = max(0, min(255, self._decivolts()))
        self._bytes[Register.PRESENT_TEMPERATURE] = max(0, min(255, int(self._temperature())))
        self._bytes[Register.STATUS] = self.status()
        self._bytes[Register.MOVING] = abs(self.velocity) > MOVING_COUNTS_S
        self.set(Register.PRESENT_CURRENT, round(abs(self.effort) * STALL_CURRENT_A / CURRENT_STEP_A))
        self.set(Register.GOAL_POSITION_2, self.get(Register.GOAL_POSITION))
