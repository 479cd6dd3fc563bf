"""`python -m agent.cli` is `so-agent`."""

from agent.cli import main

main()
