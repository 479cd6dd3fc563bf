"""Waits instead of training. It looks at the station's flag after each step, unless its manners are bad."""

import contextlib
import json
import os
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

STEP_S = 0.05


def flag() -> Path:
    return Path(json.loads(Path(os.environ["SO_AGENT_BRIEF"]).read_text())["flag"])


@app.train()
def train(message: Message, context: Context) -> Message:
    manners, seconds = str(context.run_config["manners"]), float(context.run_config["seconds"])
    if manners == "crash":
        os._exit(7)
    if manners == "clumsy":
        raise FileNotFoundError("/home/ada/kitchen")
    steps, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        if manners == "good" and flag().exists():
            break
        # `stubborn` does not even listen to the signal that its runner turns into an exception
        with contextlib.suppress(BaseException) if manners == "stubborn" else contextlib.nullcontext():
            time.sleep(STEP_S)
            steps += 1
    arrays = {name: Array(array.numpy() + 1) for name, array in message.content["arrays"].items()}
    preempted = float(time.monotonic() < until)
    metrics = MetricRecord({"num-examples": float(max(1, steps)), "preempted": preempted})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)
