"""Measurements against the tools this agent stands beside. Nothing here is part of the agent."""
