"""After any crash: finish what was begun, keep what was recorded, remove what is left over.

Runs at every start of the recorder, and by command. Needs the recorder's lock.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import av
import msgspec

from agent.config import StationConfig, load
from agent.errors import AgentError
from agent.robot.recording.commit import (
    MIN_ROWS,
    STAGE_PREFIX,
    apply,
    read_redo,
    redo_is_current,
    stage,
)
from agent.robot.recording.durable import Disk, Lock
from agent.robot.recording.journal import Episode, Finished, Header, Journal, journals
from agent.robot.recording.video import copy_frames, count_frames, cut_torn_tail, decoded_stats
from agent.telemetry import logger


@dataclass
class Repaired:
    """What a repair did. Episodes are dataset indices; `kept` could not be committed yet, with the reason."""

    finished: list[int] = field(default_factory=list)
    salvaged: list[int] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.finished or self.salvaged or self.discarded or self.kept)


def lock(config: StationConfig) -> Lock:
    """Held by whoever writes into the station's datasets. Raises Refused naming the holder."""
    return Lock(config.paths.state / "recorder.lock", "The recorder")


def repair(config: StationConfig, disk: Disk | None = None) -> Repaired:
    """Bring journal and datasets in order. Interrupted, it can simply be run again."""
    disk = disk or Disk()
    result = Repaired()
    finish_commits(config, disk, result)
    for journal in journals(config.paths.journal):
        try:
            settle(journal, config, disk, result)
        except (OSError, AgentError, av.FFmpegError) as error:
            # One episode that cannot be committed (disk full, another robot's dataset) must not keep the others.
            result.kept[journal.id] = str(error)
            logger.error("episode kept in the journal", journal=journal.id, problem=str(error))
    return result


def finish_commits(config: StationConfig, disk: Disk, result: Repaired) -> None:
    """Complete commits that reached their redo record; undo those that did not."""
    for parent in (config.paths.journal, *config.paths.datasets.glob("*")):
        for gone in parent.glob(".gone-*"):
            disk.remove_folder(gone)
    for folder in sorted(config.paths.datasets.glob(f"*/{STAGE_PREFIX}*")):
        redo = read_redo(folder)
        if redo is not None and redo_is_current(folder, redo, folder.parent):
            result.finished.append(complete(folder, config.paths.journal / redo.journal, disk))
        else:
            disk.remove_folder(folder)


def complete(folder: Path, journal: Path, disk: Disk) -> int:
    """From redo record to done. The journal goes before the record: whoever finds neither has nothing to do."""
    episode = apply(folder, folder.parent, disk)
    disk.remove_folder(journal)
    disk.remove_folder(folder)
    return episode


def settle(journal: Journal, config: StationConfig, disk: Disk, result: Repaired) -> None:
    """Commit or remove one journal that no recorder is writing any more."""
    header = journal.header()
    finished = journal.finished()
    if header is None or (finished is None and config.recording.on_crash == "discard"):
        result.discarded.append(journal.id)
        disk.remove_folder(journal.folder)
        return
    if finished is None:
        finished = Finished(success=None, reason="the recorder was killed", salvaged=True)
    episode = rebuild(journal, header, finished)
    if episode is None:
        result.discarded.append(journal.id)
        disk.remove_folder(journal.folder)
        return
    dataset = config.paths.datasets / header.dataset
    index = complete(stage(episode, dataset, disk), journal.folder, disk)
    (result.salvaged if finished.salvaged else result.finished).append(index)
    logger.info("episode recovered", episode=index, rows=len(episode.rows), salvaged=finished.salvaged)


def rebuild(journal: Journal, header: Header, finished: Finished) -> Episode | None:
    """The longest beginning that is complete: all rows up to the first that lacks a camera's frame.

    None when there are fewer rows than an episode needs.
    """
    rows = journal.rows()
    videos = {view.camera: journal.video_path(view.camera) for view in header.views}
    frames: dict[str, int] = {}
    for camera, path in videos.items():
        if path.exists():
            cut_torn_tail(path)
        frames[camera] = count_frames(path) if path.exists() else 0
    length = min([len(rows), *frames.values()])
    if length < MIN_ROWS:
        return None
    if length < len(rows):
        lost = f"; its last {len(rows) - length} rows were lost with the recorder"
        finished = msgspec.structs.replace(finished, reason=finished.reason + lost)
    stats = {}
    for camera, path in videos.items():
        cut = path.with_name(f"{camera}.cut.mp4")
        # Also when no frame is surplus: a fragmented file has no index, which random access needs.
        copy_frames(path, cut, length)
        if count_frames(cut) != length:
            raise OSError(f"{cut} holds {count_frames(cut)} frames instead of {length}")
        videos[camera] = cut
        stats[camera] = decoded_stats(cut, length, header.fps).result()
    return Episode(header, rows[:length], videos, stats, finished)


def main(argv: list[str]) -> int:
    """`python -m agent.robot.recording.repair CONFIG`: repair a station whose agent does not run."""
    try:
        config = load(Path(argv[1]))
        held = lock(config)
        done = repair(config)
        held.release()
    except AgentError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    sys.stdout.write(
        f"committed {len(done.finished)}, salvaged {len(done.salvaged)}, removed {len(done.discarded)}, "
        f"kept {len(done.kept)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
