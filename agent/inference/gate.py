"""Who may connect to a policy server: the stations whose public keys lie in its folder, and nobody else.

libzmq asks for every new connection on an inproc socket of its own (ZAP, ZeroMQ RFC 27). The folder is read each
time: a key that is put in or taken out counts from the next connection on.
"""

from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from agent.clock import Clock, nanoseconds
from agent.inference.keys import read_stations
from agent.telemetry import logger

DOMAIN: Final = b"policy"

LOG_S: Final = 1.0
"""Refusals are logged at most this often, with their number: a stranger who tries for ever must not fill a disk."""

_ADDRESS: Final = "inproc://zeromq.zap.01"
_ASKED_PARTS: Final = 7  # version, request id, domain, address, identity, mechanism, public key


class Gate:
    """Must exist before the server's socket is bound; answered in the server's own loop."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", keys: Path, clock: Clock) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ADDRESS)
        self._keys = keys
        self._clock = clock
        self._refused = 0  # since the last line in the log
        self._logged_ns: int | None = None

    def answer(self) -> None:
        """Answer one question, which must be there."""
        parts = self.socket.recv_multipart()
        request = parts[1] if len(parts) > 1 else b""
        station = self._station(parts)
        if station is None:
            self._log(parts)
            self.socket.send_multipart([b"1.0", request, b"400", b"unknown key", b"", b""])
        else:
            self.socket.send_multipart([b"1.0", request, b"200", b"OK", station.encode(), b""])

    def _station(self, parts: list[bytes]) -> str | None:
        if len(parts) != _ASKED_PARTS or parts[2] != DOMAIN or parts[5] != b"CURVE":
            return None
        known, problems = read_stations(self._keys)
        for problem in problems:
            logger.warning("key file ignored", reason=problem)
        return known.get(z85.encode(parts[6]))

    def _log(self, parts: list[bytes]) -> None:
        self._refused += 1
        now_ns = self._clock.now_ns()
        if self._logged_ns is not None and now_ns - self._logged_ns < nanoseconds(LOG_S):
            return
        key = z85.encode(parts[6]).decode() if len(parts) == _ASKED_PARTS and len(parts[6]) == 32 else None
        address = parts[3].decode(errors="replace") if len(parts) > 3 else None
        logger.warning("connection refused: unknown key", key=key, address=address, refused=self._refused)
        self._refused, self._logged_ns = 0, now_ns

    def close(self) -> None:
        self.socket.close()
