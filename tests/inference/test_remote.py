"""A policy on another machine: what the station gets, also when the server fails it."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agent.clock import nanoseconds
from agent.config import Policy
from agent.errors import AgentError, BadInput, BadPrediction, Fatal, Refused, Transient
from agent.inference import remote as remote_module
from agent.inference import server as server_module
from agent.inference.bundle import Bundle
from agent.inference.engine import Actions, Engine, Guidance, Observation, Traits
from agent.inference.remote import RemoteEngine
from agent.inference.shelf import IN_USE_S, PLACES, Shelf
from agent.inference.wire import (
    SUPERSEDED,
    VERSION,
    Ask,
    Declined,
    Encoding,
    Hello,
    Loading,
    Predicted,
)
from agent.messages import encode
from tests.inference.peers import (
    CAMERAS,
    PATIENCE_S,
    Fake,
    Held,
    Keys,
    Raw,
    Scripted,
    chunk,
    load_there,
    remote,
    request,
    seen,
    serving,
    welcome,
)

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


class HangsUp:
    """Greets as libzmq does, and hangs up in the middle of the handshake: an unknown server, or a proxy without one."""

    GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\x01" + bytes(31)

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
        self._listener.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._calls = 0
        self.enough = threading.Event()  # more calls than a monitor holds events

    def __enter__(self) -> "HangsUp":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError), self._listener.accept()[0] as peer:
                self._calls += 1
                if self._calls == 2500:
                    self.enough.set()
                peer.settimeout(0.1)
                peer.sendall(self.GREETING)
                peer.recv(1024)


def test_an_idle_station_whose_server_hangs_up_all_the_time_goes_on_with_everything_else(
    keys: Keys, smolvla_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads what a monitor tells then. libzmq waits for somebody who does, after two thousand times."""
    monkeypatch.setattr(remote_module, "RECONNECT_MS", 1)
    with serving(keys, smolvla_bundle, Fake) as running:
        address = running.address
        engine = remote(keys, address, smolvla_bundle, timeout_s=0.5)
        assert engine.predict(seen(3))[0, 0] == 3
    with HangsUp(address) as there:
        assert there.enough.wait(6 * PATIENCE_S)
        with pytest.raises(Transient, match="does not answer"):
            engine.predict(seen())
    with serving(keys, smolvla_bundle, Fake, address):
        assert _predicted(engine, seen(4))[0, 0] == 4
    engine.close()


# --- a server that does not keep to the protocol --------------------------------------------------------


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
