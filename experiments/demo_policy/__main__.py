"""Record, pretrain, train and evaluate the demo policy. Every stage can be killed and started again.

example:
  python -m experiments.demo_policy all --folder ~/demo-policy          # about an hour on two cores
  python -m experiments.demo_policy all --folder /tmp/quick --quick     # a minute, to see that it runs
  python -m experiments.demo_policy train --folder ~/demo-policy        # one stage
"""

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

from agent.errors import AgentError
from experiments.demo_policy.recipe import Recipe, quick

STAGES = ("record", "pretrain", "train", "evaluate", "all")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo_policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, help="what to do; `all` is all of them in this order")
    parser.add_argument("--folder", type=Path, required=True, help="dataset, renders, checkpoints, plots and policy")
    parser.add_argument("--quick", action="store_true", help="a tiny network and a few steps: for a test")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    parser.add_argument("--threads", type=int, default=2, help="for learning (default 2)")
    parser.add_argument("--episodes", type=int, help="to record; more may be recorded later")
    parser.add_argument("--train-steps", type=int, help="of the policy")
    asked = parser.parse_args()
    recipe = dataclasses.replace(quick() if asked.quick else Recipe(), seed=asked.seed, threads=asked.threads)
    if asked.episodes:
        recipe = dataclasses.replace(recipe, episodes=asked.episodes)
    if asked.train_steps:
        recipe = dataclasses.replace(recipe, train_steps=asked.train_steps)
    # Either signal ends what runs in an orderly way, also where a shell started this in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    from experiments.demo_policy.stages import Stages  # after the arguments: it imports torch

    try:
        getattr(Stages(asked.folder, recipe), asked.stage)()
    except AgentError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
