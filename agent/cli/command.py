"""What every command has in common: where the agent is, how a result and an error are shown."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import ArgumentInfo

from agent.cli.belongings import give_back
from agent.cli.locate import Station
from agent.errors import AgentError

CONFIG_VARIABLE = "SO_AGENT_CONFIG"


class Invocation(Station):
    """One call of `so-agent`: the options that every command takes."""

    json: bool = False

    def show(self, result: Mapping[str, Any], sentence: str) -> None:
        """The result as one JSON object for programs, or as a sentence for people."""
        if self.json:
            typer.echo(json.dumps({"ok": True, **result}))
        else:
            typer.echo(sentence)


def invocation() -> Invocation:
    """The options of the running command."""
    return click.get_current_context().find_root().ensure_object(Invocation)


def show_error(error: AgentError, as_json: bool, also: Mapping[str, Any] | None = None) -> None:
    """One sentence that says what is wrong and one that says what to do; an object on stdout for programs."""
    if as_json:
        about = {"ok": False, "code": error.code, "message": error.message, "hint": error.hint}
        typer.echo(json.dumps({**about, **(also or {})}))
        return
    typer.secho(error.message, err=True, fg="red")
    if error.hint:
        typer.echo(error.hint, err=True)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Accept the option before and behind the command; the one behind wins."""
    if parameter.name and value:
        setattr(context.find_root().ensure_object(Invocation), parameter.name, value)


def _common_options(root: bool) -> list[click.Parameter]:
    """The same three for every command, so that nobody has to remember where they go."""
    path = click.Path(path_type=str)
    return [
        TyperOption(
            param_decls=["config", "-c", "--config"],
            type=path,
            metavar="FILE",
            help="The station's configuration file.",
            envvar=CONFIG_VARIABLE if root else None,
            expose_value=False,
            callback=_keep,
            show_envvar=root,
            rich_help_panel="Which station",
        ),
        TyperOption(
            param_decls=["socket", "--socket"],
            type=path,
            metavar="PATH",
            help="The agent's Unix socket; default: the one of the configuration, or of the only running agent.",
            expose_value=False,
            callback=_keep,
            rich_help_panel="Which station",
        ),
        TyperOption(
            param_decls=["json", "--json"],
            is_flag=True,
            help="Print one JSON object instead of text.",
            expose_value=False,
            callback=_keep,
        ),
    ]


def _give_help_back(arguments: Sequence[click.Parameter], function: Callable[..., Any]) -> None:
    """To positional arguments. Click 8.5 has a `help` of its own for them, and clears the one of Typer 0.20, beyond
    which Flower does not go."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    for argument in arguments:
        if isinstance(argument, TyperArgument) and argument.help is None:
            about = get_args(hints.get(argument.name or ""))
            argument.help = next((one.help for one in about if isinstance(one, ArgumentInfo)), None)


class Command(TyperCommand):
    """A command with the common options; the errors of the family become sentences and exit codes."""

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        if function := kwargs.get("callback"):
            _give_help_back(params or [], function)
        super().__init__(*args, params=[*(params or []), *_common_options(root=False)], **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AgentError as error:
            show_error(error, invocation().json)
            raise typer.Exit(error.exit_code) from None
        finally:
            if station := invocation().loaded:
                give_back(station.paths.state)


class Root(TyperGroup):
    """`so-agent` itself."""

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, params=[*(params or []), *_common_options(root=True)], **kwargs)


def group(name: str, help_text: str) -> typer.Typer:
    """A word that other words follow, such as `record`."""
    return typer.Typer(name=name, help=help_text, no_args_is_help=True, suggest_commands=False)
