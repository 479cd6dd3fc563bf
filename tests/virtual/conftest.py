"""Imported before any test module: the package chooses how mujoco draws, which is fixed once mujoco is imported."""

import agent.virtual  # noqa: F401
