"""Both sides of a policy on another machine, and peers that keep to nothing."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from agent.clock import SystemClock
from agent.config import RemotePolicy
from agent.errors import AgentError
from agent.inference.bundle import Bundle
from agent.inference.engine import Actions, Engine, Guidance, Observation, Traits
from agent.inference.keys import keygen, read_server, read_station
from agent.inference.library import Library
from agent.inference.remote import RemoteEngine
from agent.inference.server import PolicyServer
from agent.inference.wire import (
    VERSION,
    Ask,
    Encoding,
    Hello,
    Predicted,
    Reply,
    Welcome,
    decode_reply,
    pack,
)
from agent.messages import encode

SIZE = (48, 64)
CAMERAS = ("observation.images.front", "observation.images.wrist")
PATIENCE_S = 20.0
"""Bounds what a broken test waits; nothing here takes as long."""


def seen(first_joint: float = 1.0, size: tuple[int, int] = SIZE) -> Observation:
    shades = np.linspace(0, 255, size[0] * size[1] * 3).astype(np.uint8).reshape(*size, 3)
    return Observation((first_joint, 2, 3, 4, 5, 6), {CAMERAS[0]: shades, CAMERAS[1]: shades[::-1].copy()}, "reach")


class Fake:
    """An engine whose every action has the observation's first joint, so that a chunk tells what it was made from."""

    def __init__(self, bundle: Bundle, answer: Callable[[Observation], Actions] | None = None) -> None:
        manifest = bundle.manifest
        self.traits = Traits("fake", "here", manifest.chunk_size, 33_333_333, manifest.cameras, True, 0.25, ("slow",))
        self.asked: list[tuple[Observation, Guidance | None, Any]] = []
        self.closed = False
        self._answer = answer or (
            lambda observation: np.full((manifest.chunk_size, 6), observation.joints[0], np.float32)
        )

    def predict(self, observation: Observation, guidance: Guidance | None = None, noise: Any = None) -> Actions:
        self.asked.append((observation, guidance, noise))
        return self._answer(observation)

    def close(self) -> None:
        self.closed = True


class Held(Fake):
    """Predicts only after it was let go."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, self._held)
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def _held(self, observation: Observation) -> Actions:
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE_S)
        return np.full((self.traits.chunk_size, 6), observation.joints[0], np.float32)


class Keys:
    """The server's folder of keys, and one for each station."""

    def __init__(self, folder: Path) -> None:
        self.server = folder / "server"
        self._folder = folder

    def station(self, name: str) -> Path:
        """The station's own folder, made at first."""
        folder = self._folder / name
        if not folder.exists():
            keygen(self.server, name)
            folder.mkdir()
            (self.server / "stations" / f"{name}.key").rename(folder / "station.key")
            (folder / "server.pub").write_bytes((self.server / "server.pub").read_bytes())
        return folder

    def stranger(self) -> Path:
        folder = self.station("stranger")
        (self.server / "stations" / "stranger.pub").unlink(missing_ok=True)
        return folder


class Running:
    def __init__(self, server: PolicyServer) -> None:
        self.server = server
        self.address = server.address
        self.error: AgentError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except AgentError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.server.stop()
        self.join()
        self.server.close()


@contextmanager
def serving(
    keys: Keys, bundle: Bundle, load: Callable[[Bundle], Engine], address: str = "tcp://127.0.0.1:*"
) -> Iterator[Running]:
    policies = bundle.folder.parent
    it = Running(PolicyServer(address, keys.server, Library(policies, policies / "none"), load, SystemClock()))
    try:
        yield it
    finally:
        it.close()


def remote(keys: Keys, address: str, bundle: Bundle, name: str = "kitchen", **how: Any) -> RemoteEngine:
    timeout_s = how.pop("timeout_s", PATIENCE_S)
    settings = RemotePolicy(address=address, keys=keys.station(name), timeout_s=timeout_s)
    return RemoteEngine(settings, bundle, **how)


class Raw:
    """A peer with a key that says whatever it likes."""

    def __init__(self, keys: Path, address: str) -> None:
        pair, server = read_station(keys)
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.CURVE_SERVERKEY, server)
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        self._events = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._events.close(0)
        self._socket.close()
        self._context.term()

    def say(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def hear(self) -> tuple[Reply, list[bytes]]:
        assert self._socket.poll(PATIENCE_S * 1000), "no reply"
        version, header, *buffers = self._socket.recv_multipart()
        assert version == VERSION
        return decode_reply(header), buffers

    def ask(self, *parts: bytes) -> Reply:
        self.say(*parts)
        return self.hear()[0]

    def until_cut(self) -> None:
        assert self._events.poll(PATIENCE_S * 1000), "still connected"


def load_there(peer: Raw, bundle: Bundle) -> None:
    while not isinstance(peer.ask(VERSION, encode(Hello(1, bundle.manifest.name, bundle.hash))), Welcome):
        time.sleep(0.01)


def request(bundle: Bundle, number: int, observation: Observation) -> list[bytes]:
    return [VERSION, *pack(number, bundle.manifest.name, bundle.hash, observation, None, None, Encoding.RGB8)]


class Scripted:
    """A server with the right key that answers what a script says, given a request and its number from 0."""

    def __init__(self, keys: Keys, script: Callable[[Any, int], Sequence[list[bytes]]]) -> None:
        import msgspec

        pair = read_server(keys.server)
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        self._socket.bind("tcp://127.0.0.1:*")
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._script = script
        self._decode = msgspec.msgpack.Decoder(Hello | Ask).decode
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Scripted":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(PATIENCE_S)
        self._socket.close()
        self._context.term()

    def _run(self) -> None:
        count = 0
        while not self._leaving.is_set():
            if not self._socket.poll(20):
                continue
            route, _, head, *_ = self._socket.recv_multipart()
            for message in self._script(self._decode(head), count):
                self._socket.send_multipart([route, *message])
            count += 1


def welcome(bundle: Bundle, number: int, **changed: Any) -> list[bytes]:
    fields: dict[str, Any] = {
        "name": "fake", "place": "here", "chunk_size": 50, "period_ns": 1, "cameras": bundle.manifest.cameras,
        "guided": True, "deviation": 0.0,
    }  # fmt: skip
    return [VERSION, encode(Welcome(number, Traits(**(fields | changed))))]


def chunk(number: int, value: float, rows: int = 50) -> list[bytes]:
    return [VERSION, encode(Predicted(number, rows, 1)), np.full((rows, 6), value, "<f4").tobytes()]
