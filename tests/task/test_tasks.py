"""What a person gets who lets the arm do something by itself: whole stations, a scripted policy."""

import itertools
import os
import signal
import time
from typing import Any

import pytest

from agent.errors import BadInput, Refused
from tests.station.live import LiveStation, wait_for

ARRIVED_DEG = 2.0
HOLD_S = 8.0
"""A chunk covers 1.7 s, starving may last 1 s (this station's starve_stop_s); tests/arm measures those. The rest is for
a busy machine."""


def start(station: LiveStation, task: str, **more: Any) -> dict[str, Any]:
    return station.client.call("task.start", {"task": task, "policy": "script", **more}, timeout_s=60.0)


def pan(station: LiveStation) -> float:
    return station.joints()[0]


def reaches(station: LiveStation, deg: float) -> None:
    wait_for(f"shoulder_pan reaches {deg}", lambda: abs(pan(station) - deg) < ARRIVED_DEG)


def acts(station: LiveStation) -> None:
    """The policy has the arm: its first chunk has come. For that one a task waits ten seconds, and the arm may have
    been where it should go from the start."""

    def chunks() -> bool:
        policy = (station.status() or {}).get("policy") or {}
        execution = policy.get("execution") or {}
        return execution.get("generation") == policy.get("generation") and execution.get("chunks", 0) > 0

    wait_for("the first chunk comes", chunks)


def stays(station: LiveStation) -> None:
    """The arm is still: it holds what was sent last."""
    before = pan(station)
    time.sleep(0.5)
    assert abs(pan(station) - before) < ARRIVED_DEG


def test_the_arm_does_a_task_until_it_is_stopped(station: LiveStation) -> None:
    answer = start(station, "go 15")
    assert answer["mode"] == "executing"
    reaches(station, 15)
    status = wait_for("a delay", lambda: (s := station.status()) and s["policy"]["delay_p50_s"] and s)
    policy = status["policy"]
    assert (policy["state"], policy["task"], policy["policy"]) == ("running", "go 15", "script")
    assert policy["hash"] == "0" * 12
    assert policy["delay_p50_s"] <= policy["delay_p95_s"] < 1.0
    assert policy["execution"]["chunks"] > 1
    assert policy["execution"]["depth"] > 0
    assert status["task"]["state"] == "running"
    stopped = station.client.call("task.stop")
    assert stopped["mode"] == "hold"
    assert stopped["task"]["over"] == "task stop was asked for"
    stays(station)
    after = station.status()
    assert after
    assert after["task"] is None
    assert after["policy"]["state"] == "ready"


def test_a_task_ends_when_its_time_is_over(station: LiveStation) -> None:
    start(station, "go 10", duration_s=1)
    station.wait_mode("hold")

    def over() -> dict[str, Any] | None:  # a moment after the arm holds
        status = station.status()
        return status["last_task"] if status and not status["task"] else None

    last = wait_for("the task is over", over)
    assert last["over"] == "its time is over"


def test_a_person_takes_over_and_gives_back_and_the_correction_is_recorded(station: LiveStation) -> None:
    start(station, "go 12", record=True)
    reaches(station, 12)
    station.inject(operator={"pose": [-20, -35, 45, 65, 0, 5]})
    station.client.call("teleop.start")
    status = station.wait_mode("teleop")
    assert status["task"]["state"] == "taken over"
    assert status["recording"]["task"] == "go 12"
    reaches(station, -20)
    back = station.client.call("teleop.stop")
    assert back["mode"] == "executing"
    reaches(station, 12)
    station.client.call("task.stop", {"success": True})
    status = station.wait_mode("hold")
    assert status["recorder"]["last"]["outcome"] == "committed", status["recorder"]["last"]
    episode = station.client.call("episodes.list")["episodes"][-1]
    assert (episode["task"], episode["source"], episode["success"]) == ("go 12", "intervention", True)
    last = station.status()
    assert last
    assert last["last_task"]["interventions"] == 1


def test_nothing_jumps_when_a_person_takes_over(station: LiveStation) -> None:
    start(station, "go 20")
    reaches(station, 20)
    station.inject(operator={"pose": [-30, -35, 45, 65, 0, 5]})
    before = len(station.wire())
    station.client.call("teleop.start")
    station.wait_mode("teleop")
    station.client.call("teleop.stop")
    reaches(station, 20)
    station.client.call("task.stop")
    goals = [row for row in station.wire(before) if row["arm"] == "follower" and row["id"] == 1]
    counts = [row["goal"] for row in goals]
    steps = [abs(after - now) for now, after in itertools.pairwise(counts)]
    # 240 degrees a second is the speed limit; 4096 counts are 360 degrees; a tick may come late by one.
    assert max(steps) <= 2 * 240 / 30 * 4096 / 360


@pytest.mark.parametrize(
    ("task", "reason"),
    [("nan", "nan"), ("narrow", "shape (50, 5)"), ("short", "shape (10, 6)")],
)
def test_a_chunk_that_is_none_is_not_acted_on_and_the_reason_is_shown(
    station: LiveStation, task: str, reason: str
) -> None:
    start(station, task)
    before = pan(station)
    status = wait_for("the reason is shown", lambda: (s := station.status()) and reason in s["policy"]["reason"] and s)
    assert status["policy"]["failures"] > 0
    assert status["policy"]["execution"]["chunks"] == 0
    assert abs(pan(station) - before) < ARRIVED_DEG
    station.client.call("task.stop")
    station.wait_mode("hold")


def test_an_action_far_outside_of_any_arm_is_dropped_by_the_arm(station: LiveStation) -> None:
    start(station, "wild")
    status = wait_for("the arm drops it", lambda: (s := station.status()) and s["policy"]["execution"]["dropped"] and s)
    assert status["policy"]["execution"]["chunks"] == 0
    station.client.call("task.stop")


def test_a_policy_process_that_hangs_is_started_again_and_the_arm_holds(station: LiveStation) -> None:
    start(station, "go 5")
    reaches(station, 5)
    pid = station.child_pid("policy")
    station.client.call("task.stop")
    start(station, "hang")
    status = station.wait_mode("hold")
    assert "policy process ended (exit status 70)" in status["last_task"]["over"] if status["policy"] else True
    wait_for("another one runs", lambda: station.child_pid("policy") != pid)
    start(station, "go 0")
    reaches(station, 0)
    station.client.call("task.stop")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_arm_holds_when_the_policy_process_is_killed_or_stopped(station: LiveStation, number: int) -> None:
    start(station, "go 18")
    reaches(station, 18)
    acts(station)
    pid = station.child_pid("policy")
    os.kill(pid, number)
    try:
        station.wait_mode("hold", timeout_s=HOLD_S)
        stays(station)
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)  # the supervisor would do it in some seconds


def test_running_out_of_memory_ends_the_process_and_nothing_else(station: LiveStation) -> None:
    start(station, "memory")
    status = station.wait_mode("hold", timeout_s=HOLD_S)
    assert "policy process ended" in status["last_task"]["over"]
    assert status["arm"]["drive"] == "hold"
    assert all(camera["state"] == "streaming" for camera in status["cameras"].values())


def test_a_frozen_camera_stops_the_policy_and_the_arm(station: LiveStation) -> None:
    start(station, "go 8")
    reaches(station, 8)
    station.inject(camera={"name": "front", "fault": "frozen"})
    status = station.wait_mode("hold", timeout_s=10.0)
    assert "front" in status["policy"]["reason"] or "came from the policy" in status["reason"]


def test_a_policy_that_wants_a_camera_that_is_not_there_is_refused(station: LiveStation) -> None:
    with pytest.raises(BadInput, match="OBS_IMAGE_9"):
        station.client.call("task.start", {"task": "go 1", "policy": "three-eyes"}, timeout_s=60.0)
    status = station.status()
    assert status
    assert status["mode"] == "idle"


def test_what_cannot_start_says_why(station: LiveStation) -> None:
    with pytest.raises(BadInput, match="There is no policy nobody"):
        station.client.call("task.start", {"task": "go 1", "policy": "nobody"})
    with pytest.raises(BadInput, match="task text is empty"):
        start(station, " ")
    with pytest.raises(BadInput, match="duration-s"):
        start(station, "go 1", duration_s=0)
    with pytest.raises(Refused, match="No task is under way"):
        station.client.call("task.stop")
    station.teleop()
    with pytest.raises(Refused, match="A person has the arm"):
        start(station, "go 1")
    station.client.call("estop")
    with pytest.raises(Refused, match="estop"):
        start(station, "go 1")


def test_one_task_at_a_time(station: LiveStation) -> None:
    start(station, "go 3")
    with pytest.raises(Refused, match="'go 3' is under way"):
        start(station, "go 4")
    station.client.call("task.stop")


def test_estop_while_executing_reaches_the_bus_in_time(station: LiveStation) -> None:
    start(station, "go 25")
    before = time.monotonic()
    answer = station.client.call("estop", {"cause": "a test"})
    assert answer["verified"] is True
    assert time.monotonic() - before <= 0.1
    status = wait_for("the task is over", lambda: (s := station.status()) and s["task"] is None and s)
    assert status["mode"] == "estop"
