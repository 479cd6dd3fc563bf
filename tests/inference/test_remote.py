"""A policy on another machine: what the station gets, and what a server lets nobody do."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import zmq

from agent.clock import SystemClock, nanoseconds
from agent.config import Policy, RemotePolicy
from agent.errors import AgentError, BadInput, BadPrediction, Fatal, Refused, Transient
from agent.inference import server as server_module
from agent.inference.bundle import Bundle
from agent.inference.engine import Actions, Engine, Guidance, Observation, Traits
from agent.inference.keys import keygen, read_server, read_station
from agent.inference.library import Library
from agent.inference.remote import RemoteEngine
from agent.inference.server import PolicyServer
from agent.inference.shelf import IN_USE_S, PLACES, Shelf
from agent.inference.wire import (
    MAX_SIDE_PX,
    MAX_TASK_CHARS,
    SUPERSEDED,
    VERSION,
    Ask,
    Declined,
    Encoding,
    Hello,
    Loading,
    Picture,
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


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    it = Keys(tmp_path)
    it.station("kitchen")
    return it


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


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


# --- what a station gets --------------------------------------------------------------------------------


def test_an_observation_arrives_as_it_was_sent_and_its_chunk_comes_back(keys: Keys, smolvla_bundle: Bundle) -> None:
    fake = Fake(smolvla_bundle)
    guidance = Guidance(np.arange(60, dtype=np.float32).reshape(10, 6), 3, 8)
    noise = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with serving(keys, smolvla_bundle, lambda _: fake) as running:
        engine = remote(keys, running.address, smolvla_bundle)
        actions = engine.predict(seen(7.5), guidance, noise)
        plain = engine.predict(seen(-3))
        engine.close()
    assert actions.dtype == np.float32
    assert np.array_equal(actions, np.full((50, 6), 7.5))
    assert np.array_equal(plain, np.full((50, 6), -3))
    observation, guided, grain = fake.asked[0]
    wanted = seen(7.5)
    assert (observation.joints, observation.task) == (wanted.joints, wanted.task)
    assert all(np.array_equal(observation.images[name], wanted.images[name]) for name in CAMERAS)
    assert guided is not None
    assert np.array_equal(guided.actions, guidance.actions)
    assert (guided.delay, guided.horizon) == (3, 8)
    assert np.array_equal(grain, noise)
    assert fake.asked[1][1:] == (None, None)
    assert engine.inference_s is not None
    assert fake.closed


def test_the_traits_are_those_measured_there_and_name_the_server(keys: Keys, smolvla_bundle: Bundle) -> None:
    with serving(keys, smolvla_bundle, Fake) as running:
        traits = remote(keys, running.address, smolvla_bundle).traits
    assert traits.place == running.address
    assert (traits.name, traits.deviation, traits.options) == ("fake", 0.25, ("slow",))
    assert (traits.chunk_size, dict(traits.cameras)) == (50, smolvla_bundle.manifest.cameras)


def test_pictures_may_travel_as_jpeg_and_the_status_says_so(keys: Keys, smolvla_bundle: Bundle) -> None:
    fake = Fake(smolvla_bundle)
    with serving(keys, smolvla_bundle, lambda _: fake) as running:
        engine = remote(keys, running.address, smolvla_bundle, encoding=Encoding.JPEG)
        engine.predict(seen())
    assert engine.traits.options == ("slow", "jpeg pictures")
    for name, picture in seen().images.items():
        assert np.abs(fake.asked[0][0].images[name].astype(int) - picture).mean() < 3


def test_a_real_policy_predicts_there_what_it_predicts_here(keys: Keys, smolvla_bundle: Bundle) -> None:
    from agent.inference.engines import load_engine

    settings = Policy(engine="reference", threads=1)
    noise = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    here = load_engine(smolvla_bundle, settings).predict(seen(), None, noise)
    with serving(keys, smolvla_bundle, lambda bundle: load_engine(bundle, settings)) as running:
        there = remote(keys, running.address, smolvla_bundle).predict(seen(), None, noise)
    assert np.array_equal(here, there)


def test_the_stations_side_needs_neither_torch_nor_lerobot() -> None:
    code = "import sys, agent.inference.remote; sys.exit('torch' in sys.modules or 'lerobot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_station_waits_while_the_policy_is_loaded(keys: Keys, smolvla_bundle: Bundle) -> None:
    go, asked = threading.Event(), threading.Event()

    def load(bundle: Bundle) -> Engine:
        asked.set()
        assert go.wait(PATIENCE_S)
        return Fake(bundle)

    with serving(keys, smolvla_bundle, load) as running, Raw(keys.station("garage"), running.address) as other:
        made: list[RemoteEngine] = []
        make = threading.Thread(target=lambda: made.append(remote(keys, running.address, smolvla_bundle)))
        make.start()
        assert asked.wait(PATIENCE_S)
        hello = encode(Hello(9, smolvla_bundle.manifest.name, smolvla_bundle.hash))
        assert other.ask(VERSION, hello) == Loading(9)
        assert other.ask(*request(smolvla_bundle, 10, seen())) == Loading(10)
        assert not made
        go.set()
        make.join(PATIENCE_S)
    assert made[0].traits.name == "fake"


def test_why_a_policy_cannot_be_loaded_reaches_the_station_and_it_may_try_again(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    outcomes: list[Exception | None] = [
        BadInput("It has no legs.", "Give it some."),
        RuntimeError("out of memory"),
        None,
    ]

    def load(bundle: Bundle) -> Engine:
        if error := outcomes.pop(0):
            raise error
        return Fake(bundle)

    with serving(keys, smolvla_bundle, load) as running:
        with pytest.raises(BadInput, match="It has no legs"):
            remote(keys, running.address, smolvla_bundle)
        with pytest.raises(BadInput, match="out of memory"):
            remote(keys, running.address, smolvla_bundle)
        assert remote(keys, running.address, smolvla_bundle).traits.name == "fake"
    assert [entry["reason"] for entry in log if entry["event"] == "policy not loaded"] == [
        "It has no legs. Give it some.",
        "tiny-smolvla cannot be loaded: RuntimeError('out of memory').",
    ]


def test_several_stations_are_answered_each_with_its_own(keys: Keys, smolvla_bundle: Bundle) -> None:
    fake = Fake(smolvla_bundle)
    got: dict[str, set[float]] = {"kitchen": set(), "garage": set(), "attic": set()}
    for name in got:
        keys.station(name)

    def work(name: str, base: float) -> None:
        engine = remote(keys, running.address, smolvla_bundle, name)
        got[name] |= {float(engine.predict(seen(base + i))[0, 0]) - base - i for i in range(10)}
        engine.close()

    with serving(keys, smolvla_bundle, lambda _: fake) as running:
        stations = [threading.Thread(target=work, args=(name, i * 100.0)) for i, name in enumerate(got)]
        for station in stations:
            station.start()
        for station in stations:
            station.join(PATIENCE_S)
    assert got == {name: {0.0} for name in got}
    assert len(fake.asked) == 30


def test_the_latest_observation_of_a_station_wins_and_stations_take_turns(keys: Keys, smolvla_bundle: Bundle) -> None:
    held = Held(smolvla_bundle)
    with (
        serving(keys, smolvla_bundle, lambda _: held) as running,
        Raw(keys.station("kitchen"), running.address) as kitchen,
        Raw(keys.station("garage"), running.address) as garage,
    ):
        load_there(kitchen, smolvla_bundle)
        load_there(garage, smolvla_bundle)
        kitchen.say(*request(smolvla_bundle, 11, seen(11)))
        assert held.begun.acquire(timeout=PATIENCE_S)
        garage.say(*request(smolvla_bundle, 21, seen(21)))
        for number in (12, 13, 14):
            kitchen.say(*request(smolvla_bundle, number, seen(number)))
        for number in (12, 13):
            superseded = kitchen.hear()[0]
            assert isinstance(superseded, Declined)
            assert (superseded.id, superseded.code) == (number, SUPERSEDED)
        for _ in range(3):
            held.go.release()
        for peer, number in ((kitchen, 11), (garage, 21), (kitchen, 14)):
            reply, buffers = peer.hear()
            assert isinstance(reply, Predicted)
            assert reply.id == number
            assert np.frombuffer(buffers[0], "<f4")[0] == number
    assert sorted(observation.joints[0] for observation, _, _ in held.asked) == [11, 14, 21]


# --- who may ask ----------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_and_logged_and_let_in_once_it_is_known(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    stranger = keys.stranger()
    public = read_station(stranger)[0].public.decode()
    with serving(keys, smolvla_bundle, Fake) as running:
        with pytest.raises(BadInput, match="does not know this station's key") as refused:
            remote(keys, running.address, smolvla_bundle, "stranger")
        assert public in refused.value.hint
        assert [
            (entry["key"], entry["address"]) for entry in log if entry["event"] == "connection refused: unknown key"
        ] == [(public, "127.0.0.1")]
        (keys.server / "stations" / "stranger.pub").write_text(f"public {public}\n")
        assert remote(keys, running.address, smolvla_bundle, "stranger").predict(seen(4))[0, 0] == 4


def test_a_peer_without_any_key_gets_nowhere(keys: Keys, smolvla_bundle: Bundle) -> None:
    with serving(keys, smolvla_bundle, Fake) as running, zmq.Context() as context:
        peer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.LINGER, 0)
        failed = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED)
        peer.connect(running.address)
        peer.send_multipart([VERSION, encode(Hello(1, "tiny-smolvla", smolvla_bundle.hash))])
        assert failed.poll(PATIENCE_S * 1000)
        assert not peer.poll(0)
        peer.disable_monitor()
        failed.close(0)
        peer.close()


def test_the_wrong_servers_key_and_no_server_are_told_apart(keys: Keys, smolvla_bundle: Bundle, tmp_path: Path) -> None:
    other = Keys(tmp_path / "other")
    other.station("kitchen")
    with serving(other, smolvla_bundle, Fake) as running:
        with pytest.raises(Transient, match="does not answer") as wrong:
            remote(keys, running.address, smolvla_bundle, timeout_s=1.0)
        address = running.address
    assert "is that its key" in wrong.value.hint
    with pytest.raises(Transient, match="does not answer") as nobody:
        remote(keys, address, smolvla_bundle, timeout_s=0.2)
    assert nobody.value.hint == "Is it running, and does it know this station's key?"


def test_an_address_that_is_none_is_a_sentence(keys: Keys, smolvla_bundle: Bundle) -> None:
    with pytest.raises(BadInput, match="is no address of a policy server"):
        remote(keys, "tcp://*:5555", smolvla_bundle)


# --- what is refused ------------------------------------------------------------------------------------


def header(bundle: Bundle, **changed: Any) -> bytes:
    pictures = tuple(Picture(name, SIZE[1], SIZE[0]) for name in CAMERAS)
    fields: dict[str, Any] = {
        "id": 5, "policy": bundle.manifest.name, "hash": bundle.hash, "joints": (0.0,) * 6, "task": "reach",
        "pictures": pictures,
    }  # fmt: skip
    return encode(Ask(**(fields | changed)))


PIXELS = bytes(SIZE[0] * SIZE[1] * 3)
NUMBERS = np.zeros((50, 8), "<f4")

MALFORMED: dict[str, tuple[Callable[[Bundle], list[bytes]], str]] = {
    "one part": (lambda _: [], "is no request"),
    "no bytes": (lambda _: [b""], "cannot be read"),
    "no msgpack": (lambda _: [b"\xc1\xff\x00"], "cannot be read"),
    "a pickle": (lambda _: [b"\x80\x05\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os."], "cannot be read"),
    "a tower of brackets": (lambda _: [b"\x82\xa4type\xa3ask\xa1z" + b"\x91" * 60_000], "recursion"),
    "no utf-8": (lambda _: [b"\x82\xa4type\xa3ask\xa4task\xa2\xff\xfe"], "cannot be read"),
    "an unknown tag": (lambda _: [b"\x82\xa4type\xa4quit\xa2id\x05"], "quit"),
    "a missing field": (lambda _: [b"\x82\xa4type\xa3ask\xa2id\x05"], "missing required field"),
    "a header without end": (lambda _: [bytes(70_000)], "at most 65536"),
    "a path for a name": (lambda b: [header(b, policy="../../etc")], "regex"),
    "a long task": (lambda b: [header(b, task="x" * (MAX_TASK_CHARS + 1)), PIXELS, PIXELS], "length <= 200"),
    "too many pictures": (lambda b: [header(b, pictures=(Picture("x", 1, 1),) * 10), *[bytes(3)] * 10], "length <= 9"),
    "a huge picture": (lambda b: [header(b, pictures=(Picture("x", MAX_SIDE_PX + 1, 1),)), b""], "<= 2048"),
    "buffers missing": (lambda b: [header(b), PIXELS], "has 1 buffers; its header announces 2"),
    "buffers too many": (lambda b: [header(b), PIXELS, PIXELS, PIXELS], "has 3 buffers"),
    "a picture of another size": (lambda b: [header(b), PIXELS[3:], PIXELS], "has 9213 bytes; 64x48 has 9216"),
    "other cameras": (lambda b: [header(b, pictures=(Picture("spy", 1, 1),)), bytes(3)], "pictures of spy"),
    "no jpeg": (
        lambda b: [header(b, pictures=(Picture("x", 64, 48, Encoding.JPEG),)), b"\xff\xd8\xff" * 9],
        "is not a JPEG",
    ),
    "joints that are no numbers": (lambda b: [header(b, joints=(float("nan"),) * 6), PIXELS, PIXELS], "no numbers"),
    "guidance beyond the chunk": (
        lambda b: [header(b, guidance={"rows": 51, "delay": 0, "horizon": 9}), PIXELS, PIXELS, bytes(51 * 24)],
        "guidance has 51 actions",
    ),
    "guidance that is no numbers": (
        lambda b: [header(b, guidance={"rows": 1, "delay": 0, "horizon": 1}), PIXELS, PIXELS, b"\xff" * 24],
        "guidance holds values",
    ),
    "short noise": (
        lambda b: [header(b, noise={"rows": 50, "columns": 8}), PIXELS, PIXELS, NUMBERS[1:].tobytes()],
        "noise has 1568 bytes",
    ),
    "noise for another chunk": (
        lambda b: [header(b, noise={"rows": 49, "columns": 8}), PIXELS, PIXELS, NUMBERS[1:].tobytes()],
        "noise has 49 rows",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_is_refused_with_a_sentence_and_logged_with_the_stations_name(
    what: str, keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    make, sentence = MALFORMED[what]
    fake = Fake(smolvla_bundle)
    with (
        serving(keys, smolvla_bundle, lambda _: fake) as running,
        Raw(keys.station("kitchen"), running.address) as peer,
    ):
        load_there(peer, smolvla_bundle)
        refused = peer.ask(VERSION, *make(smolvla_bundle))
        assert isinstance(refused, Declined)
        assert refused.code == "bad-input"
        assert sentence in refused.message
        assert [(entry["station"], sentence in entry["reason"]) for entry in log if "refused" in entry["event"]] == [
            ("kitchen", True)
        ]
        assert fake.asked == []
        good = peer.ask(*request(smolvla_bundle, 6, seen(3)))
        assert isinstance(good, Predicted)  # and the server goes on


def test_a_jpeg_that_would_unpack_to_gigabytes_is_never_unpacked(keys: Keys, smolvla_bundle: Bundle) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    bomb = bytearray(file.getvalue())
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\xdc\xff\xdc"  # height and width
    with serving(keys, smolvla_bundle, Fake) as running, Raw(keys.station("kitchen"), running.address) as peer:
        load_there(peer, smolvla_bundle)
        pictures = tuple(Picture(name, 64, 48, Encoding.JPEG) for name in CAMERAS)
        refused = peer.ask(VERSION, header(smolvla_bundle, pictures=pictures), bytes(bomb), bytes(bomb))
    assert isinstance(refused, Declined)
    assert "65500x65500, not 64x48" in refused.message or "is not a JPEG" in refused.message


def test_another_protocol_version_is_refused_on_either_side(keys: Keys, smolvla_bundle: Bundle, log: list[Any]) -> None:
    hello = encode(Hello(1, smolvla_bundle.manifest.name, smolvla_bundle.hash))
    with serving(keys, smolvla_bundle, Fake) as running, Raw(keys.station("kitchen"), running.address) as peer:
        refused = peer.ask(b"99", hello)
    assert isinstance(refused, Declined)
    assert "Protocol version b'99' is not 1" in refused.message
    assert [entry["station"] for entry in log if entry["event"] == "request refused"] == ["kitchen"]
    newer = Scripted(keys, lambda message, _: [[b"2", b"whatever that is"]])
    with newer, pytest.raises(BadInput, match="speaks version b'2' of the protocol, this station 1"):
        remote(keys, newer.address, smolvla_bundle)


def test_a_message_beyond_the_limit_is_refused_and_a_part_far_beyond_it_is_not_even_received(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_MESSAGE_BYTES", 1_000_000)
    monkeypatch.setattr(server_module, "MAX_PART_BYTES", 2_000_000)
    with (
        serving(keys, smolvla_bundle, Fake) as running,
        Raw(keys.station("kitchen"), running.address) as peer,
        Raw(keys.station("garage"), running.address) as other,
    ):
        load_there(peer, smolvla_bundle)
        refused = peer.ask(VERSION, header(smolvla_bundle), bytes(600_000), bytes(600_000))
        assert isinstance(refused, Declined)
        assert "at most 1000000 are allowed" in refused.message
        assert refused.id == 5
        peer.say(VERSION, header(smolvla_bundle), bytes(2_100_000))
        peer.until_cut()
        assert isinstance(other.ask(*request(smolvla_bundle, 6, seen(3))), Predicted)
    assert [entry["station"] for entry in log if entry["event"] == "request refused"] == ["kitchen"]
    assert "kitchen" in [entry["station"] for entry in log if entry["event"] == "station disconnected"]


def test_a_bundle_that_differs_is_refused_and_so_is_one_that_is_not_there(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    name = smolvla_bundle.manifest.name
    other = Bundle(smolvla_bundle.folder, smolvla_bundle.manifest, "0123456789ab")
    with serving(keys, smolvla_bundle, Fake) as running:
        with pytest.raises(BadInput, match=f"{name} is {smolvla_bundle.hash} on the server and 0123456789ab on the"):
            remote(keys, running.address, other)
        with Raw(keys.station("kitchen"), running.address) as peer:
            missing = peer.ask(VERSION, encode(Hello(1, "nowhere", smolvla_bundle.hash)))
    assert isinstance(missing, Declined)
    assert missing.message == "There is no policy nowhere."
    assert len([entry for entry in log if entry["event"] == "request refused"]) == 2


def test_a_picture_that_no_server_takes_is_refused_before_it_is_sent(keys: Keys, smolvla_bundle: Bundle) -> None:
    fake = Fake(smolvla_bundle)
    with serving(keys, smolvla_bundle, lambda _: fake) as running:
        engine = remote(keys, running.address, smolvla_bundle)
        with pytest.raises(BadInput, match="2048 pixels a side at most"):
            engine.predict(seen(size=(MAX_SIDE_PX + 1, 4)))
        assert engine.predict(seen(5))[0, 0] == 5
    assert len(fake.asked) == 1


# --- when it goes wrong there ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (BadInput("The picture of front is 64x48, the policy's are 9x9."), BadInput, "the policy's are 9x9"),
        (BadPrediction("The policy gave nan."), BadPrediction, "gave nan"),
        (RuntimeError("CUDA out of memory"), BadPrediction, "CUDA out of memory"),
        (MemoryError(), BadPrediction, "MemoryError"),
    ],
)
def test_what_an_engine_raises_there_reaches_the_station_and_the_server_goes_on(
    keys: Keys, smolvla_bundle: Bundle, raised: Exception, kind: type[AgentError], sentence: str
) -> None:
    def answer(observation: Observation) -> Actions:
        if observation.joints[0] < 0:
            raise raised
        return np.zeros((50, 6), np.float32)

    with serving(keys, smolvla_bundle, lambda bundle: Fake(bundle, answer)) as running:
        engine = remote(keys, running.address, smolvla_bundle)
        with pytest.raises(kind, match=sentence) as error:
            engine.predict(seen(-1))
        assert running.address in error.value.message
        assert engine.predict(seen(1)).shape == (50, 6)


def test_a_prediction_that_hangs_ends_the_server(
    keys: Keys, smolvla_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANG_S", 0.05)
    monkeypatch.setattr(server_module, "TURN_MS", 10)
    held = Held(smolvla_bundle)
    with serving(keys, smolvla_bundle, lambda _: held) as running:
        engine = remote(keys, running.address, smolvla_bundle, timeout_s=1.0)
        with pytest.raises(Transient, match="does not answer"):
            engine.predict(seen())
        running.join()
        assert running.server.busy
        held.go.release()
    assert isinstance(running.error, Fatal)
    assert "hangs" in running.error.message


def test_a_server_that_is_gone_is_given_up_in_time_and_found_again(keys: Keys, smolvla_bundle: Bundle) -> None:
    timeout_s = 0.5
    with serving(keys, smolvla_bundle, Fake) as running:
        address = running.address
        engine = remote(keys, address, smolvla_bundle, timeout_s=timeout_s)
        engine.predict(seen())
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(Transient, match="does not answer"):
            engine.predict(seen())
        assert time.monotonic() - begun < timeout_s + 0.5
    other = Fake(smolvla_bundle)
    with serving(keys, smolvla_bundle, lambda _: other, address):
        actions = _predicted(engine, seen(8))
        assert np.array_equal(actions, np.full((50, 6), 8))
    engine.close()


def _predicted(engine: RemoteEngine, observation: Observation) -> Actions:
    """As a task does: what fails is tried again."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return engine.predict(observation)
        except Transient:
            assert time.monotonic() < until


def test_a_server_that_came_back_as_another_tells_what_it_is_now(keys: Keys, smolvla_bundle: Bundle) -> None:
    with serving(keys, smolvla_bundle, Fake) as running:
        address = running.address
        engine = remote(keys, address, smolvla_bundle, timeout_s=0.5)
    with pytest.raises(Transient):
        engine.predict(seen())

    class Faster(Fake):
        def __init__(self, bundle: Bundle) -> None:
            super().__init__(bundle)
            self.traits = Traits("faster", "here", 50, 33_333_333, bundle.manifest.cameras, False, 0.5)

    with serving(keys, smolvla_bundle, Faster, address):
        _predicted(engine, seen())
    assert (engine.traits.name, engine.traits.deviation, engine.traits.guided) == ("faster", 0.5, False)


# --- a server that does not keep to the protocol --------------------------------------------------------


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


def test_late_doubled_and_reordered_replies_are_never_taken_for_another_requests(
    keys: Keys, smolvla_bundle: Bundle
) -> None:
    late: list[list[bytes]] = []

    def script(message: Hello | Ask, _: int) -> list[list[bytes]]:
        if isinstance(message, Hello):
            return [welcome(smolvla_bundle, message.id)]
        value = message.joints[0]
        before = list(late)  # what was held back or sent already comes first, newest first
        late.insert(0, chunk(message.id, value))
        mine = [] if value == 3 else [late[0], late[0]]  # the third one's is held back, the others' come twice
        declined = [VERSION, encode(Declined(message.id - 1, SUPERSEDED, "too late"))]
        return [*before, chunk(message.id + 1, -99), declined, *mine]

    got = []
    with Scripted(keys, script) as server:
        engine = remote(keys, server.address, smolvla_bundle, timeout_s=0.5)
        for value in range(1, 8):
            try:
                got.append(float(engine.predict(seen(value))[0, 0]))
            except Transient:
                got.append(None)
        engine.close()
    assert got == [1, 2, None, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (lambda n: chunk(n, float("nan")), "300 of 300 values that are no numbers"),
        (lambda n: chunk(n, float("inf")), "no numbers"),
        (lambda n: chunk(n, 1, rows=49), "49 actions"),
        (lambda n: chunk(n, 1)[:2], "50 actions in 0 buffers"),
        (lambda n: [*chunk(n, 1), b"more"], "in 2 buffers"),
        (lambda n: [*chunk(n, 1)[:2], b"short"], "5 bytes"),
        (lambda n: [VERSION, b"\xc1"], "cannot be read"),
        (lambda n: [VERSION], "cannot be read"),
        (lambda n: [VERSION, encode(Hello(n, "a", "0" * 12))], "cannot be read"),
    ],
)
def test_nothing_but_a_chunk_of_numbers_is_believed(
    keys: Keys, smolvla_bundle: Bundle, reply: Callable[[int], list[bytes]], sentence: str
) -> None:
    def script(message: Hello | Ask, count: int) -> list[list[bytes]]:
        if isinstance(message, Hello):
            return [welcome(smolvla_bundle, message.id)]
        return [reply(message.id) if count == 1 else chunk(message.id, 2)]

    with Scripted(keys, script) as server:
        engine = remote(keys, server.address, smolvla_bundle)
        with pytest.raises(BadPrediction, match=sentence):
            engine.predict(seen())
        assert engine.predict(seen())[0, 0] == 2
        engine.close()


@pytest.mark.parametrize("changed", [{"chunk_size": 10}, {"cameras": {"OBS_IMAGE_1": "observation.images.front"}}])
def test_a_server_that_speaks_of_another_policy_is_not_used(
    keys: Keys, smolvla_bundle: Bundle, changed: dict[str, Any]
) -> None:
    lying = Scripted(keys, lambda message, _: [welcome(smolvla_bundle, message.id, **changed)])
    with lying, pytest.raises(BadInput, match="speaks of another tiny-smolvla"):
        remote(keys, lying.address, smolvla_bundle)


# --- several policies -----------------------------------------------------------------------------------


class HandClock:
    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def wall_s(self) -> float:
        return 0.0


def test_the_policy_that_was_asked_least_recently_makes_room_but_none_that_is_in_use(smolvla_bundle: Bundle) -> None:
    clock = HandClock()
    shelf = Shelf(clock)
    engines = [Fake(smolvla_bundle) for _ in range(PLACES)]
    for i, engine in enumerate(engines):
        assert shelf.make_room() is None
        shelf.put((f"p{i}", "0" * 12), engine)
    with pytest.raises(Refused, match="p0 and p1 are in use"):
        shelf.make_room()
    clock.ns = nanoseconds(IN_USE_S)
    assert shelf.get(("p0", "0" * 12)) is engines[0]
    assert shelf.get(("p0", "f" * 12)) is None
    assert shelf.make_room() is engines[1]
    assert shelf.clear() == [engines[0]]
