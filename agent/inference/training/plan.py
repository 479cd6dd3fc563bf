"""What is to be learnt from what. Everything that can be known to fail is found here, before torch is imported."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.config import NAME_PATTERN, StationConfig
from agent.errors import BadInput
from agent.inference.bundle import Bundle
from agent.inference.checkpoint import (
    ACTION,
    NORMALIZER,
    PREPROCESSOR,
    STATE,
    STATISTICS,
)
from agent.inference.contents import read_json, tensors
from agent.inference.importer import sync
from agent.inference.training.folder import PLAN
from agent.messages import JOINTS

FORMAT: Final = 1

INFO: Final = Path("meta/info.json")
STATION: Final = Path("meta/so_agent.json")

ARMS: Final = frozenset({"so_follower", "so100_follower", "so101_follower"})
"""How lerobot and this agent call an SO arm in a dataset."""

HOLD_OUT_EVERY: Final = 10
HOLD_OUT_FROM: Final = 3
"""Of fewer episodes none is held out unless it is asked for: each is needed to learn from."""

MAX_STEPS: Final = 10_000_000
MAX_BATCH: Final = 4096

REPLACE: Final = "Record a new dataset with this station, or name another with --dataset."


class Method(StrEnum):
    LORA = "lora"  # small matrices beside the action expert's own, merged into it at the end
    EXPERT = "expert"  # SmolVLA's action expert; its vision-language model stays as it is
    FULL = "full"  # everything


class Statistics(StrEnum):
    KEEP = "keep"  # the policy's own mean and spread of the joints
    DATASET = "dataset"  # those of the dataset


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `plan.json` in the work folder holds. A training that goes on follows it to the letter."""

    format: int
    name: str  # of the bundle that it becomes
    policy: str
    policy_hash: str
    dataset: str
    steps: int
    method: Method
    batch: int
    rate: float | None  # None: lerobot's own for this policy
    seed: int
    statistics: Statistics
    cameras: dict[str, str]  # the policy's feature -> the dataset's
    episodes: tuple[int, ...]  # learnt from
    held_out: tuple[int, ...]  # only looked at, before and after

    @property
    def sentence(self) -> str:
        """For the description of what it becomes."""
        own = "" if self.statistics is Statistics.KEEP else ", statistics of the dataset"
        rate = "" if self.rate is None else f", rate {self.rate:g}"
        return (
            f"{self.policy} ({self.policy_hash}) fine-tuned on {len(self.episodes)} episodes of {self.dataset}: "
            f"{self.steps} steps of {self.batch}, {self.method}{rate}, seed {self.seed}{own}"
        )


@dataclass(frozen=True)
class Wish:
    """What the person who trains says about it. None: the default."""

    policy: str | None = None
    dataset: str | None = None
    steps: int | None = None
    name: str | None = None
    method: str | None = None
    batch: int | None = None
    rate: float | None = None
    seed: int | None = None
    statistics: str | None = None
    hold_out: int | None = None  # how many episodes


def work_folder(config: StationConfig, name: str) -> Path:
    return config.paths.state / "training" / name


def suggested_name(policy: str, dataset: str) -> str:
    return f"{policy}-{dataset}"[:63]


def make_plan(wish: Wish, bundle: Bundle, dataset: Path) -> Plan:
    """Raises BadInput for a dataset of another arm, without the policy's cameras, or at another rate; for a method that
    the policy does not have; for numbers out of range."""
    name = wish.name or suggested_name(bundle.manifest.name, dataset.name)
    if not re.fullmatch(NAME_PATTERN, name):
        raise BadInput(f"{name!r} cannot be a policy's name.", "Use lower case letters, digits, - and _: --name NAME.")
    steps = _within("--steps", wish.steps, 1, MAX_STEPS)
    batch = _within("--batch", 8 if wish.batch is None else wish.batch, 1, MAX_BATCH)
    if wish.rate is not None and not 0 < wish.rate < 1:
        raise BadInput(f"--rate {wish.rate:g} is no learning rate.", "Give one above 0 and below 1, such as 1e-4.")
    smolvla = bundle.manifest.type == "smolvla"
    method = _choice("--method", Method, wish.method, Method.EXPERT if smolvla else Method.FULL)
    if method is Method.EXPERT and not smolvla:
        raise BadInput(
            f"{bundle.manifest.name} is of the type {bundle.manifest.type}, which has no action expert.",
            "Give --method full.",
        )
    statistics = _choice("--statistics", Statistics, wish.statistics, Statistics.KEEP)
    info = _info(dataset)
    check_arm(dataset, info)
    if info["fps"] != bundle.manifest.fps:
        raise BadInput(
            f"The policy gives {bundle.manifest.fps} actions a second, {dataset.name} has {info['fps']} rows a second.",
            "Import the policy with the --fps that it was trained with, or name a dataset of its rate.",
        )
    cameras = _cameras(bundle, dataset, info)
    if statistics is Statistics.KEEP:
        check_scaling(bundle)
    seed = _within("--seed", 0 if wish.seed is None else wish.seed, 0, 2**31 - 1)
    episodes, held_out = split(int(info["total_episodes"]), wish.hold_out, seed)
    gone = deleted(dataset)
    if gone.issuperset(episodes):
        raise BadInput(
            f"All episodes of {dataset.name} to learn from are deleted.",
            "Restore some with `so-agent episodes restore`.",
        )
    return Plan(
        format=FORMAT,
        name=name,
        policy=bundle.manifest.name,
        policy_hash=bundle.hash,
        dataset=dataset.name,
        steps=steps,
        method=method,
        batch=batch,
        rate=wish.rate,
        seed=seed,
        statistics=statistics,
        cameras=cameras,
        episodes=tuple(number for number in episodes if number not in gone),
        held_out=tuple(number for number in held_out if number not in gone),
    )


def check_same(wish: Wish, plan: Plan) -> None:
    """Whether a training that goes on is the one that was begun. Raises BadInput."""
    begun = msgspec.structs.asdict(plan) | {"hold_out": len(plan.held_out)}
    for key, wanted in vars(wish).items():
        if wanted is not None and begun[key] != wanted:
            option = f"--{key.replace('_', '-')}"
            raise BadInput(
                f"{plan.name} was begun with {option} {begun[key]}, not {wanted}.",
                "Leave the option out to go on, or begin another with --name.",
            )


def read_plan(work: Path) -> Plan:
    """Raises BadInput when there is none, or one of another version."""
    path = work / PLAN
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError as error:
        raise BadInput(f"No training {work.name} was begun.", "Leave out --resume to begin it.") from error
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"Cannot read {path}: {error}.", f"Begin anew: remove {work}.") from error
    if plan.format != FORMAT:
        raise BadInput(f"{path} is of another version of the agent.", f"Begin anew: remove {work}.")
    return plan


def write_plan(work: Path, plan: Plan) -> None:
    """On the disk when it returns."""
    path = work / PLAN
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    sync(path)
    sync(work)


def split(episodes: int, hold_out: int | None, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which episodes are learnt from, and which are held out: one, drawn by the seed, of each of as many equal parts,
    so that early and late ones are among them, and every task where tasks take turns. Raises BadInput."""
    if hold_out is None:
        hold_out = -(-episodes // HOLD_OUT_EVERY) if episodes >= HOLD_OUT_FROM else 0
    if not 0 <= hold_out < episodes:
        raise BadInput(
            f"{hold_out} of {episodes} episodes cannot be held out: none would be left to learn from.",
            f"Give --hold-out from 0 to {episodes - 1}.",
        )
    dice = random.Random(seed)  # noqa: S311 - nothing secret
    bounds = [round(part * episodes / hold_out) for part in range(hold_out + 1)] if hold_out else []
    held = {dice.randrange(first, end) for first, end in pairwise(bounds)}
    return tuple(number for number in range(episodes) if number not in held), tuple(sorted(held))


def deleted(dataset: Path) -> set[int]:
    """Episodes that a person has deleted: they are hidden, and their numbers stay taken."""
    facts = [read_json(path) for path in (dataset / "meta" / "so_agent").glob("episode-*.json")]
    return {int(each["episode"]) for each in facts if each.get("deleted")}


def check_arm(dataset: Path, info: Mapping[str, Any]) -> None:
    """Raises BadInput unless state and action are the six joints of an SO arm, in this order."""
    robot = info.get("robot_type")
    if robot not in (None, *ARMS):
        raise BadInput(f"{dataset.name} was recorded with another arm: {robot}.", REPLACE)
    wanted = [f"{joint}.pos" for joint in JOINTS]
    for feature in (STATE, ACTION):
        about = info["features"].get(feature)
        if not isinstance(about, dict):
            raise BadInput(f"{dataset.name} has no {feature}.", REPLACE)
        names = about.get("names")
        if isinstance(names, dict):  # as lerobot wrote them once
            names = next(iter(names.values()), None)
        if names is not None and list(names) != wanted:
            raise BadInput(
                f"{dataset.name} was recorded with another arm: its {feature} is {', '.join(map(str, names))}.",
                f"An SO arm's is {', '.join(wanted)}. {REPLACE}",
            )
        if list(about.get("shape", ())) != [len(JOINTS)]:
            raise BadInput(
                f"{dataset.name} was recorded with another arm: its {feature} has shape {about.get('shape')}.", REPLACE
            )


def check_scaling(bundle: Bundle) -> None:
    """Raises BadInput when the policy scales its actions, but not those that it is taught.

    Inference needs only the way back to degrees. Taught unscaled, its outputs would be scaled twice.
    """
    for step in read_json(bundle.policy / PREPROCESSOR)["steps"]:
        if step["registry_name"] != NORMALIZER:
            continue
        settings = step.get("config", {})
        names = STATISTICS[settings.get("norm_map", {}).get("ACTION", "IDENTITY")]
        found = tensors(bundle.policy / step["state_file"]) if "state_file" in step else {}
        known = ACTION in settings.get("features", {}) and all(f"{ACTION}.{name}" in found for name in names)
        if names and not known:
            raise BadInput(
                f"{bundle.manifest.name} can give actions, but has no statistics to be taught some.",
                "Give --statistics dataset.",
            )


def _info(dataset: Path) -> dict[str, Any]:
    if not (dataset / INFO).is_file():
        others = sorted(path.parent.parent.name for path in dataset.parent.glob(f"*/{INFO}"))
        raise BadInput(
            f"There is no dataset {dataset.name} in {dataset.parent}.",
            f"There are {', '.join(others)}." if others else "Record one with `so-agent record start`.",
        )
    info = read_json(dataset / INFO)
    for key, kind in (("total_episodes", int), ("fps", int | float), ("features", dict)):
        if not isinstance(info.get(key), kind):
            raise BadInput(f"{dataset / INFO} has no {key}.", "Is it a LeRobotDataset v3?")
    if not str(info.get("codebase_version", "")).startswith("v3."):
        raise BadInput(
            f"{dataset.name} is a LeRobotDataset {info.get('codebase_version')}, not v3.",
            "Convert it with lerobot's own tool.",
        )
    if info["total_episodes"] < 1:
        raise BadInput(f"{dataset.name} holds no episodes.", "Record some with `so-agent record start`.")
    return info


def _cameras(bundle: Bundle, dataset: Path, info: Mapping[str, Any]) -> dict[str, str]:
    """The policy's features -> the dataset's: by view where the dataset says which is which, else by name."""
    pictures = [name for name, about in info["features"].items() if about.get("dtype") in ("video", "image")]
    views = read_json(dataset / STATION).get("views") if (dataset / STATION).is_file() else None
    found = {}
    for view, feature in bundle.manifest.cameras.items():
        there = str(views.get(view)) if isinstance(views, dict) else feature
        if there not in pictures:
            wanted = f"the view {view}" if isinstance(views, dict) else feature
            raise BadInput(
                f"The policy looks at {wanted}, and {dataset.name} was recorded without it.",
                f"Its cameras are {_listed(views, pictures)}. Import the policy again with another --camera.",
            )
        found[feature] = there
        _check_size(bundle, feature, dataset, info["features"][there])
    return found


def _check_size(bundle: Bundle, feature: str, dataset: Path, about: Mapping[str, Any]) -> None:
    config = read_json(bundle.policy / "config.json")
    if config.get("resize_imgs_with_padding") is not None:
        return  # it resizes by itself
    height, width = config["input_features"][feature]["shape"][1:]
    if list(about["shape"])[:2] != [height, width]:
        raise BadInput(
            f"The policy's pictures of {feature} are {width}x{height}, {dataset.name} holds "
            f"{about['shape'][1]}x{about['shape'][0]}.",
            REPLACE,
        )


def _listed(views: object, pictures: list[str]) -> str:
    if isinstance(views, dict):
        return ", ".join(f"{feature} ({view})" for view, feature in views.items()) or "none"
    return ", ".join(pictures) or "none"


def _within(option: str, value: int | None, least: int, most: int) -> int:
    if value is None:
        raise BadInput(f"{option} is missing.", f"Give a number from {least} to {most}.")
    if not least <= value <= most:
        raise BadInput(f"{option} {value} is not possible.", f"Give a number from {least} to {most}.")
    return value


def _choice[T: StrEnum](option: str, kind: type[T], value: str | None, default: T) -> T:
    if value is None:
        return default
    if value not in kind:
        raise BadInput(f"There is no {option} {value}.", f"Give {' or '.join(kind)}.")
    return kind(value)
