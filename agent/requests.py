"""What the arguments of a request mean. A mistake becomes BadInput; what is used is taken out of `args`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.config import StationConfig
from agent.errors import BadInput
from agent.inference.library import Library
from agent.messages import EpisodeSource
from agent.session import Plan
from agent.task import TaskPlan
from agent.task_text import POLICY_TEXT_MAX_CHARS, TASK_MAX_CHARS, check_task

type Progress = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """One request for one verb: what is wanted, and who wants it."""

    args: dict[str, Any]
    progress: Progress
    via: str | None = None  # the surface it came through; None: this machine's own command line
    token: str | None = None  # of the lease it is made with

    @property
    def remote(self) -> bool:
        """Whether it comes from a distance, or asks to be treated so. It may move the arm only with a lease."""
        return self.via is not None or self.token is not None


class From(StrEnum):
    """From where a verb may be asked for."""

    ANYWHERE = "anywhere"
    LEASE = "lease"  # from a distance only with control
    HERE = "here"  # on this machine only


@dataclass(frozen=True)
class Verb:
    """What carries a request out, and what it takes to ask for it."""

    do: Callable[[Request], Awaitable[dict[str, Any]]]
    origin: From = From.ANYWHERE
    wants_arm: bool = False  # whatever else happens on this computer makes room first


def origin(args: dict[str, Any], progress: Progress) -> Request:
    """The request that these arguments are, with who makes it taken out of them."""
    args = dict(args)
    via, token = args.pop("via", None), args.pop("lease", None)
    for name, value in (("via", via), ("lease", token)):
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{name} must be a text; found {value!r}.")
    return Request(args, progress, via, token)


def only(args: dict[str, Any]) -> None:
    if args:
        raise BadInput(f"Unknown argument{'s' if len(args) > 1 else ''}: {', '.join(sorted(args))}.")


def episode(args: dict[str, Any]) -> int:
    episode = args.pop("episode", None)
    if not isinstance(episode, int) or isinstance(episode, bool) or episode < 0:
        raise BadInput(f"episode must be a number from 0; found {episode!r}.", "See `so-agent episodes list`.")
    return episode


def flag(args: dict[str, Any], name: str) -> bool:
    """Yes or no; no when it is not given."""
    value = args.pop(name, False)
    if not isinstance(value, bool):
        raise BadInput(f"{name} must be true or false; found {value!r}.")
    return value


def events(args: dict[str, Any]) -> tuple[int, bool]:
    """After which event, and whether to wait for more."""
    since, follow = args.pop("since", None), args.pop("follow", False)
    only(args)
    if since is not None and (not isinstance(since, int) or isinstance(since, bool) or since < 0):
        raise BadInput(f"since must be the number of an event, or null for all; found {since!r}.")
    if not isinstance(follow, bool):
        raise BadInput(f"follow must be true or false; found {follow!r}.")
    return since or 0, follow


def lease(args: dict[str, Any]) -> tuple[str, float, bool]:
    """Who wants control, for how long without a renewal, and whether from whoever has it."""
    owner, ttl_s, take_over = args.pop("owner", None), args.pop("ttl_s", None), args.pop("take_over", False)
    only(args)
    if not isinstance(owner, str):
        raise BadInput(f"owner must be a text that says who wants control; found {owner!r}.")
    if not isinstance(ttl_s, int | float) or isinstance(ttl_s, bool):
        raise BadInput(f"ttl_s must be a number of seconds; found {ttl_s!r}.")
    if not isinstance(take_over, bool):
        raise BadInput(f"take_over must be true or false; found {take_over!r}.")
    return owner, float(ttl_s), take_over


def token(args: dict[str, Any]) -> str:
    token = args.pop("token", None)
    only(args)
    if not isinstance(token, str):
        raise BadInput("token must be the text that lease.take answered.")
    return token


def recording(args: dict[str, Any], config: StationConfig) -> Plan:
    task = check_task(str(args.pop("task", "")))
    episodes = args.pop("episodes", 1)
    episode_s = args.pop("episode_s", None)
    reset_s = args.pop("reset_s", 5.0)
    only(args)
    if not isinstance(episodes, int) or isinstance(episodes, bool) or not 1 <= episodes <= 10_000:
        raise BadInput(f"--episodes must be 1 to 10000; found {episodes!r}.")
    longest = config.recording.max_episode_s
    if episode_s is None:
        if episodes > 1:
            raise BadInput("Several episodes need a length.", "Add --episode-s, e.g. --episode-s 20.")
        episode_s = longest
    if not isinstance(episode_s, int | float) or not 1 <= episode_s <= longest:
        raise BadInput(f"--episode-s must be 1 to {longest:g} (recording.max_episode_s); found {episode_s!r}.")
    if not isinstance(reset_s, int | float) or not 0 <= reset_s <= 3600:
        raise BadInput(f"--reset-s must be 0 to 3600; found {reset_s!r}.")
    return Plan(task, episodes, float(episode_s), float(reset_s), EpisodeSource.TELEOP)


def success(args: dict[str, Any]) -> bool | None:
    """The judgement of an episode; None: not judged."""
    judged = args.pop("success", None)
    if judged is not None and not isinstance(judged, bool):
        raise BadInput(f"success must be true, false or null; found {judged!r}.")
    return judged


def task(args: dict[str, Any], config: StationConfig) -> TaskPlan:
    """What a `task.start` request asks for. Raises BadInput with a sentence for each thing that is wrong."""
    name, duration_s, record = args.pop("policy", None), args.pop("duration_s", None), args.pop("record", False)
    unattended, text = args.pop("unattended", False), str(args.pop("task", ""))
    only(args)
    # A recorded text becomes part of a data set, and is held to the length that those agreed on.
    text = check_task(text, TASK_MAX_CHARS if record else POLICY_TEXT_MAX_CHARS)
    if name is not None and not isinstance(name, str):
        raise BadInput(f"policy must be a name; found {name!r}.", "See `so-agent policy list`.")
    longest = config.recording.max_episode_s
    if duration_s is not None and (not isinstance(duration_s, int | float) or not 1 <= duration_s <= 86_400):
        raise BadInput(f"--duration-s must be 1 to 86400; found {duration_s!r}.")
    if record and (duration_s or longest) > longest:
        raise BadInput(
            f"A recorded task may take {longest:g} s (recording.max_episode_s); found {duration_s:g}.",
            "Shorten --duration-s, or leave out --record.",
        )
    paths = config.paths
    folder = Library(paths.policies, paths.policy_in_use).find(name)
    return TaskPlan(text, folder.name, duration_s, bool(record), bool(unattended))
