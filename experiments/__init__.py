"""Longer experiments that make what the project ships. Nothing in the agent imports them."""
