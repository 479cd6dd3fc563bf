"""What must not keep a servo from answering: garbage, disks, threads of lower priority."""

import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.errors import BadInput
from agent.virtual.bus import Instruction, ServoBus
from agent.virtual.servo import Register, Servo
from agent.virtual.wire_file import WireFile
from tests.virtual.test_packets import packet, word

PACKETS = 1000
"""Of 60 bytes a goal: several times what a pipe takes (64 kB) when nobody reads it."""

COLLECTION = """
import gc
import agent.virtual.station
from agent.virtual.realtime import keep_answering
before = len(gc.get_objects())
keep_answering()
print(before, len(gc.get_objects()))
"""


def test_a_collection_of_garbage_passes_over_what_the_imports_left() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTION], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    assert before > 50_000
    assert after < before / 100


def test_a_servo_answers_although_nobody_takes_the_wire_log_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    pipe = tmp_path / "wire.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a log is opened, and then not read
    file = WireFile(pipe)
    bus = ServoBus([Servo(1)])
    bus.goals.sink = functools.partial(file.append, "follower")
    for goal in range(PACKETS):
        bus.feed(packet(1, Instruction.WRITE, Register.GOAL_POSITION, *word(goal)))
    assert bus.feed(packet(1, Instruction.PING))
    os.set_blocking(reader, True)
    with os.fdopen(reader, encoding="utf-8") as log:
        ending = threading.Thread(target=file.close)
        ending.start()
        rows = [json.loads(line) for line in log]
        ending.join()
    assert [(row["arm"], row["id"], row["goal"]) for row in rows] == [("follower", 1, goal) for goal in range(PACKETS)]


def test_a_wire_log_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"wire log .* Is a directory"):
        WireFile(tmp_path)
