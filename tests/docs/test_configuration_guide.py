"""The guide to the configuration is written by hand, and held to the models."""

import json
import re

import pytest

from agent.config import StationConfig
from scripts.docs import configuration
from scripts.docs.schema import REQUIRED, Field
from tests.docs.guide import Row, rows

FIELDS = {field.name: field for field in configuration.fields()}
ROWS = list(rows())


def _block(path: str) -> str:
    first, dot, _ = path.partition(".")
    return first if dot or FIELDS[path].takes.startswith("block") else ""


def _told(row: Row) -> list[tuple[Field, str]]:
    """The fields whose table line this is, each with its default as the guide has it."""
    found = []
    for name, default in zip(row.names, row.defaults, strict=True):
        paths = [path for path in FIELDS if _block(path) == row.block and path.rpartition(".")[2] == name]
        prefix = f"{row.block}." if row.block else ""
        exact = [path for path in paths if path in (f"{prefix}{name}", f"{row.block}.NAME.{name}")]
        found += [(FIELDS[path], default) for path in exact or paths]
    return found


@pytest.mark.parametrize("path", FIELDS)
def test_the_guide_tells_of_every_field(path: str) -> None:
    if path == _block(path):  # a block has its own heading
        assert any(row.block == path for row in ROWS)
        return
    name = path.rpartition(".")[2]
    assert any(name in {*row.names, *row.mentioned} for row in ROWS if row.block == _block(path)), (
        f"docs/configuration.md says nothing of {path}"
    )


def test_the_guide_tells_of_no_field_that_is_none() -> None:
    for row in ROWS:
        for name in row.names:
            known = any(_block(path) == row.block and name in path.split(".") for path in FIELDS)
            known |= f"{row.block}.{name}.".lstrip(".") in {path[: path.rfind(".") + 1] for path in FIELDS}
            assert known, f"{row.block}.{name} is in the guide, and in no model"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.block}.{'+'.join(row.names)}")
def test_defaults_and_bounds_in_the_guide_are_those_of_the_models(row: Row) -> None:
    for field, said in _told(row):
        if field.default == REQUIRED:
            assert said == REQUIRED, field.name
            continue
        value = json.loads(field.default.strip("`"))
        if value is None:  # then the guide says in words what that means
            assert not re.fullmatch(r"`?[\d.]+`?", said), field.name
            continue
        found = said.strip("`")
        assert (found if isinstance(value, str) else json.loads(found)) == value, field.name
        for low, high in row.ranges:
            assert f"{low:g} to {high:g}" in field.takes, f"{field.name}: {row.meaning}"


def test_an_editor_can_check_a_file_with_the_schema() -> None:
    schema = configuration.schema()
    assert set(schema["required"]) == {"station", "state_dir", "robot"}
    assert set(schema["properties"]) == set(StationConfig.model_fields)
    assert schema["additionalProperties"] is False
