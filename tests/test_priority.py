"""What a process gives up for the others, seen by the kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SHOWN = """
import os, sys
from agent.priority import step_back, yield_to_others
from tests.test_priority import own_group
step_back() if sys.argv[1] == "back" else yield_to_others(5)
prey = open("/proc/self/oom_score_adj").read()
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), own_group(), prey)
"""


def shown(what: str, leads: bool) -> list[str]:
    command = [sys.executable, "-c", SHOWN, what]
    ran = subprocess.run(command, start_new_session=leads, capture_output=True, text=True, check=True, cwd=ROOT)
    return ran.stdout.split()


def own_group() -> str:
    """Niceness of the session; "-" without autogroups, or in the root group (the first session of a machine)."""
    file = Path("/proc/self/autogroup")
    words = file.read_text().split() if file.exists() else []
    return words[-1] if words else "-"


@pytest.mark.parametrize(("what", "nice"), [("back", 19), ("others", 5)])
def test_a_leader_of_a_session_says_it_for_its_session_too(what: str, nice: int) -> None:
    process, scheduler, group, _ = shown(what, leads=True)
    assert int(process) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    assert int(scheduler) == (os.SCHED_IDLE if what == "back" else os.sched_getscheduler(0))
    assert group in (str(nice), "-")


def test_somebody_elses_session_is_left_alone() -> None:
    assert shown("back", leads=False)[2] == own_group()


def test_who_steps_back_goes_first_when_memory_runs_out() -> None:
    assert shown("back", leads=True)[3] == "1000"
