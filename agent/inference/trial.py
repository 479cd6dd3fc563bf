"""Load a bundle and predict once, in a process of its own: what it takes to know that a policy can be run here.

`python -m agent.inference.trial FOLDER` is the child.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agent.errors import AgentError, BadInput
from agent.inference.bundle import Bundle, open_bundle
from agent.inference.engine import Observation
from agent.messages import Problem

TIMEOUT_S: Final = 900.0
"""A policy of 450 million parameters takes half a minute on two slow cores; one of four billion would not finish."""

GREY: Final = 128


class Trial(msgspec.Struct, frozen=True, tag="trial"):
    """What it took, with lerobot's own prediction in 32 bits and no warm-up."""

    load_s: float  # without importing torch and lerobot
    chunk_s: float


def try_out(bundle: Bundle) -> Trial:
    """Raises BadInput when the policy cannot be loaded or gives no chunk of actions."""
    from agent.inference.loading import OFFLINE

    command = [sys.executable, "-m", "agent.inference.trial", str(bundle.folder)]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, env=os.environ | OFFLINE
        )
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"The policy gave nothing within {TIMEOUT_S:.0f} s.", "It is too large for this computer."
        ) from error
    try:
        result = msgspec.json.decode(child.stdout, type=Trial | Problem)
    except msgspec.DecodeError as error:
        ended = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BadInput(
            f"The policy ended the process that tried it ({ended}). {' '.join(last)}".strip(),
            "Signal 9 mostly means that the memory did not suffice; see the kernel's log.",
        ) from error
    if isinstance(result, Problem):
        raise BadInput(result.message, result.hint)
    return result


def predict_once(folder: Path) -> Trial:
    """In the child."""
    bundle = open_bundle(folder)
    import torch

    from agent.inference.loading import load_policy

    began = time.perf_counter()
    loaded = load_policy(bundle)
    load_s = time.perf_counter() - began
    images = {
        name: np.full((*feature.shape[1:], 3), GREY, np.uint8)
        for name, feature in loaded.policy.config.image_features.items()
        if name in bundle.manifest.cameras.values()
    }
    batch = loaded.prepare(Observation((0.0,) * 6, images, next(iter(bundle.manifest.tasks), "try")))
    torch.manual_seed(0)
    began = time.perf_counter()
    chunk = loaded.predict(batch)
    chunk_s = time.perf_counter() - began
    loaded.finish(chunk)
    return Trial(load_s, chunk_s)


def main() -> None:
    try:
        result: Trial | Problem = predict_once(Path(sys.argv[1]))
    except AgentError as error:
        result = Problem(error.code, error.message, error.hint)
    sys.stdout.write(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
