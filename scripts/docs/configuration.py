"""Every field of station.yaml, from the models that read it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agent.config import StationConfig
from scripts.docs.schema import Field, Schema, Words, members
from scripts.docs.table import code, table

INTRODUCTION = """# Every configuration field

Made from the models that read `station.yaml`: names, types, bounds and defaults. What the fields mean and how
to choose them stands in the [guide](../configuration.md). `so-agent check-config station.yaml` says what is
wrong with a file, and where.

The environment wins over the file: `robot.control_hz` is also `SO_AGENT__ROBOT__CONTROL_HZ`, and so on for
every field.

For completion and checks in an editor there is a [JSON schema](station.schema.json). With the YAML extension of
VS Code, or any other editor that uses `yaml-language-server`, begin the file with

```yaml
# yaml-language-server: $schema=station.schema.json
```

"""


def schema() -> dict[str, Any]:
    """Of a whole file."""
    return StationConfig.model_json_schema() | {"title": "station.yaml of so-agent"}


def page() -> str:
    """The reference, a section for each block of the file."""
    sections: dict[str, list[Field]] = {}
    for field in fields():
        block, dot, _ = field.name.partition(".")
        sections.setdefault(block if dot or field.takes.startswith("block") else "", []).append(field)
    text = INTRODUCTION
    for block, inside in sections.items():
        text += f"## {code(block) if block else 'Station'}\n\n"
        text += table(
            ["field", "takes", "default"], [(code(each.name), each.takes, _said(each.default)) for each in inside]
        )
    return text


def schema_text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def fields() -> Iterator[Field]:
    """All fields with their full path, those of blocks behind the block that holds them."""
    whole = schema()
    yield from _walk(whole, "", Words(whole["$defs"], link=lambda name: "block"))


def _walk(shape: Schema, prefix: str, words: Words) -> Iterator[Field]:
    for field in words.fields(shape):
        about = shape["properties"][field.name]
        path = f"{prefix}{field.name}"
        block, each = _block(about, words.shapes)
        if block is None:
            yield Field(path, field.takes, field.default, field.about)
            continue
        if field.default in ("`null`", "`{}`"):  # what is always there has nothing to say of itself
            yield Field(path, "blocks by name" if each else "block", field.default, field.about)
        yield from _walk(block, f"{path}.NAME." if each else f"{path}.", words)


def _block(about: Schema, shapes: Mapping[str, Schema]) -> tuple[Schema | None, bool]:
    """The shape that a field holds, and whether it holds many of them by name."""
    for choice in (about, *about.get("anyOf", ())):
        if "$ref" in choice:
            shape = shapes[choice["$ref"].rpartition("/")[2]]
            return (shape, False) if shape.get("type") == "object" else (None, False)
        inner = members(choice)
        if inner and "$ref" in inner:
            return shapes[inner["$ref"].rpartition("/")[2]], True
    return None, False


def _said(default: str) -> str:
    return "none" if default == "`null`" else default
