"""Cameras that come from a distribution of their own, as lerobot's plug-ins do."""

import sys
from pathlib import Path
from typing import Any

import pytest

from agent.robot.camera import driver_config
from agent.robot.camera_types import check_type, known_types

PLUGIN = """
from dataclasses import dataclass
from lerobot.cameras import CameraConfig

@CameraConfig.register_subclass("toy")
@dataclass
class ToyCameraConfig(CameraConfig):
    colour: str = "red"
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution `lerobot_camera_toy`, as pip would have installed it."""
    package = tmp_path / "lerobot_camera_toy"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN)
    about = tmp_path / "lerobot_camera_toy-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_camera_toy\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lerobot_camera_toy", raising=False)


def test_an_installed_plug_in_is_a_known_type_and_its_options_are_its_own(plugin: None, make_config: Any) -> None:
    assert "toy" in known_types()
    check_type("front", "toy")
    camera = {"view": "OBS_IMAGE_1", "type": "toy", "options": {"colour": "green"}}
    config = make_config(cameras={"front": camera})
    made = driver_config("front", config.cameras["front"])
    assert (made.type, made.colour, made.width) == ("toy", "green", 640)
