"""The policy that ships with the project, from recording to checkpoint: `python -m experiments.demo_policy --help`."""

import os

# Before anything imports MuJoCo or a hub client: render without a screen, and fetch nothing.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
