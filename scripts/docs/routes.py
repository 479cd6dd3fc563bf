"""The HTTP API, from the description that the station itself serves."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from agent.api.http.app import create
from agent.clock import SystemClock
from agent.config import ArmPort, Http, Robot, StationConfig
from scripts.docs.schema import REQUIRED, Field, Words
from scripts.docs.table import code, table

INTRODUCTION = """# Every HTTP route

Made from the description that a station serves at `/api/v1/openapi.json`, which is [here](openapi.json) too.
How to get in, who may do what, and an example of each kind stand in the [guide](../http-api.md).

Every refusal is a [`Problem`](#problem): a sentence for people, a hint, and a code for programs.

"""

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Route:
    """One thing that can be asked for over HTTP."""

    method: str
    path: str
    about: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.method} {self.path}"


@cache
def description() -> dict[str, Any]:
    """The OpenAPI description. Nothing is started, and nothing of the configuration is in it."""
    nowhere = Path("/nonexistent")
    robot = Robot(model="so101", follower=ArmPort(port=nowhere, id="follower"), calibration_dir=nowhere)
    config = StationConfig(station="station", state_dir=nowhere, robot=robot, http=Http())
    return create(config, Http(), SystemClock()).openapi()


def description_text() -> str:
    return json.dumps(description(), indent=1) + "\n"


def routes() -> Iterator[Route]:
    for path, methods in description()["paths"].items():
        for method, about in methods.items():
            if method in METHODS:
                yield Route(method.upper(), path, about)


def page() -> str:
    by_noun: dict[str, list[Route]] = {}
    for route in routes():
        by_noun.setdefault(next(iter(route.about.get("tags", ())), "other"), []).append(route)
    shapes: dict[str, Any] = description()["components"]["schemas"]
    words = Words(shapes, link=lambda name: f"[{code(name)}](#{name.lower()})")
    text = INTRODUCTION
    for noun, members in by_noun.items():
        text += f"## {noun.capitalize()}\n\n" + "".join(_section(route, words) for route in members)
    text += "## Shapes\n\nAnswers may carry more keys; those that are here keep their name, type and meaning.\n\n"
    for name in sorted(shapes):
        if shapes[name].get("type") == "object" and not name.startswith("HTTPValidation"):
            text += f"### {code(name)}\n\n{shapes[name].get('description', '')}\n\n"
            text += _fields(list(words.fields(shapes[name])))
    return text


def _section(route: Route, words: Words) -> str:
    about = route.about
    text = f"### {code(route.title)}\n\n{_sentences(about)}\n\n"
    text += table(
        ["parameter", "in", "takes", "meaning"],
        [
            (code(each["name"]), each["in"], _given(words.takes(each["schema"]), each), each.get("description", ""))
            for each in about.get("parameters", ())
        ],
    )
    body = about.get("requestBody")
    if body:
        shape = next(iter(body["content"].values()))["schema"]
        text += f"Body{'' if body.get('required') else ' (may be left out)'}: {words.takes(shape)}\n\n"
    answers = [_answer(status, answer, words) for status, answer in about["responses"].items() if status < "300"]
    return f"{text}Answer: {'; or '.join(answers)}.\n\n"


def _sentences(about: Mapping[str, Any]) -> str:
    """FastAPI makes a summary of the operation's id where there is none."""
    summary, more = about.get("summary", ""), about.get("description", "")
    return f"{summary} {more}".strip() if summary.endswith(".") else more or summary


def _given(takes: str, parameter: Mapping[str, Any]) -> str:
    default = parameter["schema"].get("default")
    return takes if default is None else f"{takes}; default {code(json.dumps(default))}"


def _answer(status: str, answer: Mapping[str, Any], words: Words) -> str:
    kinds = [
        words.takes(content["schema"]) if kind == "application/json" and content.get("schema") else code(kind)
        for kind, content in answer.get("content", {}).items()
    ]
    text = " or ".join(kinds) or ("nothing" if status == "204" else "text")
    about = answer.get("description", "").rstrip(".")
    about = "" if about == "Successful Response" else about
    notes = [note for note in (status if status != "200" else "", about) if note]
    return f"{text} ({': '.join(notes)})" if notes else text


def _fields(fields: list[Field]) -> str:
    return table(
        ["key", "type", "meaning"],
        [(code(each.name), each.takes + _default(each), each.about) for each in fields],
    )


def _default(field: Field) -> str:
    return "" if field.default in (REQUIRED, "`null`") else f"; default {field.default}"
