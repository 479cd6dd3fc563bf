"""What the parts of a status say."""

from pathlib import Path

import pytest

from agent import status
from agent.config import Camera, load
from agent.messages import CameraReport, CameraState
from agent.supervisor import ChildSpec, ChildState

SECOND = 1_000_000_000
SAID_NS = 100 * SECOND


@pytest.fixture
def front() -> Camera:
    return load(Path(__file__).parents[2] / "configs" / "so101" / "virtual.yaml").cameras["front"]


@pytest.mark.parametrize(
    ("later_s", "age_ms"),
    [(0.0, 20.0), (0.9, 20.0), (1.4, 20.0), (2.0, 2020.0), (60.0, 60_020.0)],
)
def test_a_camera_is_as_old_as_it_said_until_it_has_fallen_silent(front: Camera, later_s: float, age_ms: float) -> None:
    """Its process reports once a second: time since then is no age of its newest frame."""
    report = CameraReport("front", SAID_NS, 1, CameraState.STREAMING, last_capture_ns=SAID_NS - SECOND // 50)
    process = ChildState(ChildSpec("camera-front", "a:b", "cameras"))
    assert status.camera(front, report, process, SAID_NS + round(later_s * SECOND))["age_ms"] == age_ms


def test_a_camera_that_never_spoke_has_no_age(front: Camera) -> None:
    process = ChildState(ChildSpec("camera-front", "a:b", "cameras"), last_exit="killed by SIGKILL")
    said = status.camera(front, None, process, SAID_NS)
    assert (said["state"], said["reason"], said["age_ms"]) == ("down", "killed by SIGKILL", None)
