"""The parts of `benchmarks.control`: lerobot's record loop and this agent, on the same virtual arm."""
