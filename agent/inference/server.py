"""`so-agent policy serve`: predictions for stations on other machines.

One thread owns the socket and never waits for anything else; a worker loads and predicts, one thing at a time. Of
each station only the latest observation waits for its turn, and stations take turns.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from agent.clock import Clock, seconds
from agent.errors import AgentError, BadInput, BadPrediction, Fatal, Transient
from agent.inference.bundle import Bundle, read_manifest
from agent.inference.engine import Actions, Engine, Guidance, Observation
from agent.inference.gate import DOMAIN, Gate
from agent.inference.keys import MAKE, STATIONS, Pair, read_server, read_stations
from agent.inference.library import Library
from agent.inference.shelf import Key, Shelf
from agent.inference.wire import (
    MAX_MESSAGE_BYTES,
    MAX_PART_BYTES,
    REMOTE_VERSION,
    SUPERSEDED,
    VERSION,
    Ask,
    Declined,
    Hello,
    Loading,
    Noise,
    Predicted,
    Welcome,
    decode_request,
    id_in,
    unpack,
)
from agent.messages import encode
from agent.telemetry import logger

TURN_MS: Final = 1000
"""How long the loop waits for something to happen before it looks whether a prediction hangs."""

HANG_S: Final = 60.0
"""No station waits as long for a chunk. The server ends, for whatever supervises it to start it again."""

REQUESTS_WAITING: Final = 4
"""Of one connection, in zmq's own queue; more would only age, and cost memory."""

HEARTBEAT_MS: Final = 5_000
HEARTBEAT_TIMEOUT_MS: Final = 20_000
"""A station that was switched off is forgotten after this long; TCP alone would take hours."""

SAME_VERSION: Final = "Use the same so-agent version on both sides."


@dataclass(frozen=True)
class _Peer:
    station: str  # as the gate knows it
    route: bytes  # of the connection


@dataclass(frozen=True)
class _Waiting:
    peer: _Peer
    number: int
    key: Key
    observation: Observation
    guidance: Guidance | None
    noise: Noise | None


class PolicyServer:
    """Serves until `stop`. Everything but loading and predicting runs in the thread that calls `run`."""

    def __init__(
        self, address: str, keys: Path, library: Library, load: Callable[[Bundle], Engine], clock: Clock
    ) -> None:
        """`keys` is a folder with server.key and stations/. `load` makes an engine of a verified bundle; it may take
        minutes.

        Raises BadInput when there are no keys, or the address cannot be listened on.
        """
        pair = read_server(keys)
        self.stations = sorted(read_stations(keys)[0].values())
        if not self.stations:
            raise BadInput(f"{keys / STATIONS} holds no station's public key: nobody could connect.", MAKE)
        self._library, self._load, self._clock = library, load, clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate(self._context, keys, clock)
        self._socket = self._context.socket(zmq.ROUTER)
        _secure(self._socket, pair)
        self._socket.setsockopt(zmq.IPV6, int("[" in address))
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise BadInput(
                f"Cannot listen on {address}: {error}.",
                "Name an address of this machine and a free port: tcp://ADDR:PORT.",
            ) from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        for source in (self._socket, self._gate.socket, self._monitor, self._bell):
            self._poller.register(source, zmq.POLLIN)
        self._connected: dict[int, str] = {}  # file descriptor of a connection -> station, for the log
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._shelf = Shelf(clock)
        self._loading: tuple[Key, Future[Engine]] | None = None
        self._failed: dict[Key, AgentError] = {}  # loads; told once, then tried again
        self._predicting: tuple[_Waiting, int, Future[tuple[Actions, int]]] | None = None  # begun at
        self._waiting: dict[str, _Waiting] = {}  # station -> its latest; in the order of their turns
        self._leaving = False

    def stop(self) -> None:
        """End `run`. From any thread, and from a signal handler."""
        self._leaving = True
        os.eventfd_write(self._bell, 1)

    @property
    def busy(self) -> bool:
        """Whether the worker is in the middle of something."""
        return self._loading is not None or self._predicting is not None

    def run(self) -> None:
        """Raises Fatal when a prediction hangs."""
        while not self._leaving:
            ready = dict(self._poller.poll(TURN_MS))
            if self._bell in ready:
                os.eventfd_read(self._bell)
            if self._monitor in ready:
                self._notice()
            if self._gate.socket in ready:
                self._gate.answer()
            if self._socket in ready:
                self._hear()
            self._mind_worker()

    def close(self) -> None:
        """Free everything; a prediction under way is left alone."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        if not self.busy:
            for engine in self._shelf.clear():
                engine.close()
            os.close(self._bell)  # else the worker will ring it once more
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._gate.close()
        self._context.term()

    # --- requests ---

    def _hear(self) -> None:
        frames = self._socket.recv_multipart(copy=False)
        peer = _Peer(_station(frames[-1]), frames[0].bytes)
        self._connected[frames[-1].get(zmq.SRCFD)] = peer.station
        number = 0
        try:
            if len(frames) < 3:
                raise BadInput(f"A message of {len(frames) - 1} parts is no request.")
            if frames[1].bytes != VERSION:
                raise BadInput(f"Protocol version {frames[1].bytes[:8]!r} is not {REMOTE_VERSION}.", SAME_VERSION)
            number = id_in(frames[2].buffer)
            if (size := sum(map(len, frames))) > MAX_MESSAGE_BYTES:
                raise BadInput(f"The message has {size} bytes; at most {MAX_MESSAGE_BYTES} are allowed.")
            match decode_request(frames[2].buffer):
                case Hello() as hello:
                    self._greet(peer, hello)
                case Ask() as ask:
                    self._take(peer, ask, [frame.buffer for frame in frames[3:]])
        except AgentError as error:
            self._decline(peer, number, error)

    def _greet(self, peer: _Peer, hello: Hello) -> None:
        if engine := self._ready((hello.policy, hello.hash)):
            self._reply(peer, Welcome(hello.id, engine.traits))
        else:
            self._reply(peer, Loading(hello.id))

    def _take(self, peer: _Peer, ask: Ask, buffers: list[memoryview]) -> None:
        key = (ask.policy, ask.hash)
        engine = self._ready(key)
        if engine is None:
            self._reply(peer, Loading(ask.id))
            return
        if self._loading:
            raise self._elsewhere()
        observation, guidance, noise = unpack(ask, buffers)
        wanted = set(engine.traits.cameras.values())
        if observation.images.keys() != wanted:
            raise BadInput(
                f"The request has pictures of {', '.join(observation.images) or 'nothing'}; "
                f"{ask.policy} looks at {', '.join(sorted(wanted))}."
            )
        size = engine.traits.chunk_size
        if guidance is not None and len(guidance.actions) > size:
            raise BadInput(f"The guidance has {len(guidance.actions)} actions; a chunk of {ask.policy} has {size}.")
        if noise is not None and len(noise) != size:
            raise BadInput(f"The noise has {len(noise)} rows; a chunk of {ask.policy} has {size}.")
        if older := self._waiting.get(peer.station):
            self._reply(older.peer, Declined(older.number, SUPERSEDED, "A newer request came before its turn."))
        self._waiting[peer.station] = _Waiting(peer, ask.id, key, observation, guidance, noise)

    def _ready(self, key: Key) -> Engine | None:
        """The engine, or None while it is being loaded. Raises why it cannot be."""
        if engine := self._shelf.get(key):
            return engine
        if self._loading:
            if self._loading[0] == key:
                return None
            raise self._elsewhere()
        if failure := self._failed.pop(key, None):
            raise failure
        name, digest = key
        self._check_hash(name, digest)
        gone = self._shelf.make_room()
        logger.info("loading", policy=name, hash=digest)
        future = self._worker.submit(self._open, name, digest, gone)
        self._loading = (key, future)
        future.add_done_callback(self._ring)
        for it in self._waiting.values():
            self._decline(it.peer, it.number, self._elsewhere())
        self._waiting.clear()
        return None

    def _elsewhere(self) -> Transient:
        """Told at once: loading may take minutes, and silence would look like a server that is gone."""
        name = self._loading[0][0] if self._loading else "none"
        return Transient(f"The server is loading another policy ({name}).", "It answers again afterwards.")

    def _check_hash(self, name: str, digest: str) -> None:
        """Before minutes of loading. Raises BadInput."""
        own = read_manifest(self._library.find(name))[1][: len(digest)]
        if own != digest:
            raise BadInput(
                f"The policy {name} is {own} on the server and {digest} on the station.",
                "Copy the bundle's folder from one to the other.",
            )

    # --- the worker ---

    def _open(self, name: str, digest: str, gone: Engine | None) -> Engine:
        """In the worker."""
        if gone:
            gone.close()
        bundle = self._library.open(name)
        if bundle.hash != digest:
            raise BadInput(f"The policy {name} was changed while it was being loaded.", "Try again.")
        return self._load(bundle)

    def _predict(self, engine: Engine, it: _Waiting) -> tuple[Actions, int]:
        """In the worker: the chunk, and how long it took in ns."""
        begun_ns = self._clock.now_ns()
        actions = engine.predict(it.observation, it.guidance, it.noise)
        return actions, self._clock.now_ns() - begun_ns

    def _ring(self, _: object) -> None:
        os.eventfd_write(self._bell, 1)

    def _mind_worker(self) -> None:
        if self._loading and self._loading[1].done():
            (key, future), self._loading = self._loading, None
            self._shelve(key, future)
        if self._predicting:
            it, begun_ns, result = self._predicting
            if result.done():
                self._predicting = None
                self._finish(it, result)
            elif (took_s := seconds(self._clock.now_ns() - begun_ns)) > HANG_S:
                raise Fatal(f"A prediction of {it.key[0]} for {it.peer.station} hangs for {took_s:.0f} s.")
        if not self.busy and self._waiting:
            self._begin(self._waiting.pop(next(iter(self._waiting))))

    def _shelve(self, key: Key, future: Future[Engine]) -> None:
        name, digest = key
        # Not only this agent's own errors: whatever a checkpoint makes of lerobot and torch, others are to be served.
        if error := future.exception():
            failure = error if isinstance(error, AgentError) else BadInput(f"{name} cannot be loaded: {error!r}.")
            self._failed[key] = failure
            logger.error("policy not loaded", policy=name, hash=digest, reason=str(failure))
            return
        engine = future.result()
        self._shelf.put(key, engine)
        traits = engine.traits
        logger.info(
            "policy loaded", policy=name, hash=digest, engine=traits.name, deviation=traits.deviation,
            options=traits.options,
        )  # fmt: skip

    def _begin(self, it: _Waiting) -> None:
        engine = self._shelf.get(it.key)
        if engine is None:
            self._reply(it.peer, Loading(it.number))
            return
        result = self._worker.submit(self._predict, engine, it)
        self._predicting = (it, self._clock.now_ns(), result)
        result.add_done_callback(self._ring)

    def _finish(self, it: _Waiting, result: Future[tuple[Actions, int]]) -> None:
        # Out of memory, a lost device, a bug in a policy: the station is told, the others are served.
        if error := result.exception():
            failure = error if isinstance(error, AgentError) else BadPrediction(f"The policy failed: {error!r}.")
            self._decline(it.peer, it.number, failure)
            return
        actions, took_ns = result.result()
        self._reply(it.peer, Predicted(it.number, len(actions), took_ns), actions.astype("<f4").tobytes())

    # --- replies ---

    def _decline(self, peer: _Peer, number: int, error: AgentError) -> None:
        logger.warning("request refused", station=peer.station, request=number, reason=str(error))
        self._reply(peer, Declined(number, error.code, error.message, error.hint))

    def _reply(self, peer: _Peer, message: msgspec.Struct, *buffers: bytes) -> None:
        # A connection that is gone by now, or does not read, is no reason to wait: ROUTER drops what it cannot send.
        self._socket.send_multipart([peer.route, VERSION, encode(message), *buffers], zmq.NOBLOCK)

    def _notice(self) -> None:
        station = self._connected.pop(int(recv_monitor_message(self._monitor)["value"]), None)
        if station:
            logger.info("station disconnected", station=station)


def _secure(socket: "zmq.Socket[bytes]", pair: Pair) -> None:
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a gate nobody gets in, instead of everybody
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
    socket.setsockopt(zmq.RCVHWM, REQUESTS_WAITING)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def _station(frame: zmq.Frame) -> str:
    """Who sent it, as the gate said when the connection was made."""
    return str(frame.get("User-Id"))
