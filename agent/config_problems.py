"""What is wrong in a configuration: a sentence for each field, with what was found there."""

from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

VALUE_MAX_CHARS: Final = 60
"""As much of a value as a line of an error shows."""


def problems(error: ValidationError) -> list[str]:
    """One line for each, indented, with the path of its field."""
    return [_sentence(detail) for detail in error.errors(include_url=False)]


def _sentence(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "(file)"
    found = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return f"  {where}: unknown key (found {_short(found)}); remove it or correct its spelling."
        case "missing":
            return f"  {where}: missing; it must be given."
        case "value_error" if isinstance(found, dict) or not detail["loc"]:
            return f"  {where}: {detail['msg'].removeprefix('Value error, ')}."
        case _:
            return f"  {where}: found {_short(found)}; {detail['msg'].removeprefix('Value error, ')}."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_MAX_CHARS else f"{text[: VALUE_MAX_CHARS - 3]}..."
