"""Whatever computes a chunk on this machine."""

from agent.inference.engines.choose import load_engine as load_engine
