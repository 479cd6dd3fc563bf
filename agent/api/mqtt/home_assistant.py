"""What Home Assistant has to know, to show a station as one device with entities that make sense.

One retained message, read by its MQTT integration (device discovery, since 2024.11). Nothing here starts motion:
whoever presses a button in an app may not see the arm.
"""

from typing import Any, Final

from agent import __version__
from agent.api.mqtt.topics import Topics
from agent.config import StationConfig
from agent.events import EventKind
from agent.modes import Mode

PREFIX: Final = "homeassistant"
"""Home Assistant's default."""

STATE_MAX_CHARS: Final = 250
"""A state may have 255."""

COMMAND_LIFE_S: Final = 5

MOVING: Final = (Mode.ALIGNING, Mode.TELEOP, Mode.EXECUTING, Mode.HOMING)
WRONG: Final = (Mode.FAULT, Mode.ESTOP)


def announcement(config: StationConfig) -> tuple[str, dict[str, Any]]:
    """The topic, and what is published there."""
    topics = Topics(config.station)
    identity = f"so_agent_{config.station}"
    components = _sensors(topics)
    if config.mqtt and config.mqtt.commands:
        components |= _commands(topics)
    return f"{PREFIX}/device/{config.station}/so-agent/config", {
        "device": {
            "identifiers": [identity],
            "name": f"{config.robot.model.upper().replace('SO', 'SO-')} {config.station}",
            "manufacturer": "so-agent",
            "model": config.robot.model.upper().replace("SO", "SO-"),
            "sw_version": __version__,
        },
        "origin": {"name": "so-agent", "sw_version": __version__},
        "availability": [
            {"topic": topics.online, "value_template": _choose("value_json.online", "online", "offline")},
            {"topic": topics.state, "value_template": _choose("value_json.reachable", "online", "offline")},
        ],
        "availability_mode": "all",
        "state_topic": topics.state,
        "qos": 1,
        "components": {name: {"unique_id": f"{identity}_{name}", **entity} for name, entity in components.items()},
    }


def _sensors(topics: Topics) -> dict[str, dict[str, Any]]:
    return {
        "mode": {
            "platform": "sensor",
            "name": "Mode",
            "icon": "mdi:robot-industrial",
            "device_class": "enum",
            "options": [str(mode) for mode in Mode],
            "value_template": "{{ value_json.mode }}",
        },
        "reason": {
            "platform": "sensor",
            "name": "Reason",
            "icon": "mdi:comment-question-outline",
            "entity_category": "diagnostic",
            "value_template": f"{{{{ value_json.reason[:{STATE_MAX_CHARS}] }}}}",
        },
        "task": {
            "platform": "sensor",
            "name": "Task",
            "icon": "mdi:clipboard-play-outline",
            "value_template": "{{ value_json.task.task if value_json.task else None }}",
        },
        "moving": {
            "platform": "binary_sensor",
            "name": "Moving",
            "device_class": "moving",
            "value_template": _choose(f"value_json.mode in {_listed(MOVING)}", "ON", "OFF"),
        },
        "problem": {
            "platform": "binary_sensor",
            "name": "Problem",
            "device_class": "problem",
            "value_template": _choose(
                f"value_json.mode in {_listed(WRONG)} or value_json.alarms or value_json.failed", "ON", "OFF"
            ),
            "json_attributes_topic": topics.state,
            "json_attributes_template": "{{ {'alarms': value_json.alarms, 'failed': value_json.failed} | tojson }}",
        },
        "hottest": {
            "platform": "sensor",
            "name": "Hottest servo",
            "device_class": "temperature",
            "state_class": "measurement",
            "unit_of_measurement": "°C",
            "value_template": "{{ value_json.hottest_c }}",
        },
        "episodes": {
            "platform": "sensor",
            "name": "Episodes",
            "icon": "mdi:filmstrip-box-multiple",
            "state_class": "measurement",
            "value_template": "{{ value_json.episodes }}",
        },
        "free_disk": {
            "platform": "sensor",
            "name": "Free disk",
            "device_class": "data_size",
            "state_class": "measurement",
            "unit_of_measurement": "GB",
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.free_gb }}",
        },
        "event": {
            "platform": "event",
            "name": "Event",
            "state_topic": topics.event,
            "event_types": [str(kind) for kind in EventKind],
            "value_template": "{{ {'event_type': value_json.kind, 'text': value_json.text} | tojson }}",
        },
    }


def _commands(topics: Topics) -> dict[str, dict[str, Any]]:
    return {
        "estop": {
            "platform": "button",
            "name": "Emergency stop",
            "icon": "mdi:octagon",
            "command_topic": topics.command("estop"),
            "command_template": _command('{"cause": "e-stop from Home Assistant"}'),
        },
        "hold": {
            "platform": "button",
            "name": "Hold",
            "icon": "mdi:hand-back-right",
            "command_topic": topics.command("hold"),
            "command_template": _command("{}"),
        },
        "recording": {
            "platform": "switch",
            "name": "Recording",
            "icon": "mdi:record-rec",
            "command_topic": topics.command("record"),
            "command_template": _command('{"on": {{ value }}}'),
            "payload_on": "true",
            "payload_off": "false",
            "state_on": "true",
            "state_off": "false",
            "value_template": _choose("value_json.recording", "true", "false"),
        },
    }


def _command(args: str) -> str:
    """A command that is made when the button is pressed: with an id, and with times."""
    return (
        '{"id": "ha-{{ utcnow().timestamp() }}-{{ range(10000, 99999) | random }}", '
        '"issued_at": "{{ utcnow().isoformat() }}", '
        f'"expires_at": "{{{{ (utcnow() + timedelta(seconds={COMMAND_LIFE_S})).isoformat() }}}}", '
        f'"args": {args}}}'
    )


def _choose(condition: str, yes: str, no: str) -> str:
    return f"{{{{ '{yes}' if {condition} else '{no}' }}}}"


def _listed(modes: tuple[Mode, ...]) -> list[str]:
    return [str(mode) for mode in modes]
