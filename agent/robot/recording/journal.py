"""The journal of one episode: a folder that holds it while it is recorded, readable after any kill.

JOURNAL/20261124T185412.123-4711/
    header.json     what is recorded, written before the first row
    rows.log        one record a row: length, CRC-32, msgpack; a torn tail is recognised and ignored
    front.mp4       one fragmented video a camera, a fragment a frame (see `video.py`)
    finished.json   written when the episode was finished on purpose: it will be committed whatever happens
"""

import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.messages import EpisodeSource, Joints, Limit
from agent.robot.recording.durable import Disk

HEADER: Final = "header.json"
ROWS: Final = "rows.log"
FINISHED: Final = "finished.json"

FRAME: Final = struct.Struct("<II")
"""Before each record: its length in bytes and the CRC-32 of its content."""

MAX_RECORD_BYTES: Final = 1 << 20
"""A length above this is garbage, not a record: a row takes about 400 bytes."""


class View(msgspec.Struct, frozen=True):
    """One camera of the episode, in the order of the views."""

    camera: str
    name: str  # OBS_IMAGE_1 ...
    width: int
    height: int
    fps: int

    @property
    def key(self) -> str:
        """The feature of the dataset."""
        return f"observation.images.{self.camera}"


class Header(msgspec.Struct, frozen=True):
    """What is recorded, and by whom."""

    id: str
    dataset: str
    task: str
    source: EpisodeSource
    fps: int
    started_at: str  # ISO 8601, UTC
    views: tuple[View, ...]
    vcodec: str
    crf: int
    robot: str
    station: str
    agent_version: str
    config_hash: str


class SeenFrame(msgspec.Struct, frozen=True, array_like=True):
    """The frame that one camera contributed to a row."""

    seq: int
    capture_ns: int
    repeat: bool


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One row of the episode. `seen` is in the order of the header's views."""

    tick: int
    due_ns: int
    read_ns: int
    source: str
    measured: Joints
    sent: Joints
    limits: tuple[Limit, ...]
    missing: int  # rows that should have been between the previous one and this
    seen: tuple[SeenFrame, ...]


class Finished(msgspec.Struct, frozen=True):
    """The episode ended on purpose, and may be committed. `salvaged`: not where the person wanted it to end."""

    success: bool | None
    reason: str
    salvaged: bool = False


@dataclass(frozen=True)
class Episode:
    """All there is to commit. `videos` and `image_stats` are per camera; every video has `len(rows)` frames."""

    header: Header
    rows: Sequence[Row]
    videos: dict[str, Path]
    image_stats: dict[str, dict[str, Any]]
    finished: Finished


def new_id(wall_s: float) -> str:
    """Sorts by time; the process keeps two recorders apart."""
    moment = datetime.fromtimestamp(wall_s, UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}-{os.getpid()}"


ID_PATTERN: Final = re.compile(r"\d{8}T\d{6}\.\d{3}-\d+")


class RowLog:
    """Appends rows; each one is with the kernel when `append` returns, so only power loss can cost it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._encoder = msgspec.msgpack.Encoder()

    def append(self, row: Row) -> None:
        body = self._encoder.encode(row)
        record = FRAME.pack(len(body), zlib.crc32(body)) + body
        written = os.write(self._fd, record)
        if written != len(record):  # the disk is full: the tail is torn, and will be ignored
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        os.close(self._fd)


def read_rows(path: Path) -> list[Row]:
    """All complete rows, up to the first torn or damaged record."""
    data = path.read_bytes() if path.exists() else b""
    decoder = msgspec.msgpack.Decoder(Row)
    rows: list[Row] = []
    offset = 0
    while offset + FRAME.size <= len(data):
        length, checksum = FRAME.unpack_from(data, offset)
        body = data[offset + FRAME.size : offset + FRAME.size + length]
        if length > MAX_RECORD_BYTES or len(body) < length or zlib.crc32(body) != checksum:
            break
        try:
            rows.append(decoder.decode(body))
        except msgspec.DecodeError:  # zero bytes where the power went: length 0 with checksum 0 is "valid"
            break
        offset += FRAME.size + length
    return rows


class Journal:
    """One episode's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, parent: Path, header: Header, disk: Disk) -> "Journal":
        journal = cls(parent / header.id)
        disk.make_folder(journal.folder)
        disk.replace(journal.folder / HEADER, msgspec.json.encode(header))
        return journal

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def rows_path(self) -> Path:
        return self.folder / ROWS

    def video_path(self, camera: str) -> Path:
        return self.folder / f"{camera}.mp4"

    def header(self) -> Header | None:
        """None when the recorder died before the header was there: then there are no rows either."""
        try:
            return msgspec.json.decode((self.folder / HEADER).read_bytes(), type=Header)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def finished(self) -> Finished | None:
        try:
            return msgspec.json.decode((self.folder / FINISHED).read_bytes(), type=Finished)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def mark_finished(self, finished: Finished, disk: Disk) -> None:
        """From here on the episode is committed, by this process or by the next."""
        disk.replace(self.folder / FINISHED, msgspec.json.encode(finished))

    def rows(self) -> list[Row]:
        return read_rows(self.rows_path)


def journals(parent: Path) -> list[Journal]:
    """Every episode that is not in a dataset yet, oldest first."""
    if not parent.is_dir():
        return []
    return [Journal(folder) for folder in sorted(parent.iterdir()) if ID_PATTERN.fullmatch(folder.name)]
