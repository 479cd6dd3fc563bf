"""Asks, and writes down what it was answered: one JSON line a round in `output`."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Noting(FedAvg):
    def __init__(self, output: Path, **how: Any) -> None:
        super().__init__(**how)
        self._output, self._began = output, time.monotonic()

    def configure_train(self, server_round: int, *args: Any) -> Iterable[Message]:
        self._began = time.monotonic()
        return super().configure_train(server_round, *args)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        note = {
            "round": server_round,
            "seconds": time.monotonic() - self._began,
            "replies": [dict(each.content["metrics"]) for each in replies if not each.has_error()],
            "errors": [[each.error.code, each.error.reason] for each in replies if each.has_error()],
        }
        with self._output.open("a") as file:
            file.write(json.dumps(note) + "\n")
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config, nodes = context.run_config, int(context.run_config["nodes"])
    strategy = Noting(
        Path(str(config["output"])), fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=nodes,
        min_evaluate_nodes=0, min_available_nodes=nodes,
    )  # fmt: skip
    arrays = ArrayRecord({"weights": Array(np.zeros(4, np.float32))})
    rounds = int(config["num-server-rounds"])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, timeout=float(config["timeout-s"]))
