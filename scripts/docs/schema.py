"""JSON schemas in words: what a field takes, and what it is without being given."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.config import NAME_PATTERN
from scripts.docs.table import code

type Schema = Mapping[str, Any]

REQUIRED = "required"


@dataclass(frozen=True)
class Field:
    """One key of an object."""

    name: str
    takes: str
    default: str  # REQUIRED, or a JSON value
    about: str


@dataclass(frozen=True)
class Words:
    """Puts schemas into words. `link` makes a reference to another shape out of its name."""

    shapes: Mapping[str, Schema]
    link: Callable[[str], str] = code

    def fields(self, schema: Schema) -> Iterator[Field]:
        """The keys of an object, in the order in which the model has them."""
        required = schema.get("required", ())
        for name, about in schema.get("properties", {}).items():
            yield Field(name, self.takes(about), _default(about, name in required), prose(about.get("description", "")))

    def takes(self, schema: Schema) -> str:
        """Which values are allowed, as a person would say it."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            shape = self.shapes[name]
            return self.link(name) if shape.get("type") == "object" else self.takes(shape)
        if "const" in schema:
            return code(json.dumps(schema["const"]))
        if "enum" in schema:
            return ", ".join(code(value) for value in schema["enum"])
        if len(schema.get("allOf", ())) == 1:
            return self.takes(schema["allOf"][0])
        if "anyOf" in schema:
            choices = list(dict.fromkeys(self.takes(choice) for choice in schema["anyOf"]))
            return ("; or " if any("," in choice for choice in choices) else " or ").join(choices)
        match schema.get("type"):
            case "null":
                return "null"
            case "boolean":
                return "true or false"
            case "integer" | "number" as kind:
                return f"{'whole number' if kind == 'integer' else 'number'}{_bounds(schema)}"
            case "string":
                return _text(schema)
            case "array":
                return self._list(schema)
            case "object":
                inner = members(schema)
                return f"map from name to {self.takes(inner)}" if inner else "object"
            case _:
                return "anything"

    def _list(self, schema: Schema) -> str:
        if "prefixItems" in schema:
            kinds = list(dict.fromkeys(self.takes(item) for item in schema["prefixItems"]))
            return f"list of {len(schema['prefixItems'])}: {', '.join(kinds)}"
        return f"list of {self.takes(schema.get('items', {}))}"


def members(schema: Schema) -> Schema | None:
    """The shape of each value in an object whose keys are free."""
    inner = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
    return inner if isinstance(inner, dict) else None


def prose(text: str) -> str:
    """A description as it is meant: brackets in it are no links."""
    return re.sub(r"`[^`]*`|\[", lambda found: "\\[" if found[0] == "[" else found[0], text)


def _text(schema: Schema) -> str:
    match schema.get("format"):
        case "path":
            return "path"
        case "date-time":
            return "time (ISO 8601)"
        case "binary":
            return "bytes"
    words = "text"
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if high is not None:
        words += f" of {low} to {high} characters" if low else f" of at most {high} characters"
    elif low:
        words += ", not empty" if low == 1 else f" of at least {low} characters"
    pattern = schema.get("pattern")
    if pattern == NAME_PATTERN:
        return "name"
    return f"{words} matching {code(pattern)}" if pattern else words


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}" if abs(high) < 1e6 else f", {low} to {high}"
    words = [
        f"{name} {value:g}"
        for name, value in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if value is not None
    ]
    return f", {', '.join(words)}" if words else ""


def _default(schema: Schema, required: bool) -> str:
    if required:
        return REQUIRED
    return code(json.dumps(schema.get("default")))
