"""The JSON schemas of every message, for who writes the other side: `python -m agent.api.mqtt.published FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agent.api.mqtt.commands import LIFE_S, REQUESTS, VERBS
from agent.api.mqtt.messages import Ack, Command, Event, Online, State, Telemetry
from agent.api.mqtt.topics import PREFIX

MESSAGES: Final[dict[str, tuple[type[BaseModel], str]]] = {
    "command": (Command, "cmd/VERB"),
    "ack": (Ack, "ack"),
    "online": (Online, "online"),
    "state": (State, "state"),
    "telemetry": (Telemetry, "telemetry"),
    "event": (Event, "event"),
}

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, dict[str, Any]]:
    """File name -> schema."""
    made = {
        f"mqtt-{name}.json": {
            "$schema": DIALECT,
            "$comment": f"{PREFIX}/STATION/{topic}",
            **model.model_json_schema(mode="validation" if model is Command else "serialization"),
        }
        for name, (model, topic) in MESSAGES.items()
    }
    return made | {"mqtt-arguments.json": _arguments()}


def _arguments() -> dict[str, Any]:
    """`args` of every verb, and the longest time from issue to expiry."""
    references, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(REQUESTS[verb] for verb in VERBS)]
    )
    return {
        "$schema": DIALECT,
        "$comment": f"args of {PREFIX}/STATION/cmd/VERB, by verb; args.lease stands beside them",
        "verbs": {
            verb: {"kind": kind, "longest_life_s": LIFE_S[kind], "args": references[(REQUESTS[verb], "validation")]}
            for verb, kind in VERBS.items()
        },
        "$defs": definitions.get("$defs", {}),
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
