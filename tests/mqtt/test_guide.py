"""What docs/mqtt.md shows works as it stands there."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from agent.api.mqtt.commands import VERBS, Reason
from agent.api.mqtt.messages import Command
from tests.mqtt.broker import Broker
from tests.mqtt.conftest import Bench

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "mqtt.md"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found
    return found.group(1)


@pytest.mark.skipif(shutil.which("mosquitto_rr") is None, reason="needs mosquitto_rr (apt install mosquitto-clients)")
async def test_the_example_on_the_command_line_is_answered(bench: Bench, broker: Broker) -> None:
    example = block("sh").replace("kitchen", "test")
    example = re.sub(r"-h broker\.example .*?--key fleet\.key", f"-h 127.0.0.1 -p {broker.port}", example)
    assert str(broker.port) in example
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", example, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    answer = json.loads(output)
    assert (answer["verb"], answer["status"]) == ("hold", "done"), output


def test_the_example_of_a_command_is_one() -> None:
    Command.model_validate_json(block("json"))


def test_every_reason_is_explained() -> None:
    text = GUIDE.read_text()
    assert [reason for reason in Reason if f"| `{reason}` |" not in text] == []
    assert "`reset` is not among them" in text
    assert "reset" not in VERBS
