"""The published schemas are those of the code, and are right about real messages."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from agent.api.mqtt.commands import VERBS
from agent.api.mqtt.messages import Online, State
from agent.api.mqtt.published import documents
from agent.api.schemas import Status
from tests.mqtt.daemon import FakeDaemon, command
from tests.mqtt.hostile import GOOD_ARGS

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def test_the_published_schemas_are_current() -> None:
    published = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("mqtt-*.json")}
    assert published == json.loads(json.dumps(documents())), "run: python -m agent.api.mqtt.published docs/schemas"


def test_they_fit_what_is_sent() -> None:
    made = documents()
    for document in made.values():
        Draft202012Validator.check_schema(document)
    Draft202012Validator(made["mqtt-command.json"]).validate(command({"task": "x"}))
    state = State.of(Status.model_validate(FakeDaemon().status()), "2026-11-26T00:00:00+00:00")
    Draft202012Validator(made["mqtt-state.json"]).validate(json.loads(state.model_dump_json()))
    Draft202012Validator(made["mqtt-online.json"]).validate(json.loads(Online(online=False).model_dump_json()))
    arguments = made["mqtt-arguments.json"]
    assert set(arguments["verbs"]) == set(VERBS)
    for verb, about in arguments["verbs"].items():
        schema = about["args"] | {"$defs": arguments["$defs"]}
        Draft202012Validator(schema).validate(GOOD_ARGS.get(verb, {}))
        with pytest.raises(ValidationError):
            Draft202012Validator(schema).validate({"more": 1})
