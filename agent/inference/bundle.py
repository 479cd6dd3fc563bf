"""A policy as this station keeps it: one folder with everything that is needed to run it, and nothing that runs.

manifest.json       what it is, and the SHA-256 of every other file
manifest.sha256     the SHA-256 of manifest.json, as sha256sum writes it
policy/             lerobot's checkpoint: config, safetensors, pre- and post-processor with statistics
vlm/                config and tokenizer of the vision-language model, for policies that have one

Opening a bundle needs neither torch nor lerobot.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agent.config import NAME_PATTERN
from agent.errors import BadInput
from agent.inference import checkpoint
from agent.inference.contents import MIB, check, files_in

MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
POLICY: Final = "policy"
VLM: Final = "vlm"
FORMAT: Final = 1

VIEW_PATTERN: Final = r"^OBS_IMAGE_[1-9]$"

MAX_FPS: Final = 100
"""The fastest rate at which episodes are recorded."""

MAX_MANIFEST_BYTES: Final = MIB

AGAIN: Final = "Remove it with `so-agent policy remove` and import it again."


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `manifest.json` holds."""

    format: int
    name: str
    type: str  # lerobot's name of the policy: smolvla, act, ...
    fps: int  # actions a second
    chunk_size: int
    cameras: dict[str, str]  # view (OBS_IMAGE_1) -> the policy's own feature name
    files: dict[str, str]  # path in the bundle -> SHA-256
    description: str = ""
    tasks: tuple[str, ...] = ()  # texts it was trained on, where known


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found to be what its manifest says."""

    folder: Path
    manifest: Manifest
    hash: str  # twelve hex digits of the SHA-256 of manifest.json

    @property
    def policy(self) -> Path:
        return self.folder / POLICY

    @property
    def vlm(self) -> Path | None:
        folder = self.folder / VLM
        return folder if folder.is_dir() else None


def open_bundle(folder: Path) -> Bundle:
    """Verify every byte of a bundle, then that it is a policy for an SO arm.

    Raises BadInput: a file changed, missing, too much, a link or a pickle; a format of another version; a policy
    for another robot.
    """
    manifest, digest = read_manifest(folder)
    _check_listing(folder, manifest)
    for name, expected in manifest.files.items():
        if sha256(folder / name) != expected:
            raise BadInput(f"{folder / name} is not the file that was imported: its SHA-256 differs.", AGAIN)
    for name in manifest.files:
        check(folder / name)
    bundle = Bundle(folder, manifest, digest[:12])
    found = checkpoint.read(bundle.policy)
    if (found.type, found.chunk_size) != (manifest.type, manifest.chunk_size):
        raise BadInput(
            f"{folder / MANIFEST} speaks of {manifest.type} with {manifest.chunk_size} actions a chunk, "
            f"the policy is {found.type} with {found.chunk_size}.",
            AGAIN,
        )
    check_cameras(found, manifest.cameras)
    check_vlm(found, bundle.vlm)
    return bundle


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle and its SHA-256, without a look at the files that it lists. Raises BadInput."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadInput(f"{path} has more than {MAX_MANIFEST_BYTES // MIB} MB.", AGAIN)
        data = path.read_bytes()
        seal = (folder / SEAL).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{folder} is not a policy bundle: {error}.", "Make one with `so-agent policy import`."
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if seal != [digest, MANIFEST]:
        raise BadInput(f"{path} was changed after the import: its SHA-256 differs.", AGAIN)
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version != FORMAT:
            raise BadInput(
                f"{folder} is a bundle of format {version}; this agent knows format {FORMAT}.",
                "Update the agent." if version > FORMAT else "Import the policy again.",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BadInput(f"{path} cannot be read: {error}.", AGAIN) from error
    if not re.fullmatch(NAME_PATTERN, manifest.name) or not 1 <= manifest.fps <= MAX_FPS:
        raise BadInput(f"{path} names an impossible name or rate.", AGAIN)
    return manifest, digest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal a bundle. `manifest.files` must be complete."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    (folder / MANIFEST).write_bytes(data)
    (folder / SEAL).write_text(f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n", encoding="ascii")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_cameras(found: checkpoint.Checkpoint, cameras: dict[str, str]) -> None:
    """Whether a mapping of views names the policy's cameras. Raises BadInput."""
    known = f"The policy's cameras are {', '.join(found.cameras)}."
    for view, feature in cameras.items():
        if not re.fullmatch(VIEW_PATTERN, view):
            raise BadInput(f"{view!r} is not a view.", "Views are OBS_IMAGE_1 to OBS_IMAGE_9, as in the configuration.")
        if feature not in found.cameras:
            raise BadInput(f"The policy has no camera {feature!r}.", known)
    if len(set(cameras.values())) != len(cameras):
        raise BadInput("Two views are given to the same camera of the policy.", known)
    missing = [name for name in found.cameras if name not in cameras.values()]
    if missing and (found.every_camera or not cameras):
        raise BadInput(f"No view is given to {', '.join(missing)}, and {found.type} needs it.", known)


def check_vlm(found: checkpoint.Checkpoint, folder: Path | None) -> None:
    """Whether what the policy reads its task with is there. Raises BadInput."""
    if missing := missing_vlm_files(found, folder):
        where = f"{folder} has no" if folder else "The bundle lacks the"
        raise BadInput(f"{where} {', '.join(missing)} of the policy's vision-language model.", AGAIN)


def missing_vlm_files(found: checkpoint.Checkpoint, folder: Path | None) -> list[str]:
    """The files that the policy's vision-language model needs and a folder (None: no folder) lacks."""
    if not (found.vlm or found.speaks):
        return []
    wanted = ["tokenizer.json", "tokenizer_config.json"]
    if found.vlm:
        wanted[:0] = ["config.json"]
    missing = [name for name in wanted if folder is None or not (folder / name).is_file()]
    either = ("processor_config.json", "preprocessor_config.json")
    if found.vlm and (folder is None or not any((folder / name).is_file() for name in either)):
        missing.append(" or ".join(either))
    return missing


class _Version(msgspec.Struct):
    format: int


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """The files of the folder are those of the manifest, each directly in policy/ or vlm/."""
    for name in manifest.files:
        where, _, file = name.partition("/")
        if where not in (POLICY, VLM) or not file or not _PLAIN.fullmatch(file):
            raise BadInput(f"{folder / MANIFEST} lists {name!r}, which is no place in a bundle.", AGAIN)
    found = {path.relative_to(folder).as_posix() for path in files_in(folder)} - {MANIFEST, SEAL}
    if missing := sorted(set(manifest.files) - found):
        raise BadInput(f"{folder} lacks {', '.join(missing)}.", AGAIN)
    if extra := sorted(found - set(manifest.files)):
        raise BadInput(f"{folder} holds {', '.join(extra)}, which was not imported.", f"Remove it. {AGAIN}")


_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
"""Names without separators, hidden files or anything that a shell or a terminal would take for more than a name."""
