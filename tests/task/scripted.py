"""A station whose policy does what its task text says: everything is real but the model.

Run as `python -m tests.task.scripted run -c FILE` in the place of `so-agent run -c FILE`.
"""

import sys
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.clock import SystemClock
from agent.config import StationConfig
from agent.inference.bundle import Bundle, Manifest
from agent.inference.engine import Actions, Engine, Guidance, Observation, Traits
from agent.inference.observer import require_views
from agent.inference.process import PolicyProcess

FPS: Final = 30
CHUNK: Final = 50
STEP_DEG: Final = 1.0
"""A scripted move advances this much an action: 30 degrees a second."""

HANG_S: Final = 3600.0


class Script:
    """`go 20` moves shoulder_pan to 20 degrees; the other words are ways to fail."""

    guided = False
    options = ()

    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions:
        what, _, value = observation.task.partition(" ")
        here = np.array(observation.joints, np.float32)
        actions = np.tile(here, (CHUNK, 1))
        match what:
            case "go":
                there = float(value)
                steps = np.arange(1, CHUNK + 1) * STEP_DEG
                actions[:, 0] = here[0] + np.clip(there - here[0], -steps, steps)
            case "nan":
                actions[7, 3] = np.nan
            case "narrow":
                actions = actions[:, :5]
            case "short":
                actions = actions[:10]
            case "hang":
                time.sleep(HANG_S)
            case "memory":
                raise MemoryError("this test has used up all of it")
            case "wild":
                actions[:, 0] = 5000.0
        return actions

    def profile(self, observation: Observation) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


class ScriptedProcess(PolicyProcess):
    """The policy process with a script in the place of a bundle."""

    def _open(self, name: str) -> tuple[Bundle, Engine]:
        from agent.inference.engines.computer import HERE, Checked  # torch comes with it

        cameras = {"OBS_IMAGE_1": "observation.images.front"}
        if name == "three-eyes":
            cameras |= {"OBS_IMAGE_9": "observation.images.top"}
        require_views(self._config, cameras)
        paths = self._config.paths
        manifest = Manifest(1, name, "script", FPS, CHUNK, cameras, {})
        traits = Traits("script", HERE, CHUNK, 1_000_000_000 // FPS, cameras, False, 0.0)
        return Bundle(paths.policies / name, manifest, "0" * 12), Checked(Script(), traits)


def main(config: StationConfig) -> None:
    """In the place of `agent.inference.process:main`."""
    ScriptedProcess(config, SystemClock()).run()


if __name__ == "__main__":
    import agent.station
    from agent.cli import execute

    agent.station.POLICY_ENTRY = "tests.task.scripted:main"
    sys.exit(execute(sys.argv[1:]))
