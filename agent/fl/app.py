"""The Flower app of this repository: what `flwr run .` runs, in simulation and on stations.

settings.py     every number of a run, from `--run-config`
layout.py       names and shapes of an adapter's arrays, from the base policy alone; bytes a round (no torch)
adapter.py      an adapter on disk: what the server keeps of a round, and what a station finds in `candidates`
exchange.py     what is in the messages, and what an error reply means
client_app.py   train, evaluate and query on a station
trainer.py      a few steps of LoRA on the station's episodes, interruptible at each of them
server_app.py   samples stations, aggregates, keeps every round, goes on after a crash
strategy.py     Flower's own strategies, with bounded waits and checked replies

The bundle that Flower sends to stations (FAB) carries this repository's pyproject.toml and LICENSE, and **no code**: a
station runs the `agent.fl` that it has installed. Whoever controls a SuperLink can choose the numbers in
`[tool.flwr.app.config]` within the limits of settings.py, and nothing else. `is_ours(fab)` says whether a FAB is such
a one; `write_app(folder)` makes a folder for `flwr run FOLDER` where there is no checkout of the repository.

On a station, the process `flwr-clientapp` needs the environment variable SO_AGENT_BRIEF (brief.py) and nothing in
`--node-config`. It looks for the base policy in `brief.policies` by its hash, checks `brief.flag` before and after
loading and at each step, and replies within one step of its appearance: with partial work, or with Error(BUSY).
It changes neither process priority nor cgroup: its parent does. In simulation there is no brief; Flower's
`partition-id` and `num-partitions` say which part of `dataset` a client has.
"""
