"""`python -m agent.virtual -c FILE`: run the virtual station of a configuration."""

import argparse
import sys
from pathlib import Path

from agent.config import load
from agent.errors import AgentError
from agent.virtual.scene import COLOURS, CUBES, DISCS
from agent.virtual.station import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.virtual", description=__doc__)
    parser.add_argument("-c", "--config", type=Path, required=True, help="station configuration, as the agent uses it")
    parser.add_argument("--seed", type=int, default=0, help="of the table and the operator")
    parser.add_argument("--stamp", action="store_true", help="draw goal count and time into every frame")
    parser.add_argument("--no-cameras", action="store_true", help="arms only")
    parser.add_argument("--wire-log", type=Path, help="append every goal on the wire to this file, one JSON a line")
    parser.add_argument("--pace", action="store_true", help="replies take as long as at 1 Mbaud")
    for kind, usual in (("disc", DISCS), ("cube", CUBES)):
        text = f"a colour; may be given again (default {', '.join(usual)})"
        parser.add_argument(f"--{kind}", action="append", choices=sorted(COLOURS), help=text)
    asked = parser.parse_args()
    try:
        run(
            load(asked.config),
            seed=asked.seed,
            stamp=asked.stamp,
            cameras=not asked.no_cameras,
            wire_log=asked.wire_log,
            paced=asked.pace,
            discs=tuple(asked.disc or DISCS),
            cubes=tuple(asked.cube or CUBES),
        )
    except AgentError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
