"""What a station says and takes on a broker, from the models that check it."""

import inspect
from typing import Any, Final

from pydantic import BaseModel

from agent.api import schemas
from agent.api.mqtt import messages
from agent.api.mqtt.commands import LIFE_S, REQUESTS, VERBS, Kind, Reason
from agent.api.mqtt.topics import Topics
from scripts.docs.schema import Words
from scripts.docs.table import code, table

INTRODUCTION = """# Every MQTT message

Made from the models that check each message on both sides. How a station is connected, what the broker must
forbid, and examples stand in the [guide](../mqtt.md).

`STATION` is the station's name. All payloads are JSON; what does not fit its model is refused.

"""

TOPICS: Final[dict[str, tuple[str, str, type[BaseModel]]]] = {
    "online": ("published", "1, retained, last will", messages.Online),
    "state": ("published", "1, retained", messages.State),
    "telemetry": ("published", "0", messages.Telemetry),
    "event": ("published", "1", messages.Event),
    "ack": ("published", "1", messages.Ack),
    "commands": ("taken", "1, never retained", messages.Command),
}
"""By the name that the topic has in `Topics`."""

KINDS: Final = {
    Kind.READ: "reads",
    Kind.STOP: "stops; taken without a clock as well",
    Kind.CHANGE: "changes something; needs a synchronised clock",
    Kind.MOVE: "may move the arm; needs a synchronised clock and the lease",
}

SUMMARIES: Final = {
    "lease.take": "Take control, for as long as it is renewed.",
    "lease.renew": "Somebody is still there.",
    "lease.release": "Give control back; motion that was begun with it ends in a hold.",
}


def page() -> str:
    topics = Topics("STATION")
    text = INTRODUCTION + "## Topics\n\n"
    text += table(
        ["topic", "", "QoS", "payload"],
        [
            (code(getattr(topics, name).replace("+", "VERB")), way, qos, _link(model.__name__))
            for name, (way, qos, model) in TOPICS.items()
        ],
    )
    text += "## Verbs\n\nThe last part of a command's topic, and what its `args` may hold.\n\n"
    text += table(
        ["verb", "", "kind", "args"],
        [(code(verb), _summary(verb), _kind(kind), _arguments(REQUESTS[verb])) for verb, kind in VERBS.items()],
    )
    text += table(
        ["kind", "what it does", "longest life"],
        [(_kind(kind), about, f"{LIFE_S[kind]:g} s") for kind, about in KINDS.items()],
    )
    text += "A command's life is the time from `issued_at` to `expires_at`.\n\n"
    text += "## Refusals\n\nCodes that are made before the station is asked, in `code` of an `Ack`:\n\n"
    text += ", ".join(code(reason.value) for reason in Reason) + ". "
    text += "A station that refuses uses those of the [command line](../command-line.md#exit-codes).\n\n"
    return text + "## Payloads\n\n" + "".join(_payload(model) for model in _payloads())


def _payloads() -> list[type[BaseModel]]:
    named = [model for _, _, model in TOPICS.values()]
    return [*named, *dict.fromkeys(REQUESTS[verb] for verb in VERBS if _takes_something(REQUESTS[verb]))]


def _payload(model: type[BaseModel]) -> str:
    whole = model.model_json_schema()
    shapes: dict[str, Any] = whole.get("$defs", {})
    text = f"### {code(model.__name__)}\n\n{whole.get('description', '')}\n\n"
    text += _keys(whole, shapes)
    for name, shape in shapes.items():
        if shape.get("type") == "object":
            text += f"{code(name)} holds\n\n" + _keys(shape, shapes)
    return text


def _keys(shape: dict[str, Any], shapes: dict[str, Any]) -> str:
    return table(
        ["key", "takes", "default", "meaning"],
        [(code(field.name), field.takes, field.default, field.about) for field in Words(shapes).fields(shape)],
    )


def _arguments(model: type[schemas.Request]) -> str:
    return _link(model.__name__) if _takes_something(model) else "none"


def _takes_something(model: type[schemas.Request]) -> bool:
    return bool(model.model_fields)


def _summary(verb: str) -> str:
    if verb in schemas.VERBS:
        return schemas.VERBS[verb].summary
    return SUMMARIES.get(verb) or inspect.cleandoc(REQUESTS[verb].__doc__ or "")


def _kind(kind: Kind) -> str:
    return code(kind.value)


def _link(name: str) -> str:
    return f"[{code(name)}](#{name.lower()})"
