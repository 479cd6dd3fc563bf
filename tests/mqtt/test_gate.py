"""Which commands pass, and that each passes once."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.api import schemas
from agent.api.mqtt.commands import LIFE_S, RECENT_IDS, REQUESTS, VERBS, Gate, Kind, Order, Reason, Refusal
from agent.api.mqtt.messages import PAYLOAD_MAX_BYTES
from agent.api.mqtt.seen import MAX_IDS, Seen
from tests.mqtt.clocks import NOW_S, OwnClock, keeping
from tests.mqtt.daemon import command, iso, payload


class Bench:
    def __init__(self, folder: Path, synchronised: bool = True) -> None:
        self.clock = OwnClock()
        self.path = folder / "seen.jsonl"
        self.synchronised = synchronised
        self.restart()

    def restart(self) -> None:
        self.seen = Seen(self.path)
        self.gate = Gate(self.clock, keeping(self.synchronised), self.seen)

    def send(self, verb: str = "hold", retained: bool = False, **options: Any) -> Order:
        options.setdefault("issued_s", self.clock.wall)
        return self.gate.examine(verb, payload(command(**options)), retained)

    def refused(self, verb: str = "hold", **options: Any) -> Refusal:
        with pytest.raises(Refusal) as refusal:
            self.send(verb, **options)
        return refusal.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_verb_of_the_http_api_was_thought_about() -> None:
    assert set(schemas.VERBS) - set(VERBS) == {"reset"}
    assert set(VERBS) <= set(REQUESTS)
    moves = {verb for verb, about in schemas.VERBS.items() if about.access is schemas.Access.MOVE}
    assert {verb for verb, kind in VERBS.items() if kind is Kind.READ} & moves == set()


@pytest.mark.parametrize(
    "verb", ["reset", "shutdown", "events", "alive", "", "hold ", "HOLD", "hold/x", "estop\x00", "#"]
)
def test_what_is_for_the_station_itself_is_not_taken(bench: Bench, verb: str) -> None:
    assert bench.refused(verb).reason is Reason.UNKNOWN_VERB


def test_a_refusal_names_the_command_also_when_the_verb_is_unknown(bench: Bench) -> None:
    assert bench.refused("reset", id="reset-0001").id == "reset-0001"


def test_a_repeated_command_is_refused(bench: Bench) -> None:
    bench.send("park", id="park-0001")
    refusal = bench.refused("park", id="park-0001")
    assert (refusal.reason, refusal.id) == (Reason.REPEATED, "park-0001")
    assert bench.refused("hold", id="park-0001").reason is Reason.REPEATED


async def test_a_command_is_refused_after_a_restart_too(bench: Bench) -> None:
    await bench.gate.remember(bench.send("park", id="park-0001"))
    await bench.gate.remember(bench.send("hold", id="hold-0001"))
    bench.restart()
    assert bench.refused("park", id="park-0001").reason is Reason.REPEATED
    assert bench.refused("hold", id="hold-0001").reason is Reason.REPEATED


def test_a_retained_command_is_refused_and_does_not_use_up_its_id(bench: Bench) -> None:
    assert bench.refused(id="hold-0001", retained=True).reason is Reason.RETAINED
    bench.send(id="hold-0001")


@pytest.mark.parametrize(
    ("verb", "issued", "life_s", "reason"),
    [
        ("hold", 0.0, 300.0, None),
        ("hold", 0.0, 301.0, Reason.LIVES_TOO_LONG),
        ("park", 0.0, 10.0, None),
        ("park", 0.0, 10.1, Reason.LIVES_TOO_LONG),
        ("park", 0.0, 0.0, Reason.LIVES_TOO_LONG),
        ("park", 0.0, -5.0, Reason.LIVES_TOO_LONG),
        ("park", -4.9, 5.0, None),
        ("park", -5.0, 5.0, Reason.EXPIRED),
        ("park", -86_400.0, 5.0, Reason.EXPIRED),
        ("park", 1.9, 5.0, None),  # clocks differ a little
        ("park", 2.1, 5.0, Reason.NOT_YET),
        ("estop", 86_400.0, 5.0, Reason.NOT_YET),
    ],
)
def test_times(bench: Bench, verb: str, issued: float, life_s: float, reason: Reason | None) -> None:
    if reason is None:
        assert bench.send(verb, issued_s=NOW_S + issued, life_s=life_s).judged
    else:
        assert bench.refused(verb, issued_s=NOW_S + issued, life_s=life_s).reason is reason


def test_motion_has_the_shortest_life() -> None:
    assert LIFE_S[Kind.MOVE] <= 10
    assert {VERBS[verb] for verb in ("task.start", "teleop.start", "teleop.stop", "park", "release")} == {Kind.MOVE}


def test_without_a_right_clock_only_stops_and_questions_pass(tmp_path: Path) -> None:
    bench = Bench(tmp_path, synchronised=False)
    arguments: dict[str, dict[str, Any]] = {"episodes.show": {"episode": 0}, "lease.renew": {"token": "x"}}
    for verb, kind in VERBS.items():
        if kind in (Kind.STOP, Kind.READ):
            # In the year 2000, as a board without a battery wakes up.
            assert not bench.send(verb, issued_s=946_684_800.0, args=arguments.get(verb, {})).judged
    assert bench.refused("park").reason is Reason.NO_CLOCK
    assert bench.refused("task.start", args={"task": "go"}).reason is Reason.NO_CLOCK
    assert bench.refused("record.stop").reason is Reason.NO_CLOCK


def test_a_stop_is_still_taken_once_without_a_clock(tmp_path: Path) -> None:
    bench = Bench(tmp_path, synchronised=False)
    bench.send("estop", id="stop-0001")
    assert bench.refused("estop", id="stop-0001").reason is Reason.REPEATED


@pytest.mark.parametrize(
    "made",
    [
        b"",
        b"on",
        b"null",
        b"[]",
        b"{}",
        b"\x00\xff\xfe",
        b'{"id": "hold-0001"}',
        b"[" * 4000,
        b'{"a":' * 1000,
        payload(command(id="short")),
        payload(command() | {"id": "x" * 65}),
        payload(command() | {"id": "hold 0001"}),
        payload(command() | {"id": "hold-0001\n"}),
        payload(command() | {"id": 12345678}),
        payload(command() | {"more": 1}),
        payload(command() | {"args": []}),
        payload(command() | {"args": {"more": 1}}),
        payload(command() | {"args": {"lease": 5}}),
        payload(command() | {"args": {"lease": "x" * 1000}}),
        payload(command() | {"args": {"via": None}}),
        payload(command() | {"issued_at": "2026-11-26T00:00:00"}),  # in which zone?
        payload(command() | {"issued_at": "yesterday"}),
        payload(command() | {"issued_at": None}),
        payload(command() | {"issued_at": True}),
        payload(command() | {"expires_at": 1e300}),
        payload(command() | {"expires_at": "9999-12-31T23:59:59.999999-23:59"}),
        payload(command() | {"issued_at": "0001-01-01T00:00:00+23:59"}),
        payload(command())[:-1],
        payload(command()) + b"{}",
        payload(command(args={"cause": "x" * PAYLOAD_MAX_BYTES})),
        payload(command()).replace(b"issued_at", b"issued\xff"),
        b'{"id": "hold-0001", "issued_at": NaN, "expires_at": Infinity}',
    ],
)
def test_what_is_no_command_is_refused_with_a_sentence(bench: Bench, made: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        bench.gate.examine("hold", made, retained=False)
    assert refusal.value.reason in (Reason.MALFORMED, Reason.LIVES_TOO_LONG)
    assert 0 < len(refusal.value.message) <= 500
    assert len(bench.seen) == 0


def test_arguments_have_the_models_of_the_http_api(bench: Bench) -> None:
    order = bench.send("task.start", args={"task": "reach the red disc", "record": True, "lease": "a-token"})
    assert order.args == {"task": "reach the red disc", "record": True, "unattended": False, "lease": "a-token"}
    refusal = bench.refused("task.start", args={"task": "x", "duration_s": "1"})
    assert refusal.reason is Reason.MALFORMED
    assert refusal.message.startswith("args.duration_s: ")


def test_a_refusal_does_not_repeat_what_may_be_secret(bench: Bench) -> None:
    refusal = bench.refused("task.start", args={"task": 5, "lease": "very-secret", "secret": "very-secret"})
    assert "very-secret" not in refusal.message


async def test_a_command_that_cannot_be_remembered_is_not_carried_out(bench: Bench) -> None:
    bench.path.mkdir()
    bench.restart()
    with pytest.raises(Refusal) as refusal:
        await bench.gate.remember(bench.send("park"))
    assert refusal.value.reason is Reason.NO_MEMORY


async def test_a_command_that_expired_while_it_was_remembered_is_not_carried_out(bench: Bench) -> None:
    order = bench.send("park", life_s=5.0)
    bench.clock.advance(5.0)
    with pytest.raises(Refusal) as refusal:
        await bench.gate.remember(order)
    assert refusal.value.reason is Reason.EXPIRED


def test_too_many_commands_are_refused_but_a_stop_is_not(bench: Bench) -> None:
    for number in range(MAX_IDS):
        bench.send("record.stop", id=f"stop-{number:05}", life_s=300.0)
    assert bench.refused("record.stop").reason is Reason.BUSY
    bench.send("hold")
    bench.send("estop")
    assert len(bench.seen) == MAX_IDS
    bench.clock.advance(301.0)
    bench.send("record.stop", life_s=300.0)
    assert len(bench.seen) == 1


def test_questions_are_remembered_in_bounds(bench: Bench) -> None:
    for number in range(3 * RECENT_IDS):
        bench.send("status", id=f"status-{number:05}")
    assert len(bench.gate._recent) == RECENT_IDS
    assert bench.refused("status", id=f"status-{3 * RECENT_IDS - 1:05}").reason is Reason.REPEATED


def test_what_was_forgotten_stays_expired_when_the_clock_is_set_back(bench: Bench) -> None:
    made = payload(command(issued_s=NOW_S, life_s=10.0))
    bench.seen.keep(bench.gate.examine("park", made, retained=False).id)
    bench.clock.advance(20)
    bench.seen._forget(bench.clock.wall)
    bench.seen._rewrite()
    bench.clock.wall -= 20
    for _ in range(2):
        with pytest.raises(Refusal) as refusal:
            bench.gate.examine("park", made, retained=False)
        assert refusal.value.reason is Reason.EXPIRED
        bench.restart()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(["send", "send another", "later", "earlier", "forget", "restart"]), min_size=5, max_size=25
    )
)
def test_no_message_is_taken_twice_whatever_the_clock_does(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same messages come again and again, between restarts, floods, and a clock that is set back and forth."""
    bench = Bench(tmp_path_factory.mktemp("gate"))
    messages = {
        "send": payload(command(issued_s=NOW_S, life_s=10.0, id="command-1")),
        "send another": payload(command(issued_s=NOW_S + 20, life_s=10.0, id="command-2")),
    }
    taken: list[str] = []
    for step in steps:
        match step:
            case "later":
                bench.clock.advance(20)
            case "earlier":
                bench.clock.wall -= 20
            case "forget":  # what a flood does
                bench.seen._forget(bench.clock.wall)
                bench.seen._rewrite()
            case "restart":
                bench.restart()
            case _:
                with contextlib.suppress(Refusal):
                    order = bench.gate.examine("park", messages[step], retained=False)
                    bench.seen.keep(order.id)
                    taken.append(order.id)
    assert len(taken) == len(set(taken))


def test_the_payload_of_a_command_is_what_the_guide_shows() -> None:
    made = command({"cause": "hand in the way"}, issued_s=NOW_S)
    assert json.loads(payload(made))["issued_at"] == iso(NOW_S)
