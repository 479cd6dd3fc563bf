"""Engines against stock lerobot: the 450M layout of SmolVLA with random weights, two cameras, in one run.

    python -m benchmarks.inference [--quick] [--repeats N] [--threads N ...] [--markdown FILE]

Sides take turns, and a chunk is compared with stock's chunk of the same round, by the clock and by the CPU time of all
threads: with one thread the latter holds on a busy host, too. Deviations are the largest over all
actions of the check's chunks, guided ones among them. Random weights tell what the arithmetic costs in time; what it
costs in degrees for a trained policy, `so-agent policy bench` tells.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from agent.inference.engines.arithmetic import BFloat16, Int8, speedup
from agent.inference.loading import go_offline
from benchmarks.inference_bench import policies
from benchmarks.inference_bench.sides import Side, sides
from benchmarks.inference_bench.table import Row, markdown, rich, row

RESULTS: Final = Path(__file__).parent / "results" / "inference.json"
WIDTH: Final = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny policy: does it run?")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help="1 and all cores")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    asked = parser.parse_args()
    console = Console(width=None if Console().is_terminal else WIDTH)
    go_offline()
    host = describe()
    console.print(host)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        console.print("building the policy")
        loaded = (policies.tiny if asked.quick else policies.full)(Path(folder))
        for threads in asked.threads or sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            console.print(f"{threads} thread{'' if threads == 1 else 's'}")
            running = list(sides(loaded, Path(folder) / "cache", threads, lambda name: console.print(f"  {name}")))
            take_turns(running, loaded, asked.repeats, console)
            stock = running[0].profiles
            found = [row(one.name, threads, one.profiles, stock, one.deviation.joints) for one in running]
            rows += found
            console.print(rich(found, "medians; deviations from stock in degrees, gripper in percent"))
    if not asked.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"host": host, "rows": [asdict(one) for one in rows]}, indent=1) + "\n")
    if asked.markdown:
        asked.markdown.write_text(f"{host}\n\n{markdown(rows)}")


def take_turns(running: list[Side], loaded: policies.Loaded, repeats: int, console: Console) -> None:
    """Round by round, so that what else the host does meets all sides alike."""
    observation = policies.observation(loaded)
    for turn in range(repeats):
        for one in running:
            if one.turns or turn == 0:
                begin = time.process_time()
                profile = dict(one.computer.profile(observation))
                one.profiles.append({**profile, "cpu": time.process_time() - begin})
        console.print(f"  round {turn + 1} of {repeats}: stock {running[0].profiles[-1]['chunk']:.2f} s")


def describe() -> str:
    """The host, as far as it matters here."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, "
        f"PyTorch {torch.__version__}; one product in bf16 is {speedup(BFloat16()):.2f} times as fast as in fp32, "
        f"in int8 {speedup(Int8()):.2f} times"
    )


if __name__ == "__main__":
    main()
