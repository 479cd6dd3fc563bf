"""so-agent: the always-on agent for SO-100 and SO-101 robot arms."""

__version__ = "0.1.0"
