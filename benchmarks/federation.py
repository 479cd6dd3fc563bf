"""What federation costs: bytes a station sends in a round, memory, and time besides training.

    python -m benchmarks.federation size
    python -m benchmarks.federation memory [--full]
    python -m benchmarks.federation round [--warm]
    python -m benchmarks.federation requests

`size` is of the 450 million parameters of lerobot/smolvla_base, whose layout is made without weights; where it says
"as sent", a real reply was serialised by Flower. `memory` trains a few steps in a process of its own, as a station
does, and reads the most that it ever used, and how long it took besides these steps. `round` has a fleet on loopback,
and a station without an arm that learns one step a round: what that takes is what a round costs besides training, and
the memory is that of SuperNode, executor and trainer together. `requests` asks a fleet for messages that it does not
have, as waiting stations do, and tells what an answer takes of the fleet's computer.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from agent.fl.compression import encode
from agent.fl.layout import LINEAR, PROJECTIONS, Layout, Shape, layout_of
from agent.fl.settings import Compression
from agent.inference.training.plan import Method
from benchmarks.interruption import ends_in_order

RESULTS: Final = Path(__file__).parent / "results"
TOP_K: Final = 0.1
MB: Final = 1e6
ALL_LINEAR: Final = tuple(sorted(LINEAR)) + PROJECTIONS
LARGEST_REPLY: Final = 50e6
"""Larger ones are not serialised, only counted."""


@dataclass(frozen=True)
class Size:
    what: str
    parameters: int
    bytes: int  # arrays only
    as_sent: int | None  # a whole reply, as Flower serialises it
    share: float  # of the whole policy in fp32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("size", help="bytes a station sends in a round")
    memory = commands.add_parser("memory", help="the most memory that a trainer uses")
    memory.add_argument("--full", action="store_true", help="also of 450 million parameters: minutes, and 8 GB")
    memory.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    once = commands.add_parser("round", help="time and memory of whole rounds, of one step each")
    once.add_argument("--rounds", type=int, default=4, metavar="N", help="4")
    once.add_argument("--warm", action="store_true", help="with federation.keep_warm")
    many = commands.add_parser("requests", help="what a request of a station takes of the fleet's computer")
    many.add_argument("--seconds", type=float, default=20.0, metavar="S", help="20")
    asked = parser.parse_args()
    ends_in_order()
    os.environ |= {"HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    console = Console(width=None if Console().is_terminal else 120)
    if asked.command == "size":
        found = sizes()
        console.print(drawn(found))
        _write("federation-size.json", [asdict(each) for each in found])
    elif asked.command == "round":
        from benchmarks.federation_round import show, whole_rounds

        seen = asyncio.run(whole_rounds(asked.rounds, asked.warm))
        show(seen, console)
        _write(f"federation-round{'-warm' if asked.warm else ''}.json", seen)
    elif asked.command == "requests":
        from benchmarks.federation_requests import ask_for

        told = asyncio.run(ask_for(asked.seconds))
        console.print(told)
        _write("federation-requests.json", told)
    elif asked.one:
        train_once(asked.one)
    else:
        results = memory_of(full=asked.full)
        console.print(results)
        _write("federation-memory.json", results)


def sizes() -> list[Size]:
    from benchmarks.inference_bench.policies import full_weights

    with tempfile.TemporaryDirectory() as folder:
        weights = full_weights(Path(folder))
    whole = sum(int(np.prod(shape)) for shape in weights.values())
    found = [
        Size("whole policy, fp32", whole, 4 * whole, None, 1.0),
        Size("whole policy, fp16", whole, 2 * whole, None, 0.5),
    ]
    for what, shape, how in (
        ("action expert, fp16", Shape(Method.EXPERT), Compression.NONE),
        ("LoRA 16 of all its linear layers, fp16", Shape(targets=ALL_LINEAR), Compression.NONE),
        ("LoRA 32, fp16", Shape(rank=32), Compression.NONE),
        ("LoRA 16, fp16: the default", Shape(), Compression.NONE),
        ("LoRA 16, int8", Shape(), Compression.INT8),
        ("LoRA 16, top-k 0.1", Shape(), Compression.TOP_K),
        ("LoRA 8, fp16", Shape(rank=8), Compression.NONE),
    ):
        plan = layout_of(weights, shape)
        change = plan.bytes_a_round < LARGEST_REPLY
        encoded = encode(_change(plan), how, TOP_K) if change else {}
        size = sum(value.nbytes for value in encoded.values()) if change else plan.bytes_a_round
        found.append(Size(what, plan.parameters, size, _as_sent(encoded) if change else None, size / (4 * whole)))
    return found


def drawn(found: list[Size]) -> Table:
    table = Table(title="SmolVLA, 450M: what a station sends in a round (and receives, in fp16)")
    for name in ("what travels", "numbers", "MB", "MB as sent", "of the whole in fp32"):
        table.add_column(name, justify="left" if name == "what travels" else "right")
    for each in found:
        sent = f"{each.as_sent / MB:,.2f}" if each.as_sent else ""
        table.add_row(each.what, f"{each.parameters:,}", f"{each.bytes / MB:,.2f}", sent, f"1 / {1 / each.share:,.0f}")
    return table


def _change(plan: Layout) -> dict[str, Any]:
    dice = np.random.default_rng(0)
    return {
        name: (dice.standard_normal(shape, np.float32) * 1e-3).astype(np.float32) for name, shape in plan.arrays.items()
    }


def _as_sent(encoded: Mapping[str, Any]) -> int:
    """Bytes of all objects of a reply, as Flower pushes them."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.task_identity import TaskIdentity

    from agent.fl.exchange import TRAINED

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    record = ArrayRecord({name: Array(value) for name, value in encoded.items()})
    metrics = MetricRecord(dict.fromkeys(TRAINED, 1.0))
    message = Message(RecordDict({"arrays": record, "metrics": metrics}), 1, "train")
    return sum(len(each.deflate()) for each in get_all_nested_objects(message).values())


def memory_of(full: bool) -> dict[str, dict[str, float]]:
    """Of a trainer's process, by policy: the most resident memory in MiB, and its time besides training in s."""
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name in ("demo-reach", *(["450M"] if full else [])):
            brief = prepare(Path(work) / name, name)
            command = [sys.executable, "-m", "benchmarks.federation", "memory", "--one", str(brief)]
            began_s = time.monotonic()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            took_s = time.monotonic() - began_s
            told = json.loads(done.stdout.splitlines()[-1])
            found[name] = {
                "peak_mib": told["peak_mb"],
                "training_s": round(told["seconds"], 1),
                "besides_training_s": round(took_s - told["seconds"], 1),
            }
    return found


def prepare(work: Path, name: str) -> Path:
    """A station's folder with a policy and the drawn episodes."""
    import shutil

    from agent.fl.base import SHIPPED
    from agent.fl.brief import Brief
    from agent.fl.synthetic import drawn as draw

    work.mkdir(parents=True)
    policies = work / "policies"
    if name == "450M":
        from agent.inference.importer import Wish, import_checkpoint
        from benchmarks.inference_bench import policies as made

        loaded = made.full(work / "made")
        loaded.policy.save_pretrained(work / "made")
        for processor in (loaded.preprocessor, loaded.postprocessor):
            processor.save_pretrained(work / "made")
        del loaded
        import_checkpoint(work / "made", policies, Wish("full"))
        shutil.rmtree(work / "made")
    else:
        shutil.copytree(SHIPPED / name, policies / name)
    folders = {key: str(work / key) for key in ("flag", "progress", "candidates", "scratch")}
    dataset = str(draw(work / "cache", episodes=6))
    brief = Brief(station="bench", datasets=(dataset,), held_out=0.34, policies=str(policies), threads=1, **folders)
    (work / "brief.json").write_bytes(msgspec.json.encode(brief))
    return work / "brief.json"


def train_once(brief: Path) -> None:
    """What a station does for one message, in this process; the peak as the last line."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from agent.fl.brief import VARIABLE
    from agent.fl.client_app import app
    from agent.fl.compression import to_wire
    from agent.fl.exchange import VERSION, Terms
    from agent.fl.layout import layout
    from agent.fl.settings import defaults
    from agent.fl.statistics import of_policy
    from agent.inference.bundle import open_bundle

    os.environ[VARIABLE] = str(brief)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    base = open_bundle(next(path for path in (brief.parent / "policies").iterdir() if path.name[0] != "."))
    small = base.manifest.name != "full"
    config = {**defaults(), "local-steps": 5 if small else 2, "batch-size": 8 if small else 2}
    terms = Terms(VERSION, "bench", 1, 1, False, base.manifest.name, base.hash, of_policy(base))
    wire = to_wire(layout(base, Shape()).begin(base, 0))
    arrays = ArrayRecord({name: Array(value) for name, value in wire.items()})
    message = Message(RecordDict({"arrays": arrays, "config": ConfigRecord(terms.record())}), 1, "train")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    reply = app(message, context)
    if reply.has_error():
        raise SystemExit(f"it declined: {reply.error.reason}")
    status = Path("/proc/self/status").read_text()
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_mb": round(peak_kb / 1024), **dict(reply.content.metric_records["metrics"])}))


def _write(name: str, values: Any) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
