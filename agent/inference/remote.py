"""An engine on another machine: the station's side of `so-agent policy serve`. Needs neither torch nor lerobot."""

import dataclasses
import itertools
import secrets
import time
from typing import Final

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from agent.clock import NS_PER_MS, Clock, SystemClock, nanoseconds, seconds
from agent.config import RemotePolicy
from agent.errors import AgentError, BadInput, BadPrediction, Refused, Transient
from agent.inference.bundle import Bundle
from agent.inference.engine import Actions, Guidance, Observation, Traits
from agent.inference.keys import SERVER_PUB, read_station
from agent.inference.wire import (
    MAX_PART_BYTES,
    REMOTE_VERSION,
    VERSION,
    Declined,
    Encoding,
    Hello,
    Loading,
    Predicted,
    Reply,
    Welcome,
    decode_reply,
    floats,
    pack,
)
from agent.messages import JOINTS, encode

LOADING_S: Final = 900.0
"""A full-size policy is read, compared with lerobot's prediction and warmed up in minutes, even without a GPU."""

POLL_S: Final = 0.5
"""How often a server is asked whether it has loaded the policy."""

HEARTBEAT_MS: Final = 5_000
"""Keeps the connection alive through whatever forgets idle ones, between two tasks."""

JPEG_OPTION: Final = "jpeg pictures"

RECONNECT_MS: Final = 100
"""Between two attempts to connect; zmq's own."""

_DECLINED: Final = {error.code: error for error in (BadInput, Refused, BadPrediction)}
"""What a server may make the station raise; every other code is Transient."""

_HANDSHAKE_FAILED: Final = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class RemoteEngine:
    """One connection to one server for one policy. Made, used and closed by one thread."""

    def __init__(
        self,
        settings: RemotePolicy,
        bundle: Bundle,
        *,
        encoding: Encoding = Encoding.RGB8,
        clock: Clock | None = None,
    ) -> None:
        """Returns when the server has the policy loaded.

        Raises Transient when it does not answer, BadInput when it does not know this station or this bundle.
        """
        self._address, self._timeout_s, self._folder = settings.address, settings.timeout_s, settings.keys
        self._manifest, self._hash = bundle.manifest, bundle.hash
        self._encoding = encoding
        self._clock = clock or SystemClock()
        self._own, self._server = read_station(settings.keys)
        self._numbers = itertools.count(1)
        self._greeted = False  # by the server as it is now; one that was away may have come back as another
        self.inference_s: float | None = None  # of the last chunk, as measured there
        self._socket: zmq.Socket[bytes] | None = None  # None: the next request makes a new connection
        self._handshakes: zmq.Socket[bytes] | None = None  # tells of those that fail
        self._connect()
        try:
            self._traits = self._await_welcome()
        except BaseException:  # whatever it is: nobody else could close what is left
            self.close()
            raise

    @property
    def traits(self) -> Traits:
        """As measured there; `place` is the server's address."""
        return self._traits

    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions:
        """A chunk, shape (chunk_size, 6), finite.

        Raises Transient when there is no answer within the configured time or the server cannot predict now,
        BadPrediction when what it sends is no chunk, BadInput when it refuses the observation.
        """
        deadline_ns = self._clock.now_ns() + nanoseconds(self._timeout_s)
        if not self._greeted:
            welcome = self._greet(deadline_ns)
            if welcome is None:
                raise self._still_loading()
            self._traits = welcome
        number = next(self._numbers)
        guidance = guidance if self._traits.guided else None
        parts = pack(number, self._manifest.name, self._hash, observation, guidance, noise, self._encoding)
        reply, buffers = self._exchange(number, parts, deadline_ns)
        match reply:
            case Predicted():
                self.inference_s = seconds(reply.inference_ns)
                return self._usable(reply, buffers)
            case Loading():
                self._greeted = False
                raise self._still_loading()
            case _:
                raise BadPrediction(f"The policy server at {self._address} answered something else than a chunk.")

    def close(self) -> None:
        self._look_away()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- the policy there ---

    def _await_welcome(self) -> Traits:
        give_up_ns = self._clock.now_ns() + nanoseconds(LOADING_S)
        while self._clock.now_ns() < give_up_ns:
            if traits := self._greet(self._clock.now_ns() + nanoseconds(self._timeout_s)):
                return traits
            time.sleep(POLL_S)
        raise self._still_loading()

    def _greet(self, deadline_ns: int) -> Traits | None:
        """What the policy is like there; None while it is being loaded."""
        number = next(self._numbers)
        hello = Hello(number, self._manifest.name, self._hash)
        match self._exchange(number, [encode(hello)], deadline_ns)[0]:
            case Welcome(_, traits):
                self._greeted = True
                return self._believed(traits)
            case Loading():
                return None
            case _:
                raise BadPrediction(f"The policy server at {self._address} answered something else than a greeting.")

    def _believed(self, traits: Traits) -> Traits:
        """Raises BadInput when the server's policy cannot be the one of this bundle, whatever its hash."""
        manifest = self._manifest
        if traits.chunk_size != manifest.chunk_size or dict(traits.cameras) != manifest.cameras:
            raise BadInput(
                f"The policy server at {self._address} speaks of another {manifest.name}: "
                f"{traits.chunk_size} actions, looking at {', '.join(traits.cameras.values())}."
            )
        options = traits.options + ((JPEG_OPTION,) if self._encoding is Encoding.JPEG else ())
        return dataclasses.replace(traits, place=self._address, options=options)

    def _still_loading(self) -> Transient:
        return Transient(
            f"The policy server at {self._address} is still loading {self._manifest.name}.", "Wait for it."
        )

    def _usable(self, reply: Predicted, buffers: list[bytes]) -> Actions:
        size = self._manifest.chunk_size
        if reply.rows != size or len(buffers) != 1:
            raise BadPrediction(
                f"The policy server at {self._address} sent {reply.rows} actions in {len(buffers)} buffers; "
                f"a chunk of {self._manifest.name} has {size} in one."
            )
        try:
            actions = floats(buffers[0], size, len(JOINTS), "chunk")
        except BadInput as error:
            raise BadPrediction(f"From the policy server at {self._address}: {error.message}") from error
        if bad := int(np.count_nonzero(~np.isfinite(actions))):
            raise BadPrediction(
                f"The policy server at {self._address} sent {bad} of {actions.size} values that are no numbers."
            )
        return actions

    # --- the connection ---

    def _connect(self) -> "zmq.Socket[bytes]":
        """Raises BadInput when the address is none."""
        peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket = peer
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.IPV6, int("[" in self._address))
        peer.setsockopt(zmq.CURVE_SERVERKEY, self._server)
        peer.setsockopt(zmq.CURVE_PUBLICKEY, self._own.public)
        peer.setsockopt(zmq.CURVE_SECRETKEY, self._own.secret)
        peer.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        peer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        peer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        # Without it, failed handshakes look like silence. pyzmq's own name for it is that of the socket before, which
        # may still be on its way out.
        self._handshakes = peer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH | _HANDSHAKE_FAILED, f"inproc://handshakes-{secrets.token_hex(8)}"
        )
        try:
            peer.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise BadInput(
                f"{self._address} is no address of a policy server: {error}.", "Write it as tcp://HOST:PORT."
            ) from error
        return peer

    def _look_away(self) -> None:
        """Handshakes are watched only while somebody waits for one. What is told to a monitor that nobody reads, or
        that is gone, blocks libzmq's one thread, and with it every other socket of this process."""
        if self._socket is not None and self._handshakes is not None:
            self._socket.disable_monitor()
            self._handshakes.close(0)
        self._handshakes = None

    def _hang_up(self) -> None:
        """Nothing that was sent or is on its way can reach, or be taken for, what comes later."""
        self.close()
        self._greeted = False

    def _exchange(self, number: int, parts: list[bytes], deadline_ns: int) -> tuple[Reply, list[bytes]]:
        """The reply to the request with this number; others are late, doubled or reordered, and dropped."""
        peer = self._socket or self._connect()
        peer.send_multipart([VERSION, *parts])
        poller = zmq.Poller()
        poller.register(peer, zmq.POLLIN)
        if self._handshakes is not None:
            poller.register(self._handshakes, zmq.POLLIN)
        hint = "Is it running, and does it know this station's key?"
        while (left_ns := deadline_ns - self._clock.now_ns()) > 0:
            ready = dict(poller.poll(max(1, left_ns // NS_PER_MS)))
            if peer in ready:
                if self._handshakes is not None:
                    poller.unregister(self._handshakes)
                    self._look_away()
                reply, buffers = self._opened(peer.recv_multipart())
                if reply.id != number:
                    continue
                if isinstance(reply, Declined):
                    raise self._raised(reply)
                return reply, buffers
            if self._handshakes is not None and self._handshakes in ready:
                if recv_monitor_message(self._handshakes)["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self._hang_up()  # zmq itself gives up after this
                    raise BadInput(
                        f"The policy server at {self._address} does not know this station's key.",
                        f"Its folder stations/ needs a file NAME.pub with the line: public {self._own.public.decode()}",
                    )
                hint = f"Something answers there, but not the server of {self._folder / SERVER_PUB}: is that its key?"
        self._hang_up()
        raise Transient(f"The policy server at {self._address} does not answer.", hint)

    def _opened(self, parts: list[bytes]) -> tuple[Reply, list[bytes]]:
        if parts[0] != VERSION:
            raise BadInput(
                f"The policy server at {self._address} speaks version {parts[0][:8]!r} of the protocol, "
                f"this station {REMOTE_VERSION}.",
                "Use the same so-agent version on both sides.",
            )
        try:
            return decode_reply(parts[1] if len(parts) > 1 else b""), parts[2:]
        except BadInput as error:
            raise BadPrediction(f"From the policy server at {self._address}: {error.message}") from error

    def _raised(self, reply: Declined) -> AgentError:
        kind = _DECLINED.get(reply.code, Transient)
        return kind(f"The policy server at {self._address}: {reply.message}", reply.hint)
