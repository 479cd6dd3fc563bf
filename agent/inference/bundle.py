"""A policy as this station keeps it: one folder with everything that is needed to run it, and nothing that runs.

manifest.json       what it is, and the SHA-256 of every other file
policy/             lerobot's checkpoint: config, safetensors, pre- and post-processor with statistics
vlm/                config and tokenizer of the vision-language model, for policies that have one
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

MANIFEST: Final = "manifest.json"
POLICY: Final = "policy"
VLM: Final = "vlm"
FORMAT: Final = 1


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
