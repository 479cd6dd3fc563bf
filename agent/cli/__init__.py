"""The `so-agent` command. Imports neither torch nor lerobot; what needs them runs in a process of its own."""

import os
import sys
from collections.abc import Sequence

import click
import typer

from agent.cli import (
    arm,
    calibrate,
    check,
    doctor,
    episodes,
    fl,
    fleet,
    install,
    policy,
    record,
    run,
    secure,
    status,
    task,
    token,
    train,
)
from agent.cli.command import Command, Root, invocation, show_error
from agent.errors import AgentError, BadInput

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended."""

DEBUG_VARIABLE = "SO_AGENT_DEBUG"

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


run.register(app)
status.register(app)
arm.register(app)
record.register(app)
task.register(app)
episodes.register(app)
policy.register(app)
train.register(app)
token.register(app)
fl.register(app)
fleet.register(app)
calibrate.register(app)
check.register(app)
doctor.register(app)
install.register(app)
secure.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. A person never sees a traceback unless asked for."""
    sys.exit(execute(sys.argv[1:] if arguments is None else list(arguments)))


def execute(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        code = app(arguments, standalone_mode=False)
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


__all__ = ["Command", "app", "execute", "invocation", "main"]
