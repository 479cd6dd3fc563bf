"""Every command of `so-agent`, from the same objects that print its --help."""

import inspect
from collections.abc import Iterator

import click
import typer

from agent.cli import application
from agent.cli.command import Command
from scripts.docs.table import code, fenced, table

INTRODUCTION = """# Every command

Made from the commands themselves: what `--help` prints. What belongs together, exit codes and JSON shapes are
in the [guide](../command-line.md).

Each command also takes `-c FILE`, `--socket PATH` and `--json`, which [say which station is
meant](../command-line.md#which-station) and in which form it answers.

"""

EXAMPLE = "Example: "


def page() -> str:
    text = INTRODUCTION
    noun = ""
    for words, command in commands():
        if len(words) > 1 and words[0] != noun:
            noun = words[0]
            text += f"## {code(noun)}\n\n{_group_help(noun)}\n\n"
        text += _section(words, command)
    return text


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words, single ones first, then noun by noun."""
    root = typer.main.get_command(application())
    assert isinstance(root, click.Group)  # noqa: S101 - Typer says so for an app with commands
    singles = [((name,), command) for name, command in root.commands.items() if not isinstance(command, click.Group)]
    yield from singles
    for name, group in root.commands.items():
        if isinstance(group, click.Group):
            yield from (((name, word), command) for word, command in group.commands.items())


def examples(command: click.Command) -> list[str]:
    """The lines of its examples."""
    return [line.strip() for line in (command.epilog or "").removeprefix(EXAMPLE).splitlines() if line.strip()]


def _section(words: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(("so-agent", *words)))
    own = [
        parameter
        for parameter in command.params
        if parameter.name not in _COMMON and not getattr(parameter, "hidden", False)
    ]
    level = "##" if len(words) == 1 else "###"
    text = f"{level} {code(' '.join(words))}\n\n{_prose(command.help)}\n\n"
    text += fenced(" ".join(["so-agent", *words, *_pieces(own)]))
    text += table(["option", "meaning"], [_row(parameter, context) for parameter in own])
    lines = examples(command)
    if lines:
        text += f"Example{'s' if len(lines) > 1 else ''}:\n\n" + fenced("\n".join(lines))
    return text


_COMMON = {parameter.name for parameter in Command(None).params}


def _pieces(parameters: list[click.Parameter]) -> Iterator[str]:
    """What must be given, then that there is more."""
    for parameter in parameters:
        if isinstance(parameter, click.Option) and parameter.required:
            yield f"{parameter.opts[0]} {_value(parameter)}"
    if any(isinstance(parameter, click.Option) and not parameter.required for parameter in parameters):
        yield "[OPTIONS]"
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            name = _value(parameter) + (" ..." if parameter.nargs == -1 else "")
            yield name if parameter.required else f"[{name}]"


def _row(parameter: click.Parameter, context: click.Context) -> tuple[str, str]:
    about = _prose(getattr(parameter, "help", "") or "")
    if isinstance(parameter, click.Argument):
        return code(_value(parameter)), about
    assert isinstance(parameter, click.Option)  # noqa: S101 - there is no third kind
    names = ", ".join(code(name) for name in (*parameter.opts, *parameter.secondary_opts))
    value = "" if parameter.is_flag else f" {code(_value(parameter))}"
    if parameter.multiple:
        value += ", again for each"
    notes = []
    if parameter.required:
        notes.append("Required.")
    default = parameter.get_default(context)
    if not parameter.is_flag and default not in (None, "", ()) and "default" not in about.lower():
        notes.append(f"Default: {code(getattr(default, 'value', default))}.")
    return names + value, " ".join([about, *notes])


def _value(parameter: click.Parameter) -> str:
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(getattr(choice, "value", choice)) for choice in parameter.type.choices)
    match parameter.type:
        case click.IntRange() | click.types.IntParamType():
            return "N"
        case click.FloatRange() | click.types.FloatParamType():
            return "X"
        case click.Path() | click.File():
            return "PATH"
        case _:
            return "TEXT"


def _prose(text: str | None) -> str:
    """Help texts are plain: an asterisk in them is an asterisk."""
    return inspect.cleandoc(text or "").replace("*", "\\*").replace("<", "&lt;")


def _group_help(noun: str) -> str:
    root = typer.main.get_command(application())
    assert isinstance(root, click.Group)  # noqa: S101
    return _prose(root.commands[noun].help)
