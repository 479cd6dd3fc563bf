"""The serial port under lerobot's driver, with the guards that the driver lacks.

`guard` puts them under any lerobot Feetech bus: everything above (FeetechMotorsBus, SOFollower, SOLeader)
stays as lerobot ships it.
"""

import contextlib
import errno
import fcntl
import os
import termios
import time
from pathlib import Path
from typing import Any, Final

import scservo_sdk as scs
import serial

from agent.errors import BadInput, DeviceFault

POLL_S: Final = 0.001
"""The SDK waits for replies in a spinning loop of reads; each of ours sleeps in the kernel for up to this long."""

WRITE_TIMEOUT_S: Final = 0.02
"""A packet of 50 bytes leaves in 0.5 ms. A port that takes no bytes for this long is wedged; without a limit
the write would block for ever and an e-stop with it."""

LATE_REPLY_S: Final = 1.0
"""How long after a lost reply a late one is still reckoned with."""

PADS: Final = 8
"""Different reply lengths used in turn while a late reply is reckoned with. One a tick: a reply would have to be
late by exactly eight ticks to be taken for another."""


class PortLost(DeviceFault):
    """The port itself is gone or wedged. Only a new driver object helps."""


class NoReply(DeviceFault):
    """The port works, but a servo did not answer, or not intelligibly."""


class GuardedPort(scs.PortHandler):  # type: ignore[misc]
    """lerobot's port handler, made safe for a process that never ends. Methods in camelCase are the SDK's."""

    def __init__(self, port_name: str, timeout_ms: float) -> None:
        super().__init__(port_name)
        self.is_open: bool = False
        self.timeout_ms = timeout_ms
        self._late_until_s = 0.0
        self._pad = 0

    # --- opening and closing ---

    def setupPort(self, cflag_baud: int) -> bool:
        if self.is_open:
            self.closePort()
        path = str(self.port_name)
        try:
            self.ser = serial.Serial(port=path, baudrate=self.baudrate, timeout=POLL_S, write_timeout=WRITE_TIMEOUT_S)
        except (OSError, termios.error) as error:
            raise _cannot_open(path, error) from error
        try:
            _lock(self.ser.fd, path)
            self.ser.reset_input_buffer()
        except (OSError, termios.error) as error:
            self.ser.close()
            raise PortLost(f"The port {path} does not work: {error}.") from error
        except BadInput:
            self.ser.close()
            raise
        self.is_open = True
        self.tx_time_per_byte = (1000.0 / self.baudrate) * 10.0
        return True

    def closePort(self) -> None:
        # `is_open` must be False before a lerobot object is collected: its __del__ disconnects an open
        # one, which switches the torque off and drops the arm.
        self.is_open = False
        self.is_using = False
        if self.ser is None:
            return
        # close() may wait for bytes that nobody takes. The device may be gone, and the descriptor with it.
        with contextlib.suppress(OSError, termios.error, TypeError):
            termios.tcflush(self.ser.fd, termios.TCIOFLUSH)
        try:
            self.ser.close()
        except (OSError, termios.error):
            # Not closed twice: by the time the object is collected, the number belongs to another file.
            fd, self.ser.fd, self.ser.is_open = self.ser.fd, None, False
            with contextlib.suppress(OSError, TypeError):
                os.close(fd)

    # --- bytes ---

    def clearPort(self) -> None:
        """Called by the SDK before each transmission, where it only drains the output.

        Without emptying the input too, one late reply shifts every later read: 5 of 600 observations were
        silently stale with 2% drops.
        """
        try:
            self.ser.reset_input_buffer()
        except (OSError, termios.error) as error:  # termios.error is not an OSError
            raise self._lost(error) from error

    def readPort(self, length: int) -> bytes:
        try:
            data: bytes = self.ser.read(length)
        except (OSError, termios.error, TypeError) as error:  # TypeError: closed under our feet
            raise self._lost(error) from error
        return data

    def writePort(self, packet: list[int]) -> int:
        try:
            count: int = self.ser.write(packet)
        except (OSError, termios.error, TypeError) as error:
            raise self._lost(error) from error
        return count

    def _lost(self, error: Exception) -> PortLost:
        self.is_using = False
        return PortLost(f"The port {self.port_name} is gone: {error}.", "Check the USB cable.")

    # --- time ---

    def getCurrentTime(self) -> float:
        """Milliseconds. The SDK takes the wall clock here, which NTP may set while a reply is awaited."""
        return time.monotonic() * 1e3

    def setPacketTimeout(self, packet_length: int) -> None:
        """Wire time plus `timeout_ms`; lerobot allows 50 ms, longer than a tick."""
        self.packet_start_time = self.getCurrentTime()
        self.packet_timeout = self.tx_time_per_byte * packet_length + self.timeout_ms

    # --- late replies ---

    def reply_lost(self) -> None:
        """A reply did not come; for a while it may still come late."""
        self._late_until_s = time.monotonic() + LATE_REPLY_S

    def pad(self) -> int:
        """Bytes to ask for beyond those wanted: 0, or while a late reply may come, another number each time.

        Feetech packets carry no sequence number; a reply whose length differs from that of the request is how
        a late one is told from the one that is awaited.
        """
        if time.monotonic() >= self._late_until_s:
            return 0
        self._pad = self._pad % PADS + 1
        return self._pad


class StrictSyncRead(scs.GroupSyncRead):  # type: ignore[misc]
    """The SDK's sync read, which accepts only the replies that were asked for: those ids, that order, that length.

    The SDK's own skips what does not fit and goes on. The status bits in each reply, which it throws away, are
    kept in `status_bits`.
    """

    def __init__(self, port: GuardedPort, packets: Any) -> None:
        super().__init__(port, packets, 0, 0)
        self.data_length: int = 0
        self.status_bits: dict[int, int] = {}

    def txRxPacket(self) -> int:
        wanted = self.data_length
        self.data_length = wanted + self.port.pad()
        try:
            result = self.txPacket()
            if result == scs.COMM_SUCCESS:
                result = self._receive()
            if result != scs.COMM_SUCCESS:
                self.port.reply_lost()
            return int(result)
        finally:
            self.data_length = wanted

    def _receive(self) -> int:
        for servo_id in self.data_dict:
            packet, result = self.ph.rxPacket(self.port)
            if result != scs.COMM_SUCCESS:
                return int(result)
            # header 2, id, length, status, data, checksum
            if packet[2] != servo_id or len(packet) != self.data_length + 6:
                return int(scs.COMM_RX_CORRUPT)
            self.status_bits[servo_id] = packet[4]
            self.data_dict[servo_id] = packet[5:-1]
        return int(scs.COMM_SUCCESS)


def guard(bus: Any, timeout_ms: float) -> GuardedPort:
    """Put a GuardedPort and strict reads under a lerobot FeetechMotorsBus that is not connected yet."""
    port = GuardedPort(bus.port, timeout_ms)
    bus.port_handler = port
    bus.sync_reader = StrictSyncRead(port, bus.packet_handler)
    bus.sync_writer = scs.GroupSyncWrite(port, bus.packet_handler, 0, 0)
    return port


def _lock(fd: int, path: str) -> None:
    """Make the port ours alone: a second open of it succeeds otherwise, and then half of the reads fail."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held(path) from error
    # On a pseudo-terminal the program behind it has it open too, and TIOCEXCL outlives its setter for as long as
    # that program runs: it would lock us out after a crash.
    if os.ttyname(fd).startswith("/dev/pts/"):
        return
    # flock binds only those who ask for it: lerobot's own tools do not, and may be at work on this port already.
    if holder(Path(path)):
        raise _held(path)
    fcntl.ioctl(fd, termios.TIOCEXCL)  # binds everyone but root, from now on


def _cannot_open(path: str, error: Exception) -> Exception:
    match getattr(error, "errno", None):
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return BadInput(f"The port {path} does not exist.", "Is the arm plugged in? See `ls /dev/serial/by-id/`.")
        case errno.EACCES:
            return BadInput(f"The port {path} may not be opened.", "Add this user to the group `dialout`.")
        case errno.EBUSY:
            return _held(path)
        case _:
            return PortLost(f"The port {path} cannot be opened: {error}.")


def _held(path: str) -> BadInput:
    pid = holder(Path(path))
    who = f"process {pid} ({_name(pid)})" if pid else "another process"
    return BadInput(f"The port {path} is held by {who}.", "Stop that program first; one bus has one owner.")


def holder(path: Path) -> int | None:
    """The process that has `path` open, other than this one; None when it cannot be found."""
    device = os.path.realpath(path)
    openers = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # Processes end while they are listed, and those of other users may not be read.
        with contextlib.suppress(OSError):
            for link in (entry / "fd").iterdir():
                if os.readlink(link) != device:
                    continue
                if "lock:" in (entry / "fdinfo" / link.name).read_text():
                    return int(entry.name)
                openers.append(int(entry.name))
    return openers[0] if openers else None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
