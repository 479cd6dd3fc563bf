"""The `so-agent` command. Imports neither torch nor lerobot; what needs them runs in a process of its own."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Final

import click
import typer

from agent.cli.command import Command, Root, invocation, show_error
from agent.errors import AgentError, BadInput

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended."""

DEBUG_VARIABLE = "SO_AGENT_DEBUG"

MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "run": ("run", "virtual-station", "inject", "demo", "version"),
    "status": ("status",),
    "arm": ("teleop", "hold", "park", "estop", "reset", "release"),
    "record": ("record",),
    "task": ("task",),
    "episodes": ("episodes",),
    "policy": ("policy",),
    "train": ("train",),
    "token": ("token",),
    "fl": ("fl",),
    "fleet": ("fleet",),
    "calibrate": ("calibrate",),
    "check": ("check-config",),
    "doctor": ("doctor",),
    "install": ("install", "uninstall"),
    "secure": ("secure",),
}
"""Which module of this package has which commands, in the order of `--help`. Importing all of them takes a quarter of a
second, which neither the arm nor a person at a terminal should wait for."""


def application(modules: Iterable[str] = MODULES) -> typer.Typer:
    """`so-agent` with the commands of these modules; with all of them, as it is documented."""
    app = typer.Typer(
        name="so-agent",
        cls=Root,
        help="An always-on agent for SO-100 and SO-101 arms.",
        epilog="Exit codes: 0 done, 2 bad input, 3 refused in this mode, 4 agent not running, 5 device fault.",
        no_args_is_help=True,
        add_completion=False,
        suggest_commands=False,  # click does it
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options() -> None:
        """An always-on agent for SO-100 and SO-101 arms."""

    for module in modules:
        import_module(f"agent.cli.{module}").register(app)
    return app


def needed(arguments: Sequence[str]) -> Iterable[str]:
    """The module of the command that comes first; all of them for help, an option in front, or a slip of the pen."""
    for module, commands in MODULES.items():
        if arguments and arguments[0] in commands:
            return (module,)
    return MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. A person never sees a traceback unless asked for."""
    sys.exit(execute(sys.argv[1:] if arguments is None else list(arguments)))


def execute(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        code = application(needed(arguments))(arguments, standalone_mode=False)
    except click.ClickException as error:
        where = f"`{error.ctx.command_path} --help`" if isinstance(error, click.UsageError) and error.ctx else "--help"
        message = error.format_message()
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            typer.echo(message, err=True)
        else:
            show_error(BadInput(message, f"See {where}."), as_json="--json" in arguments)
        return BadInput.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads; a flush at exit must not fail
        return 0
    except Exception as error:  # the edge of the command: people get a sentence, not a traceback
        if os.environ.get(DEBUG_VARIABLE):
            raise
        sentence = f"so-agent itself failed: {type(error).__name__}: {error}."
        hint = f"This is a bug; please report it with what {DEBUG_VARIABLE}=1 shows."
        show_error(AgentError(sentence, hint), as_json="--json" in arguments)
        return 1
    return code if isinstance(code, int) else 0


__all__ = ["Command", "application", "execute", "invocation", "main"]
