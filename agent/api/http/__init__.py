"""The HTTP surface: a process of its own that talks to the daemon like any other client."""
