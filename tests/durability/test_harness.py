"""What the harness takes for a jump, and for an episode that was refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.durability.harness import Harness

LET_GO = b'{"before": "hold", "after": "limp"}\n'


class Recorded:
    """A station of which only a log and a wire are left."""

    def __init__(self, log: Path) -> None:
        self.log, self.goals = log, [goal(0, 2234, 2240)]
        log.write_bytes(b"")

    def wire(self, skip: int) -> list[dict[str, Any]]:
        return self.goals[skip:]


def goal(ns: int, raw: int, present: int) -> dict[str, Any]:
    return {"arm": "follower", "id": 2, "ns": ns, "goal": raw, "present": present}


@pytest.mark.parametrize(("said", "jumps"), [(LET_GO, 0), (b"", 1)])
def test_an_arm_may_go_on_from_where_it_lies_only_if_the_agent_said_that_it_let_go(
    short_dir: Path, said: bytes, jumps: int
) -> None:
    harness = Harness(short_dir, seed=1)
    live = Recorded(short_dir / "agent.log")
    harness.live = live  # type: ignore[assignment]
    harness._check_wire()
    live.log.write_bytes(said)
    harness._check_wire()
    live.goals.append(goal(8_068_000_000, 2294, 2294))  # 5.3 degrees from the last goal
    harness._check_wire()
    assert len(harness.tally.problems) == jumps
    live.goals.append(goal(16_000_000_000, 2354, 2354))  # what was said once counts once
    harness._check_wire()
    assert len(harness.tally.problems) == jumps + 1


def test_an_episode_may_only_be_rejected_for_rows_that_are_missing(short_dir: Path) -> None:
    harness = Harness(short_dir, seed=1)
    harness._count_rejected("a", "3 of 57 rows are missing (5% are allowed)")
    assert harness.tally.problems == []
    harness._count_rejected("b", "camera wrist repeated 40%")
    assert len(harness.tally.problems) == 1
