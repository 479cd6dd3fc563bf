"""Thirty kills at random instants; `make durability` does three hundred."""

from pathlib import Path

import pytest

from tests.durability.harness import Harness

KILLS = 30


@pytest.mark.timeout(900)
def test_thirty_kills_lose_no_finished_episode_and_never_make_the_arm_jump(short_dir: Path) -> None:
    harness = Harness(short_dir, seed=7)
    try:
        tally = harness.run(KILLS)
    finally:
        harness.close()
    print("\n".join(tally.lines()))
    assert tally.problems == []
    assert sum(tally.kills.values()) == KILLS
    assert tally.finished, "no episode was finished: the test would prove nothing"
    assert tally.unfinished
