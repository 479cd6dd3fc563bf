"""A station that is not there: servo bus, arm, table, cameras and a scripted operator. Imported by nothing else."""

import os

# Read when mujoco is imported and when Mesa starts. One thread: software rendering on all cores would starve the arm.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")
