"""Finished recordings become episodes, one after the other, in a thread that may wait for the disk."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import av

from agent.clock import NS_PER_S, Clock
from agent.config import StationConfig
from agent.errors import AgentError
from agent.messages import EpisodeResult
from agent.robot.recording.commit import MIN_ROWS, stage
from agent.robot.recording.durable import Disk, cannot_write
from agent.robot.recording.episode import Recording
from agent.robot.recording.index import DatasetIndex
from agent.robot.recording.journal import Finished, journals
from agent.robot.recording.repair import Repaired, complete, finish_commits, repair, settle
from agent.telemetry import logger

RETRY_KEPT_S: Final = 30.0
"""Between two attempts to commit what could not be committed, e.g. because the disk was full."""


class Committer:
    """`on_change` is called, from that thread, when there is something new to report."""

    def __init__(
        self, config: StationConfig, disk: Disk, index: DatasetIndex, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self.repairing = True  # until what an earlier process left behind is in order
        self.last: EpisodeResult | None = None
        self.episodes = 0  # in the dataset
        self.salvaged = 0
        self.reason = "starting"  # for people; the recorder says here what it does, too
        self._config = config
        self._disk = disk
        self._index = index
        self._clock = clock
        self._on_change = on_change
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._waiting = 0
        self._lock = threading.Lock()
        self._kept: dict[str, str] = {}  # journals that could not be committed, and why
        self._retry_at_ns = 0

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    def repair(self) -> None:
        """Put in order what an earlier process left behind."""
        self._submit(self._repair)

    def commit(self, recording: Recording, finished: Finished | None, reason: str, stop_ns: int) -> None:
        """Make it an episode; None throws it away."""
        self._submit(lambda: self._commit(recording, finished, reason, stop_ns))

    def retry_if_due(self) -> None:
        """Try again what could not be committed."""
        if self._kept and not self.busy and self._clock.now_ns() >= self._retry_at_ns:
            self._submit(self._retry)

    def close(self) -> None:
        """When everything is done."""
        self._thread.shutdown()

    def _submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._waiting += 1
        self._thread.submit(job).add_done_callback(self._done)

    def _done(self, job: Future[None]) -> None:
        with self._lock:
            self._waiting -= 1
        self._on_change()
        if (error := job.exception()) is not None:
            logger.error("recorder job failed", problem=repr(error))
            self.reason = f"internal error: {error}"

    # --- in the thread ---

    def _repair(self) -> None:
        repaired = Repaired()
        try:
            repaired = repair(self._config, self._disk)
        except OSError as error:
            self.reason = str(cannot_write(self._config.paths.state, error))
            logger.error("repair failed", problem=self.reason)
        self._took_in(repaired)
        self.repairing = False
        if not repaired.kept and self.reason == "starting":
            self.reason = ""

    def _retry(self) -> None:
        repaired = Repaired()
        for journal in journals(self._config.paths.journal):
            if journal.id in self._kept:
                try:
                    settle(journal, self._config, self._disk, repaired)
                except (OSError, AgentError, av.FFmpegError) as error:
                    repaired.kept[journal.id] = str(error)
        self._took_in(repaired)

    def _took_in(self, repaired: Repaired) -> None:
        if repaired:
            logger.info(
                "repaired", finished=repaired.finished, salvaged=repaired.salvaged, discarded=len(repaired.discarded),
                kept=list(repaired.kept),
            )  # fmt: skip
        self.salvaged += len(repaired.salvaged)
        self._kept = repaired.kept
        if self._kept:
            self.reason = f"{len(self._kept)} episodes wait in the journal: {next(iter(self._kept.values()))}"
        self._retry_at_ns = self._clock.now_ns() + round(RETRY_KEPT_S * NS_PER_S)
        self.episodes = self._index.count()

    def _commit(self, recording: Recording, finished: Finished | None, reason: str, stop_ns: int) -> None:
        recording.close()
        index: int | None = None
        outcome = "discarded"
        if finished is not None:
            rejected = (
                f"it has only {recording.counters.rows} rows"
                if recording.counters.rows < MIN_ROWS
                else recording.verdict(self._config.recording.max_repeat_pct)
            )
            if rejected:
                outcome, reason = "rejected", rejected
            else:
                outcome, reason, index = self._into_dataset(recording, finished)
        if outcome in ("discarded", "rejected") and recording.journal.id not in self._kept:
            self._disk.remove_folder(recording.journal.folder)
        seconds = (self._clock.now_ns() - stop_ns) / NS_PER_S if index is not None else None
        self.episodes = self._index.count()
        self.last = EpisodeResult(
            index, recording.header.task, recording.counters.rows, outcome, reason, dict(recording.counters.repeats),
            seconds,
        )  # fmt: skip
        logger.info("episode ended", outcome=outcome, reason=reason, episode=index, rows=recording.counters.rows,
                    stop_to_readable_s=seconds)  # fmt: skip
        self.reason = reason if outcome == "rejected" or self._kept else ""

    def _into_dataset(self, recording: Recording, finished: Finished) -> tuple[str, str, int | None]:
        """Outcome, reason and index in the dataset. An episode that cannot be committed now stays in the journal."""
        journal = recording.journal
        try:
            if journal.finished() is None:
                journal.mark_finished(finished, self._disk)
            episode = recording.episode(finished)
            if episode is not None:
                index = complete(stage(episode, self._config.paths.dataset, self._disk), journal.folder, self._disk)
            else:
                repaired = Repaired()
                settle(journal, self._config, self._disk, repaired)
                [index] = repaired.salvaged or repaired.finished
        except (OSError, AgentError, av.FFmpegError) as error:
            finish_commits(self._config, self._disk, Repaired())
            self._kept = {**self._kept, journal.id: str(error)}
            self._retry_at_ns = self._clock.now_ns() + round(RETRY_KEPT_S * NS_PER_S)
            return "rejected", f"kept in the journal, not committed yet: {error}", None
        return ("salvaged" if finished.salvaged else "committed"), finished.reason, index
