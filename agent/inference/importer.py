"""Turn a checkpoint folder of lerobot into a bundle: copied beside its place, verified, tried, then renamed into it.

A bundle that can be seen is whole, whenever the process or the power dies.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agent.config import NAME_PATTERN
from agent.errors import BadInput
from agent.inference import checkpoint
from agent.inference.bundle import (
    FORMAT,
    MANIFEST,
    MAX_FPS,
    POLICY,
    VLM,
    Bundle,
    Manifest,
    check_cameras,
    missing_vlm_files,
    open_bundle,
    sha256,
    write_manifest,
)
from agent.inference.contents import MIB, check, files_in, read_json, refuse_pickles
from agent.inference.statistics import give_statistics

VLM_FILES: Final = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What is taken of a vision-language model. Its weights are in the policy's."""

VOCABULARIES: Final = frozenset({"tokenizer.json", "added_tokens.json", "vocab.json"})
"""Here "/usr/" is a word, not a path."""

STAGING: Final = ".importing-"
SPARE_BYTES: Final = 256 * MIB
"""Left free on the disk: the station records there too."""


@dataclass(frozen=True)
class Wish:
    """What the person who imports a policy says about it."""

    name: str | None = None  # None: after the folder
    fps: int = 30  # actions a second, as in the episodes it was trained on
    cameras: Mapping[str, str] | None = None  # view -> feature; None: in the policy's order
    vlm: Path | None = None  # configuration and tokenizer of its vision-language model; None: look for them
    statistics: Path | None = None  # a dataset, or its stats.json; None: the policy's own
    description: str = ""
    tasks: tuple[str, ...] = ()


def import_checkpoint(
    source: Path, policies: Path, wish: Wish, trial: Callable[[Bundle], None] | None = None
) -> Bundle:
    """A new bundle below `policies`. `trial` is called with the finished bundle before it gets its name.

    Raises BadInput when the folder is no policy for an SO arm, could run code, or lacks something; what `trial` raises.
    Nothing is left behind then.
    """
    source = _folder(source)
    refuse_pickles(source)
    found = checkpoint.read(source, statistics=wish.statistics is None)
    name = wish.name or suggested_name(source)
    _check_name(name, policies)
    if not 1 <= wish.fps <= MAX_FPS:
        raise BadInput(f"{wish.fps} actions a second are not possible.", f"Give --fps from 1 to {MAX_FPS}.")
    cameras = dict(wish.cameras) if wish.cameras else views(found.cameras)
    check_cameras(found, cameras)
    vlm = _find_vlm(found, wish.vlm)
    taken = [source / file for file in found.files] + ([vlm / file for file in _vlm_files(vlm)] if vlm else [])
    for path in taken:
        check(path)
    with _staging(policies, name, sum(path.stat().st_size for path in taken)) as staged:
        _copy(found, vlm, staged)
        if wish.statistics:
            give_statistics(staged / POLICY, wish.statistics)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            type=found.type,
            fps=wish.fps,
            chunk_size=found.chunk_size,
            cameras=cameras,
            files={path.relative_to(staged).as_posix(): sha256(path) for path in sorted(files_in(staged))},
            description=wish.description,
            tasks=wish.tasks,
        )
        write_manifest(staged, manifest)
        bundle = open_bundle(staged)
        if trial:
            trial(bundle)
        _publish(staged, policies / name)
    return replace(bundle, folder=policies / name)


def views(cameras: tuple[str, ...]) -> dict[str, str]:
    """The policy's cameras in its own order: the first looks from above or the front, the second from the wrist."""
    return {f"OBS_IMAGE_{number}": feature for number, feature in enumerate(cameras, start=1)}


def suggested_name(source: Path) -> str:
    """A name after the folder; of lerobot's RUN/checkpoints/STEP/pretrained_model, run and step."""
    parts = [source.name]
    match source.parts:
        case [*_, run, "checkpoints", step, "pretrained_model"]:
            parts = [run, step]
    return re.sub(r"[^a-z0-9_]+", "-", "-".join(parts).lower()).strip("-_")[:63]


def _folder(source: Path) -> Path:
    if not source.is_dir():
        raise BadInput(f"There is no folder {source}.", "Give the folder that holds config.json and model.safetensors.")
    if (source / MANIFEST).is_file():
        raise BadInput(
            f"{source} is a policy of so-agent already, and no lerobot checkpoint.",
            "Copy the folder as it is into `policies/` below the station's state_dir.",
        )
    return source.resolve()


def _check_name(name: str, policies: Path) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise BadInput(f"{name!r} cannot be a policy's name.", "Use lower case letters, digits, - and _: --name NAME.")
    if (policies / name).exists():
        raise BadInput(
            f"There is a policy {name} already.", f"Give another --name, or `so-agent policy remove {name}` first."
        )


def _find_vlm(found: checkpoint.Checkpoint, named: Path | None) -> Path | None:
    """The folder of the policy's vision-language model: as named, beside the weights, or where it was trained."""
    if not (found.vlm or found.speaks):
        return None
    places = [named] if named else [found.folder / VLM]
    if not named and found.vlm and os.path.isabs(found.vlm):
        places.append(Path(found.vlm))
    for place in places:
        if place.is_dir() and not missing_vlm_files(found, place):
            refuse_pickles(place)
            return place
    model = found.vlm or "its vision-language model"
    missing = ", ".join(missing_vlm_files(found, named or found.folder / VLM))
    hub = f" (with a network: hf download {model} --include '*.json' '*.txt' --local-dir {VLM})"
    raise BadInput(
        f"{named or found.folder / VLM} lacks {missing} of {model}, without which the policy cannot read its task.",
        f"Copy these files of that model into a folder and name it with --vlm{'' if '/' not in model else hub}.",
    )


@contextmanager
def _staging(policies: Path, name: str, size: int) -> Iterator[Path]:
    """A folder beside the bundle's place, gone afterwards unless it was renamed."""
    staged = policies / f"{STAGING}{name}-{os.getpid()}"
    try:
        policies.mkdir(parents=True, exist_ok=True)
        for old in policies.glob(f"{STAGING}*"):
            if not Path(f"/proc/{old.name.rpartition('-')[2]}").exists():
                shutil.rmtree(old)  # of an import that was killed
        if (free := shutil.disk_usage(policies).free) < size + SPARE_BYTES:
            raise BadInput(
                f"The policy has {size / MIB:,.0f} MB, but only {free / MIB:,.0f} MB are free in {policies}.",
                "Free disk space, or set another state_dir.",
            )
        staged.mkdir()
        yield staged
    except OSError as error:
        raise BadInput(
            f"Cannot write to {error.filename or policies}: {error.strerror or error}.",
            "Make the folder writable for this user, free disk space, or set another state_dir.",
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _copy(found: checkpoint.Checkpoint, vlm: Path | None, staged: Path) -> None:
    (staged / POLICY).mkdir()
    for name in dict.fromkeys(found.files):
        if name.endswith(".json"):
            _write_json(staged / POLICY / name, _portable(_CLEAN[name](read_json(found.folder / name))))
        else:
            shutil.copyfile(found.folder / name, staged / POLICY / name)
    if vlm is None:
        return
    (staged / VLM).mkdir()
    for name in _vlm_files(vlm):
        if name.endswith(".json") and name not in VOCABULARIES:
            values = read_json(vlm / name)
            values.pop("auto_map", None)  # names Python files of the model's author
            _write_json(staged / VLM / name, _portable(values))
        else:
            shutil.copyfile(vlm / name, staged / VLM / name)


def _vlm_files(vlm: Path) -> list[str]:
    return [name for name in VLM_FILES if (vlm / name).is_file()]


def _clean_config(values: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "vlm_model_name": VLM,
        "pretrained_path": None,
        "pretrained_backbone_weights": None,
        "device": "cpu",
        "push_to_hub": False,
        "compile_model": False,
    }
    return values | {key: value for key, value in changes.items() if key in values}


def _clean_steps(values: dict[str, Any]) -> dict[str, Any]:
    changes = {"device": "cpu", "tokenizer_name": VLM}
    steps = [
        {
            **step,
            "config": {
                key: changes.get(key, value) if value is not None else None
                for key, value in step.get("config", {}).items()
            },
        }
        for step in values["steps"]
    ]
    return values | {"steps": steps}


_CLEAN: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    checkpoint.CONFIG: _clean_config,
    checkpoint.PREPROCESSOR: _clean_steps,
    checkpoint.POSTPROCESSOR: _clean_steps,
}


def _portable(value: Any) -> Any:
    """Of every path on the machine that trained the policy, only the last part stays."""
    match value:
        case dict():
            return {key: _portable(inner) for key, inner in value.items()}
        case list():
            return [_portable(inner) for inner in value]
        case str() if re.match(r"(/|~/|[A-Za-z]:\\)[^\n]*[\w.-]$", value):
            return re.split(r"[/\\]", value)[-1]
        case _:
            return value


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")


def _publish(staged: Path, target: Path) -> None:
    """On the disk first, then in sight."""
    for path in (*files_in(staged), *(folder for folder in staged.iterdir() if folder.is_dir()), staged):
        sync(path)
    if target.exists():  # appeared while this one was made; rename would replace an empty folder
        raise BadInput(f"There is a policy {target.name} already.", "Give another --name.")
    staged.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """A file's data, or a folder's names, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
