"""Home Assistant finds the station by itself, shows it rightly, and its buttons make commands that pass."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from agent.api.mqtt.commands import Gate
from agent.api.mqtt.home_assistant import STATE_MAX_CHARS, announcement
from agent.api.mqtt.messages import State, stamp
from agent.api.mqtt.seen import Seen
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.modes import Mode
from tests.mqtt.broker import Broker, connected
from tests.mqtt.clocks import keeping
from tests.mqtt.conftest import Bench, surfaced
from tests.mqtt.daemon import FakeDaemon, command, payload

NOW = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)

# What its device discovery takes (homeassistant/components/mqtt/schemas.py and the platforms' own).
DEVICE_KEYS = {
    "identifiers",
    "connections",
    "manufacturer",
    "model",
    "name",
    "hw_version",
    "serial_number",
    "sw_version",
}
ROOT_KEYS = {
    "device", "origin", "components", "state_topic", "command_topic", "qos", "encoding", "availability",
    "availability_mode",
}  # fmt: skip
COMMON = {
    "platform",
    "name",
    "unique_id",
    "icon",
    "entity_category",
    "json_attributes_topic",
    "json_attributes_template",
}
PLATFORMS = {
    "sensor": {"device_class", "options", "value_template", "state_class", "unit_of_measurement"},
    "binary_sensor": {"device_class", "value_template"},
    "event": {"state_topic", "event_types", "value_template"},
    "button": {"command_topic", "command_template"},
    "switch": {
        "command_topic",
        "command_template",
        "payload_on",
        "payload_off",
        "state_on",
        "state_off",
        "value_template",
    },
}


def render(template: str, value_json: Any = None, **more: Any) -> str:
    """As Home Assistant does: Jinja in a sandbox, with its own functions."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.globals |= {"utcnow": lambda: datetime.now(UTC), "timedelta": timedelta}
    return environment.from_string(template).render(value_json=value_json, **more)


@pytest.fixture
def described(make_config: Callable[..., StationConfig]) -> dict[str, Any]:
    topic, description = announcement(make_config(station="kitchen", mqtt={"host": "localhost"}))
    assert topic == "homeassistant/device/kitchen/so-agent/config"
    made: dict[str, Any] = json.loads(json.dumps(description))
    return made


def test_it_is_what_device_discovery_takes(described: dict[str, Any]) -> None:
    assert set(described) <= ROOT_KEYS
    assert set(described["device"]) <= DEVICE_KEYS
    assert described["device"]["name"] == "SO-101 kitchen"
    unique = {entity["unique_id"] for entity in described["components"].values()}
    assert len(unique) == len(described["components"]) >= 10
    for entity in described["components"].values():
        assert set(entity) <= COMMON | PLATFORMS[entity["platform"]]


def states() -> list[dict[str, Any]]:
    at = stamp(0.0)
    good = State(at=at, reachable=True, mode=Mode.IDLE, reason="parked", hottest_c=31, episodes=3, free_gb=40)
    return [
        state.model_dump(mode="json")
        for state in (
            good,
            good.model_copy(update={"mode": Mode.ESTOP, "reason": "x" * 900, "alarms": ["gripper: overload"]}),
            State(at=at, reachable=False, reason="No agent answers."),
        )
    ]


def test_every_state_can_be_shown(described: dict[str, Any]) -> None:
    for state in states():
        for name, entity in described["components"].items():
            if "value_template" not in entity or entity["platform"] == "event":
                continue
            shown = render(entity["value_template"], state)
            assert len(shown) <= STATE_MAX_CHARS, name
            if options := entity.get("options"):
                assert shown in [*options, "None"]  # None: unknown
            if entity["platform"] == "binary_sensor":
                assert shown in ("ON", "OFF")
            if attributes := entity.get("json_attributes_template"):
                assert json.loads(render(attributes, state)) == {"alarms": state["alarms"], "failed": state["failed"]}


def test_an_emergency_stop_is_a_problem_and_a_teleoperated_arm_moves(described: dict[str, Any]) -> None:
    problem, moving = (described["components"][name]["value_template"] for name in ("problem", "moving"))
    idle, stopped, _ = states()
    assert (render(problem, idle), render(problem, stopped)) == ("OFF", "ON")
    assert (render(moving, idle), render(moving, idle | {"mode": "teleop"})) == ("OFF", "ON")


def test_it_is_unavailable_without_station_or_without_agent(described: dict[str, Any]) -> None:
    online, state = described["availability"]
    assert described["availability_mode"] == "all"
    assert render(online["value_template"], {"online": True}) == "online"
    assert render(online["value_template"], {"online": False}) == "offline"
    assert [render(state["value_template"], one) for one in states()] == ["online", "online", "offline"]


def test_an_event_is_shown_with_its_kind(described: dict[str, Any]) -> None:
    event = described["components"]["event"]
    shown = json.loads(render(event["value_template"], {"kind": "mode", "text": 'Hold: "a" test.'}))
    assert shown == {"event_type": "mode", "text": 'Hold: "a" test.'}
    assert shown["event_type"] in event["event_types"]


def test_what_a_button_sends_passes_the_gate_once(described: dict[str, Any], tmp_path: Path) -> None:
    gate = Gate(SystemClock(), keeping(True), Seen(tmp_path / "seen"))
    sent = []
    for name, value in (("estop", "PRESS"), ("hold", "PRESS"), ("recording", "true"), ("recording", "false")):
        entity = described["components"][name]
        verb = entity["command_topic"].removeprefix("so/v1/kitchen/cmd/")
        for _ in range(2):
            random.seed()
            made = render(entity["command_template"], value=value)
            sent.append(gate.examine(verb, made.encode(), retained=False))
    assert [order.verb for order in sent] == ["estop", "estop", "hold", "hold", "record", "record", "record", "record"]
    assert sent[0].args == {"cause": "e-stop from Home Assistant"}
    assert [order.args["on"] for order in sent[4:]] == [True, True, False, False]


def test_no_entity_starts_motion(described: dict[str, Any]) -> None:
    topics = {entity["command_topic"] for entity in described["components"].values() if "command_topic" in entity}
    assert topics == {f"so/v1/kitchen/cmd/{verb}" for verb in ("estop", "hold", "record")}


def test_a_station_that_takes_no_commands_offers_none(make_config: Callable[..., StationConfig]) -> None:
    _, description = announcement(make_config(mqtt={"host": "localhost", "commands": False}))
    assert not [entity for entity in description["components"].values() if "command_topic" in entity]


async def test_it_is_announced_and_found_by_who_comes_later(
    broker: Broker, make_config: Callable[..., StationConfig]
) -> None:
    config = make_config(mqtt={"host": "127.0.0.1", "port": broker.port, "home_assistant": True})
    async with surfaced(config, FakeDaemon()), connected(broker.port, "homeassistant/#") as peer:
        found = await peer.wait("homeassistant/device/test/so-agent/config")
    assert found == json.loads(json.dumps(announcement(config)[1]))


async def _switch(bench: Bench, broker: Broker, args: dict[str, Any]) -> dict[str, Any]:
    async with connected(broker.port, "so/v1/test/#") as peer:
        made = command(args)
        await peer.client.publish("so/v1/test/cmd/record", payload(made), qos=1)
        answer: dict[str, Any] = await peer.wait("so/v1/test/ack", lambda ack: ack["id"] == made["id"])
        return answer


async def test_the_recording_switch_takes_control_for_a_moment(bench: Bench, broker: Broker) -> None:
    bench.daemon.last_task = "pick up the red cube"
    assert (await _switch(bench, broker, {"on": True}))["status"] == "done"
    assert (await _switch(bench, broker, {"on": False}))["status"] == "done"
    verbs = [verb for verb, _ in bench.daemon.calls]
    assert verbs == ["lease.take", "record.start", "lease.release", "record.stop"]
    started = dict(bench.daemon.calls)["record.start"]
    assert (started["task"], started["lease"]) == ("pick up the red cube", "the-token")


async def test_the_recording_switch_makes_up_no_task(bench: Bench, broker: Broker) -> None:
    answer = await _switch(bench, broker, {"on": True})
    assert (answer["status"], answer["code"]) == ("refused", "refused")
    bench.daemon.last_task = "a text that is longer than a data set keeps"
    answer = await _switch(bench, broker, {"on": True})
    assert (answer["status"], answer["code"]) == ("refused", "bad-input")
    assert bench.daemon.calls == []
