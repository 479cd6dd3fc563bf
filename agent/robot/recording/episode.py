"""The episode that is being recorded: ticks and frames go in, journal and videos come out."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.clock import NS_PER_S
from agent.messages import Tick
from agent.robot.recording.align import Aligned
from agent.robot.recording.durable import Disk
from agent.robot.recording.journal import Episode, Finished, Header, Journal, Row, RowLog, SeenFrame
from agent.robot.recording.video import VideoWriter, encoder_config

SYNC_EVERY_S: Final = 0.5
"""Between two fdatasyncs; with their own duration it keeps what power loss can cost below one second."""

MAX_GAP_S: Final = 0.25
"""A longer hole in the ticks ends the episode before it: at 240 degrees a second an arm turns 60 degrees in it."""

MAX_MISSING_PCT: Final = 5.0
"""More rows missing than this, spread over the episode, and it is rejected."""

LOST_PERIODS: Final = 1.5
"""A repeated frame older than this many of its camera's periods means that one was lost. A younger one does not: a
camera of 15 fps shows every frame in two of 30 rows. Both are marked; only lost frames reject an episode."""

BALLAST_BYTES: Final = 4 << 20
"""Set aside in every journal and freed when it ends: enough to commit an episode on a disk that it filled."""


@dataclass(frozen=True)
class TickGrid:
    """Which ticks are rows: the control loop may run at a multiple of the recording's rate."""

    fps: int
    control_hz: int

    def position(self, due_ns: int, origin_ns: int) -> int | None:
        """Number of the row this tick is, counted from the tick due at `origin_ns`; None between two rows."""
        exact = (due_ns - origin_ns) * self.fps / NS_PER_S
        nearest = round(exact)
        # Half a tick either way; at control_hz == fps every tick is a row.
        return nearest if abs(exact - nearest) * self.control_hz < 0.5 * self.fps + 1e-6 else None


class Syncer(threading.Thread):
    """Flushes the journal's files to the disk in the background: fsync may take seconds on a busy SD card."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(name="journal-sync", daemon=True)
        self.error: OSError | None = None
        self._paths = paths
        self._halt = threading.Event()

    def run(self) -> None:
        files: dict[Path, int] = {}
        try:
            while not self._halt.wait(SYNC_EVERY_S):
                for path in self._paths:
                    if path not in files and path.exists():
                        files[path] = os.open(path, os.O_RDONLY)
                for fd in files.values():
                    os.fdatasync(fd)
        except OSError as error:
            self.error = error
        finally:
            for fd in files.values():
                os.close(fd)

    def stop(self) -> None:
        self._halt.set()
        self.join()


@dataclass
class Counters:
    rows: int = 0
    missing: int = 0
    repeats: dict[str, int] = field(default_factory=dict)  # all rows that show an older frame again
    missed: dict[str, int] = field(default_factory=dict)  # those of them for which a frame was lost


class Recording:
    """One running episode. Owned by the recorder's main thread; never blocks on an encoder."""

    def __init__(self, journal: Journal, header: Header, disk: Disk) -> None:
        self.header = header
        self.journal = journal
        zeros = {view.camera: 0 for view in header.views}
        self.counters = Counters(repeats=dict(zeros), missed=dict(zeros))
        self._lost_ns = {view.camera: round(LOST_PERIODS * NS_PER_S / view.fps) for view in header.views}
        self._seq = -1
        self.problem: str | None = None
        """Why the episode cannot go on; what is recorded so far is whole."""
        self._disk = disk
        self._log = RowLog(journal.rows_path)
        self._ballast = journal.folder / "ballast"
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        encoder = encoder_config(header.vcodec, header.crf)
        self._videos = {
            view.camera: VideoWriter(journal.video_path(view.camera), encoder, header.fps, view.width, view.height)
            for view in header.views
        }
        self._syncer = Syncer([journal.rows_path, *(video.path for video in self._videos.values())])
        for thread in (*self._videos.values(), self._syncer):
            thread.start()

    @property
    def seconds(self) -> float:
        return self.counters.rows / self.header.fps

    def add(self, aligned: Aligned[Any], missing: int) -> None:
        """Journal one row. Sets `problem` when the row could not be taken; nothing after it may be."""
        if self.problem:
            return
        tick: Tick = aligned.tick
        if missing / self.header.fps > MAX_GAP_S:
            self.problem = f"no usable tick for {missing / self.header.fps:.2f} s"
            return
        if tick.seq < self._seq:
            self.problem = "the arm process was restarted"  # its count of ticks began anew: time was lost
            return
        self._seq = tick.seq
        if tick.measured is None or tick.sent is None:
            raise ValueError("a row needs measured and sent joints")
        for camera, video in self._videos.items():
            if not video.put(aligned.seen[camera].shot.frame):
                self.problem = (
                    f"the encoder of {camera} failed: {video.error}"
                    if video.error
                    else f"the encoder of {camera} fell behind"
                )
                return
        seen = tuple(
            SeenFrame(item.shot.seq, item.shot.capture_ns, item.repeat)
            for item in (aligned.seen[view.camera] for view in self.header.views)
        )
        source, limits = str(tick.source), tick.limits
        row = Row(tick.seq, tick.due_ns, tick.read_ns, source, tick.measured, tick.sent, limits, missing, seen)
        try:
            self._log.append(row)
        except OSError as error:
            self.problem = f"the journal cannot be written: {error.strerror}"
            return
        self.counters.rows += 1
        self.counters.missing += missing
        for camera, item in aligned.seen.items():
            self.counters.repeats[camera] += item.repeat
            self.counters.missed[camera] += item.repeat and item.age_ns > self._lost_ns[camera]

    def check(self) -> None:
        """Notice what went wrong in the background."""
        failed = [f"the encoder of {name} failed: {video.error}" for name, video in self._videos.items() if video.error]
        if self._syncer.error:
            failed.append(f"the journal cannot be written: {self._syncer.error.strerror}")
        if failed and not self.problem:
            self.problem = failed[0]

    def verdict(self, max_repeat_pct: float) -> str | None:
        """Why this episode must not become part of a dataset; None when it may."""
        rows = self.counters.rows
        for camera, missed in self.counters.missed.items():
            if missed > rows * max_repeat_pct / 100:
                return (
                    f"camera {camera} repeated an old frame in {missed} of {rows} rows "
                    f"({100 * missed / rows:.0f}%; {max_repeat_pct:g}% are allowed)"
                )
        missing = self.counters.missing
        if missing > (rows + missing) * MAX_MISSING_PCT / 100:
            return f"{missing} of {rows + missing} rows are missing ({MAX_MISSING_PCT:g}% are allowed)"
        return None

    def close(self) -> None:
        """No more rows. Blocks until the encoders are done; call it off the main thread."""
        self._ballast.unlink(missing_ok=True)
        self._syncer.stop()
        self._log.close()
        for video in self._videos.values():
            video.finish()

    def episode(self, finished: Finished) -> Episode | None:
        """What was recorded, without decoding anything; None when a video is not whole and needs a rebuild."""
        rows = self.journal.rows()
        if any(video.error or video.frames != len(rows) for video in self._videos.values()):
            return None
        return Episode(
            self.header,
            rows,
            {camera: video.path for camera, video in self._videos.items()},
            {camera: video.stats.result() for camera, video in self._videos.items()},
            finished,
        )
