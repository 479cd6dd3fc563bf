"""An adapter on disk, whole or not there: renamed into place when its bytes have reached the disk.

adapter.json                 what it is (`Manifest`), and the SHA-256 of the other files
adapter.sha256               the SHA-256 of adapter.json, as sha256sum writes it
adapter_model.safetensors    fp32, under peft's names; with method `expert`, under the policy's own
adapter_config.json          peft's own, for LoRA: `PeftModel.from_pretrained(policy, FOLDER)` opens it

The server keeps one for each round (run_folder.py), a station that of a finished run in brief.candidates/RUN/.
`open_adapter(folder)` verifies it; `policy_from(adapter, base, ...)` makes a bundle of base and adapter that runs like
any other policy. Reading one needs neither torch nor lerobot.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import BadInput
from agent.fl.layout import PREFIX, Layout, Shape, layout
from agent.fl.statistics import as_dataset, of_policy
from agent.inference.bundle import Bundle, sha256
from agent.inference.checkpoint import ADAPTER, WEIGHTS
from agent.inference.contents import MIB, tensors
from agent.inference.importer import Wish, import_checkpoint, sync
from agent.inference.statistics import give_statistics
from agent.inference.training.plan import Method

MANIFEST: Final = "adapter.json"
SEAL: Final = "adapter.sha256"
PEFT: Final = "adapter_config.json"
FORMAT: Final = 1
STAGING: Final = ".new-"
MAX_MANIFEST_BYTES: Final = MIB

AGAIN: Final = "Take it again from the federation."

type Arrays = dict[str, NDArray[np.float32]]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `adapter.json` holds."""

    format: int
    run: str
    round: int
    rounds: int  # of the whole run
    policy: str  # name of the base, where it was made
    policy_hash: str  # of the base's manifest: only to this policy does it fit
    method: Method
    rank: int
    alpha: int
    targets: tuple[str, ...]  # none: lerobot's own
    statistics: dict[str, list[float]]  # by which base and adapter scale the joints
    made_at: str
    metrics: dict[str, float]  # what was known of it when it was written
    files: dict[str, str]  # SHA-256

    @property
    def shape(self) -> Shape:
        return Shape(self.method, self.rank, self.alpha, self.targets)


@dataclass(frozen=True)
class Adapter:
    """An adapter whose files were found to be what its manifest says."""

    folder: Path
    manifest: Manifest
    hash: str  # twelve hex digits of the SHA-256 of adapter.json

    def arrays(self) -> Arrays:
        from safetensors.numpy import load_file

        found: Arrays = load_file(self.folder / ADAPTER)
        return found


def write_adapter(
    folder: Path,
    arrays: Mapping[str, NDArray[np.float32]],
    shape: Shape,
    *,
    run: str,
    number: int,
    rounds: int,
    policy: str,
    policy_hash: str,
    statistics: Mapping[str, list[float]],
    metrics: Mapping[str, float] | None = None,
) -> Adapter:
    """In place of whatever lies there. On the disk when this returns. Raises OSError."""
    from safetensors.numpy import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f"{STAGING}{folder.name}-*"):
        shutil.rmtree(old)  # of a process that was killed
    staged = folder.with_name(f"{STAGING}{folder.name}-{os.getpid()}")
    staged.mkdir()
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}, staged / ADAPTER)
    if shape.method is Method.LORA:
        (staged / PEFT).write_text(json.dumps(_peft(shape), indent=2) + "\n", encoding="utf-8")
    manifest = Manifest(
        format=FORMAT,
        run=run,
        round=number,
        rounds=rounds,
        policy=policy,
        policy_hash=policy_hash,
        method=shape.method,
        rank=shape.rank,
        alpha=shape.alpha,
        targets=shape.targets,
        statistics=dict(statistics),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=dict(metrics or {}),
        files={path.name: sha256(path) for path in sorted(staged.iterdir())},
    )
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    (staged / MANIFEST).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (staged / SEAL).write_text(f"{digest}  {MANIFEST}\n", encoding="ascii")
    for path in staged.iterdir():
        sync(path)
    sync(staged)
    if folder.exists():
        gone = folder.with_name(f"{STAGING}{folder.name}-old")
        folder.rename(gone)
        shutil.rmtree(gone)
    staged.rename(folder)
    sync(folder.parent)
    return Adapter(folder, manifest, digest[:12])


def open_adapter(folder: Path) -> Adapter:
    """Verify every byte. Raises BadInput for a file that is missing, changed or too much, and for another format."""
    try:
        if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise BadInput(f"{folder / MANIFEST} has more than {MAX_MANIFEST_BYTES // MIB} MB.", AGAIN)
        data = (folder / MANIFEST).read_bytes()
        seal = (folder / SEAL).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{folder} is no adapter: {error}.", AGAIN) from error
    digest = hashlib.sha256(data).hexdigest()
    if seal != [digest, MANIFEST]:
        raise BadInput(f"{folder / MANIFEST} was changed: its SHA-256 differs.", AGAIN)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BadInput(f"{folder / MANIFEST} cannot be read: {error}.", AGAIN) from error
    if manifest.format != FORMAT:
        raise BadInput(f"{folder} is an adapter of format {manifest.format}, not {FORMAT}.", "Update the agent.")
    wanted = {ADAPTER, PEFT} if manifest.method is Method.LORA else {ADAPTER}
    found = {path.name for path in folder.iterdir()} - {MANIFEST, SEAL}
    if set(manifest.files) != wanted or found != wanted:
        raise BadInput(f"{folder} holds {', '.join(sorted(found))} instead of {', '.join(sorted(wanted))}.", AGAIN)
    for name, expected in manifest.files.items():
        if (folder / name).is_symlink() or sha256(folder / name) != expected:
            raise BadInput(f"{folder / name} is not the file that was written: its SHA-256 differs.", AGAIN)
    return Adapter(folder, manifest, digest[:12])


def check_fits(adapter: Adapter, base: Bundle) -> Layout:
    """Raises BadInput unless it belongs to this policy, array by array."""
    manifest = adapter.manifest
    if base.hash != manifest.policy_hash:
        raise BadInput(
            f"The adapter of {manifest.run} belongs to {manifest.policy} {manifest.policy_hash}, "
            f"not to {base.manifest.name} {base.hash}.",
            "Choose the base policy that the run was begun with.",
        )
    wanted = layout(base, manifest.shape)
    found = {name: each.shape for name, each in tensors(adapter.folder / ADAPTER).items()}
    if found != dict(wanted.arrays):
        raise BadInput(f"The arrays of {adapter.folder} are not those of {base.manifest.name}.", AGAIN)
    return wanted


def policy_from(
    adapter: Adapter, base: Bundle, policies: Path, name: str, trial: Callable[[Bundle], None] | None = None
) -> Bundle:
    """A new bundle below `policies`: the base with the adapter merged into its weights, as large and as fast as before.

    Raises BadInput when it does not fit, or the name is taken; what `trial` raises. Nothing is left behind then.
    """
    check_fits(adapter, base)
    manifest = adapter.manifest
    policies.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=policies, prefix=".merging-") as work:
        merged = Path(work) / name
        merged.mkdir()
        for path in base.policy.iterdir():
            if path.name != WEIGHTS:
                shutil.copyfile(path, merged / path.name)
        _merge(adapter, base, merged / WEIGHTS)
        if manifest.statistics and manifest.statistics != of_policy(base):
            (Path(work) / "stats.json").write_text(json.dumps(as_dataset(manifest.statistics)), encoding="utf-8")
            give_statistics(merged, Path(work) / "stats.json")
        old = base.manifest
        wish = Wish(
            name=name, fps=old.fps, cameras=old.cameras, vlm=base.vlm, tasks=old.tasks,
            description=f"{old.name} ({base.hash}) with the adapter of round {manifest.round} of the federated run "
            f"{manifest.run} ({adapter.hash})",
        )  # fmt: skip
        return import_checkpoint(merged, policies, wish, trial)


def _merge(adapter: Adapter, base: Bundle, target: Path) -> None:
    """Weights that have no adapter are copied as they are, whatever their type."""
    import torch
    from safetensors.torch import load_file, save_file

    weights: dict[str, Any] = load_file(base.policy / WEIGHTS)
    learnt: dict[str, Any] = load_file(adapter.folder / ADAPTER)
    shape = adapter.manifest.shape
    if shape.method is Method.EXPERT:
        weights |= {name: value.to(weights[name].dtype) for name, value in learnt.items()}
    else:
        for name in [key for key in learnt if key.endswith(".lora_A.weight")]:
            module = name.removesuffix(".lora_A.weight")
            own = f"{module.removeprefix(PREFIX)}.weight"
            added = shape.scale * (learnt[f"{module}.lora_B.weight"] @ learnt[name])
            weights[own] = (weights[own].to(torch.float32) + added).to(weights[own].dtype)
    save_file(weights, target)


def _peft(shape: Shape) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": shape.pattern,
        "inference_mode": True,
    }
