"""How long a policy takes on this machine: `so-agent policy bench`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from agent.cli.command import Command, invocation
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.config import Policy
    from agent.inference.bundle import Bundle
    from agent.inference.engine import Observation
    from agent.inference.latency import Latency

ENGINES: Final = ("reference", "exact", "bf16", "int8", "openvino", "cuda")


def register(policy: typer.Typer) -> None:
    """Into the group `so-agent policy`."""
    policy.command("bench", cls=Command, epilog="Example: so-agent policy bench reach --engine exact --engine bf16")(
        bench
    )


def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A policy of this station; default: the one in use.")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="ENGINE", help="Only this one; again for each. Default: all.")
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, max=100, help="Predictions of each, of which the median counts.")] = 5,
) -> None:
    """How long one chunk takes here, engine by engine, how far that is from lerobot's own, and what it means.

    Run it while nothing else does: the numbers are those of the machine as it is now.
    """
    from agent.inference.library import Library

    config = invocation().load()
    bundle = Library(config.paths.policies, config.paths.policy_in_use).open(name)
    console = Console(stderr=True, quiet=invocation().json)
    found: list[Latency] = []
    refused: dict[str, str] = {}
    with console.status("Reading the policy") as shown:
        for kind, latency in _measured(bundle, config.policy, tuple(engine or ENGINES), chunks, shown.update):
            if isinstance(latency, AgentError):
                refused[kind] = str(latency)
            else:
                found.append(latency)
    if invocation().json:
        invocation().show({"engines": [asdict(each) for each in found], "refused": refused}, "")
        return
    _print(bundle, found, refused)
    if not found:
        raise typer.Exit(AgentError.exit_code)


def _measured(
    bundle: "Bundle", settings: "Policy", engines: tuple[str, ...], chunks: int, say: Any
) -> Iterator[tuple[str, "Latency | AgentError"]]:
    from agent.inference.engines import load_engine
    from agent.inference.latency import measure

    observation = _observation(bundle)
    for kind in engines:
        say(f"{kind}: loading and comparing with lerobot")
        # The bound is for engines that move an arm; here a person decides with the number before them.
        wanted = settings.model_validate({**settings.model_dump(), "engine": kind, "max_deviation": 10.0})
        try:
            engine = load_engine(bundle, wanted)
        except AgentError as error:
            yield kind, error
            continue
        say(f"{kind}: predicting {chunks} times")
        try:
            yield kind, measure(engine, observation, chunks)
        finally:
            engine.close()


def _observation(bundle: "Bundle") -> "Observation":
    """Pictures of the sizes that the policy was trained on."""
    import json

    import numpy as np

    from agent.inference.engine import Observation
    from agent.inference.engines.check import picture

    random = np.random.default_rng(0)
    features = json.loads((bundle.policy / "config.json").read_text())["input_features"]
    sizes = {name: features[name]["shape"][1:] for name in bundle.manifest.cameras.values()}
    images = {name: picture(random, height, width) for name, (height, width) in sizes.items()}
    tasks = bundle.manifest.tasks or ("do it",)
    return Observation((0.0, 0.0, 0.0, 0.0, 0.0, 50.0), images, tasks[0])


def _print(bundle: "Bundle", found: list["Latency"], refused: dict[str, str]) -> None:
    from agent.inference.latency import COLUMNS

    console = Console()
    if found:
        table = Table(title=f"{bundle.manifest.name} on this machine", title_justify="left", box=None, pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("engine", "options") else "right")
        for latency in found:
            table.add_row(*latency.row)
        console.print(table)
        best = min(found, key=lambda each: each.chunk_s)
        console.print(f"\n{best.engine}: {best.sentence}.")
    for kind, reason in refused.items():
        console.print(f"[dim]{kind}: {reason}[/dim]")
