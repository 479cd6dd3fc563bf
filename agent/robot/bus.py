"""Six servos behind lerobot's own driver, with every write read back.

Registers are read in blocks and in counts. Status bits in replies (overload, heat, voltage) never prevent a read
or a release: lerobot's `read` and `write` raise on them although the servo did as it was told, and its ping calls
such a motor missing.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig
from lerobot.teleoperators.so_leader import SOLeader, SOLeaderTeleopConfig

from agent.config import StationConfig
from agent.errors import BadInput, DeviceFault
from agent.messages import JOINTS
from agent.robot import calibration
from agent.robot.calibration import Calibration, CalibrationReport, Match
from agent.robot.port import GuardedPort, NoReply, guard
from agent.robot.registers import LIVE, MODEL_NUMBER, SERVO_IDS, SETTINGS, Block, Live, Settings

type Role = Literal["follower", "leader"]

TRIES: Final = 3
"""For what must be read or written now; each costs at most the bus time-out."""

EPROM_TIMEOUT_MS: Final = 100.0
"""A servo answers late while it burns its EPROM; writing there happens only at setup, never in a tick."""

FULL_ACCELERATION: Final = 254
"""The highest value; speed is limited here, tick by tick, and a servo that ramps on its own lags behind."""

_FOLLOWER_SETTINGS: Final = {
    # As SOFollower.configure() writes them, which cannot be used: it switches the torque off to do so.
    "Return_Delay_Time": 0,
    "Operating_Mode": 0,
    "P_Coefficient": 16,
    "I_Coefficient": 0,
    "D_Coefficient": 32,
}
_LEADER_SETTINGS: Final = {"Return_Delay_Time": 0, "Operating_Mode": 0}
_GRIPPER_SETTINGS: Final = {"Max_Torque_Limit": 500, "Protection_Current": 250, "Overload_Torque": 25}
_SAFE_WITH_TORQUE: Final = frozenset({"Return_Delay_Time", "P_Coefficient", "I_Coefficient", "D_Coefficient"})
_FIELDS: Final = {
    "Return_Delay_Time": "return_delay",
    "Operating_Mode": "operating_mode",
    "P_Coefficient": "p",
    "I_Coefficient": "i",
    "D_Coefficient": "d",
    "Max_Torque_Limit": "max_torque",
    "Protection_Current": "protection_current",
    "Overload_Torque": "overload_torque",
    "Phase": "phase",
    "Homing_Offset": "homing_offset",
    "Min_Position_Limit": "range_min",
    "Max_Position_Limit": "range_max",
}


class ServoBus:
    """One arm's bus. Used by one thread. After any PortLost it is closed and thrown away, never reopened."""

    def __init__(self, config: StationConfig, role: Role) -> None:
        arm = config.robot.follower if role == "follower" else config.robot.leader
        if arm is None:
            raise DeviceFault("This station has no leader arm.", "Add robot.leader to the configuration.")
        path = config.paths.follower_calibration if role == "follower" else config.paths.leader_calibration
        assert path is not None  # noqa: S101 - there is one for every arm
        self.role = role
        self.calibration_path: Path = path
        self.calibration: Calibration | None = None
        self.calibration_error: BadInput | None = None
        arm_id = arm.id
        try:
            self.calibration = calibration.load(path)
        except BadInput as error:
            # Kept, not raised: an arm with a broken file must not move, but a person must be able to release it.
            self.calibration_error = error
            arm_id = f"{arm.id}.unreadable"  # lerobot would read the file too, and raise
        self.arm = _make(role, str(arm.port), arm_id, path.parent)
        self.port: GuardedPort = guard(self.arm.bus, config.robot.bus_timeout_ms)
        self._packets: Any = self.arm.bus.packet_handler

    def open(self) -> None:
        """Open the port for ourselves alone. Raises BadInput (absent, held) or PortLost."""
        self.arm.bus.connect(handshake=False)  # lerobot's own handshake refuses servos that report an alarm

    def close(self) -> None:
        """Close the port whatever state it is in. Torque stays as it is."""
        self.port.closePort()

    # --- reading ---

    def positions(self) -> dict[str, int]:
        """Present positions in counts, one transaction, no retry. Raises NoReply or PortLost."""
        return self._sync_read("Present_Position")

    def live(self, tries: int = TRIES) -> dict[str, Live]:
        """What every servo does now."""
        return {name: Live.parse(data) for name, data in self._blocks(LIVE, tries).items()}

    def live_of(self, name: str, tries: int = TRIES) -> Live:
        """The same of one servo."""
        return Live.parse(self._block(name, LIVE, tries))

    def settings(self) -> dict[str, Settings]:
        """What every servo keeps. Raises DeviceFault naming those that do not answer, and where to look."""
        found: dict[str, Settings] = {}
        for attempt in range(TRIES):
            for name in JOINTS:
                if name not in found:
                    with contextlib.suppress(NoReply):
                        found[name] = Settings.parse(self._block(name, SETTINGS, tries=1))
            if attempt == 0 and not found:
                break  # a silent bus is asked once: there is no power, and the next attempt to connect comes soon
        if missing := [name for name in JOINTS if name not in found]:
            raise _missing(missing)
        for name, servo in found.items():
            if servo.model != MODEL_NUMBER:
                raise DeviceFault(
                    f"The servo of {name} (id {SERVO_IDS[name]}) is model {servo.model}, not an STS3215.",
                    "Use six STS3215 servos.",
                )
        return found

    @property
    def status_bits(self) -> dict[str, int]:
        """The status bits that came with the last read of positions: alarms without a poll of their own."""
        bits: dict[int, int] = self.arm.bus.sync_reader.status_bits
        return {name: bits.get(servo_id, 0) for name, servo_id in SERVO_IDS.items()}

    def _sync_read(self, register: str) -> dict[str, int]:
        try:
            values: dict[str, int] = self.arm.bus.sync_read(register, normalize=False)
        except ConnectionError as error:
            raise NoReply(f"No answer to a read of {register}.") from error
        return values

    def _blocks(self, block: Block, tries: int) -> dict[str, bytes]:
        reader = self.arm.bus.sync_reader
        for _ in range(tries):
            self.arm.bus._setup_sync_reader(list(SERVO_IDS.values()), block.address, block.size)
            if reader.txRxPacket() == self.arm.bus._comm_success:
                return {name: bytes(reader.data_dict[servo_id]) for name, servo_id in SERVO_IDS.items()}
        raise NoReply("Not all servos answer.")

    def _block(self, name: str, block: Block, tries: int = TRIES) -> bytes:
        for _ in range(tries):
            size = block.size + self.port.pad()
            data, result, _ = self._packets.readTxRx(self.port, SERVO_IDS[name], block.address, size)
            if result == self.arm.bus._comm_success and len(data) == size:
                return bytes(data[: block.size])
            self.port.reply_lost()
        raise NoReply(f"The servo of {name} (id {SERVO_IDS[name]}) does not answer.")

    # --- writing ---

    def write_goals(self, counts: Mapping[str, int]) -> None:
        """Send goals. Unacknowledged: a silent bus takes them without complaint."""
        self._sync_write("Goal_Position", counts)

    def _sync_write(self, register: str, values: Mapping[str, int]) -> None:
        try:
            self.arm.bus.sync_write(register, dict(values), normalize=False)
        except ConnectionError as error:
            raise NoReply(f"{register} could not be sent.") from error

    def write(self, register: str, name: str, value: int) -> None:
        """Write one register and leave the proof to the caller, who reads it back."""
        try:
            self.arm.bus.write(register, name, value, normalize=False)
        except RuntimeError:
            return  # the reply carries an alarm; the write was made all the same
        except ConnectionError:
            self.port.reply_lost()  # perhaps written, only the acknowledgement is missing

    def set_goal(self, name: str, counts: int) -> None:
        """Write the goal of one servo, verified. Raises NoReply."""
        self._set_live("Goal_Position", name, counts, lambda live: live.goal == counts)

    def set_torque(self, name: str, on: bool) -> None:
        """Switch the torque of one servo, verified. Raises NoReply."""
        self._set_live("Torque_Enable", name, int(on), lambda live: live.torque_on is on)

    def _set_live(self, register: str, name: str, value: int, done: Callable[[Live], bool]) -> None:
        for _ in range(TRIES):
            self.write(register, name, value)
            if done(self.live_of(name)):
                return
        raise NoReply(f"The servo of {name} (id {SERVO_IDS[name]}) does not take {register} {value}.")

    def release(self, names: Iterable[str] = JOINTS) -> list[str]:
        """Torque off on every servo, verified. Returns those that could not be released; raises only PortLost.

        One packet tells all of them at once, whether or not they answer; lerobot's own `disable_torque` goes from
        servo to servo and stops at the first that fails, the others staying under torque.
        """
        names = list(names)
        self._sync_write("Torque_Enable", dict.fromkeys(names, 0))
        try:
            released = {name for name, live in self.live(tries=1).items() if not live.torque_on}
        except NoReply:
            released = set()
        failed = []
        for name in names:
            if name in released:
                continue
            try:
                self.write("Torque_Enable", name, 0)
                if self.live_of(name, tries=1).torque_on:
                    failed.append(name)
            except NoReply:
                failed.append(name)
        return failed

    def compare_calibration(self, servos: Mapping[str, Settings]) -> CalibrationReport:
        """Does the calibration file belong to the arm on this bus?"""
        if self.calibration_error:
            return CalibrationReport(Match.NO_FILE, self.calibration_error.message, self.calibration_error.hint)
        return calibration.compare(self.calibration, servos, self.calibration_path)

    def configure(self, servos: Mapping[str, Settings], limp: bool) -> list[str]:
        """Bring the settings to lerobot's values, writing only what differs; returns what has to wait for a limp arm.

        With torque on only those are touched that change nothing about where the joint is.
        """
        waiting = []
        for name, live in self.live().items():
            if live.acceleration != FULL_ACCELERATION:  # SRAM: gone after every loss of power
                self.write("Maximum_Acceleration", name, FULL_ACCELERATION)
                self.write("Acceleration", name, FULL_ACCELERATION)
            for register, value in self._wanted(name, servos[name]).items():
                if getattr(servos[name], _FIELDS[register]) == value:
                    continue
                if limp or register in _SAFE_WITH_TORQUE:
                    self.set_setting(register, name, value)
                else:
                    waiting.append(f"{name}.{register}")
        return waiting

    def _wanted(self, name: str, servo: Settings) -> dict[str, int]:
        # Bit 4 of Phase makes positions run past one turn; lerobot clears it too.
        wanted = {"Phase": servo.phase & ~0x10}
        if self.role == "leader":
            return wanted | _LEADER_SETTINGS
        return wanted | _FOLLOWER_SETTINGS | (_GRIPPER_SETTINGS if name == JOINTS[-1] else {})

    def set_setting(self, register: str, name: str, value: int) -> None:
        """Write one EPROM register for good, verified. Raises NoReply."""
        usual, self.port.timeout_ms = self.port.timeout_ms, EPROM_TIMEOUT_MS
        try:
            for _ in range(TRIES):
                self.write("Lock", name, 0)  # with Lock set, the value would be gone after the next power-up
                self.write(register, name, value)
                self.write("Lock", name, 1)
                written = Settings.parse(self._block(name, SETTINGS))
                if getattr(written, _FIELDS[register]) == value:
                    return
        finally:
            self.port.timeout_ms = usual
        raise NoReply(f"The servo of {name} (id {SERVO_IDS[name]}) does not take {register} {value}.")


def _make(role: Role, port: str, arm_id: str, folder: Path) -> Any:
    if role == "leader":
        return SOLeader(SOLeaderTeleopConfig(id=arm_id, port=port, calibration_dir=folder, num_read_retries=0))
    # No cameras: SOFollower counts as connected only while all of them are. No retries: a read that fails is one
    # missing measurement, three in a row would be three ticks.
    return SOFollower(
        SOFollowerRobotConfig(
            id=arm_id, port=port, calibration_dir=folder, disable_torque_on_disconnect=False, num_read_retries=0
        )
    )


def _missing(names: list[str]) -> DeviceFault:
    if len(names) == len(JOINTS):
        return DeviceFault("No servo answers.", "Is the arm's power supply on?")
    listed = ", ".join(f"{name} (id {SERVO_IDS[name]})" for name in names)
    position = JOINTS.index(names[0])
    before = f"from {JOINTS[position - 1]} (id {position})" if position else "from the controller board"
    verb = "does" if len(names) == 1 else "do"
    return DeviceFault(f"The servo of {listed} {verb} not answer.", f"Check the cable {before} to {names[0]} first.")
