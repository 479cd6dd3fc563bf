"""Three stations learn one policy together, each by itself, and from all data in one place; who touches the disc?

example:
  python -m experiments.federation all --folder demo-policy                 # after `make train-demo-policy`
  python -m experiments.federation all --folder DIR --out OUT --quick       # every stage, to see that it runs
  python -m experiments.federation federate --folder DIR                    # one stage

Every stage can be killed and started again. `--folder` holds recorded episodes and the pretrained vision tower.
"""

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

from agent.errors import AgentError
from experiments.demo_policy.recipe import Recipe as DemoRecipe
from experiments.demo_policy.recipe import quick as quick_demo
from experiments.federation.recipe import Recipe, quick

STAGES = ("divide", "start", "federate", "alone", "longer", "evaluate", "stack", "report", "all")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.federation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, help="what to do; `all` is all of them")
    parser.add_argument("--folder", type=Path, required=True, help="of the demo policy: episodes, vision tower")
    parser.add_argument("--out", type=Path, help="everything of this experiment (default: FOLDER/federation)")
    parser.add_argument("--quick", action="store_true", help="a tiny network and a few steps: for a test")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    parser.add_argument("--no-stack", action="store_true", help="leave out the starts in real time")
    asked = parser.parse_args()
    recipe = dataclasses.replace(quick() if asked.quick else Recipe(), seed=asked.seed)
    if asked.no_stack:
        recipe = dataclasses.replace(recipe, stack_starts=0)
    demo_recipe = quick_demo() if asked.quick else DemoRecipe()
    # Either signal ends what runs in an orderly way, also where a shell started this in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    from experiments.federation.stages import Stages  # after the arguments: it imports torch

    try:
        stages = Stages(asked.folder, asked.out or asked.folder / "federation", recipe, demo_recipe)
        getattr(stages, asked.stage)()
    except AgentError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
