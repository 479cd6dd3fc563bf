"""The recorder process: one loop that hears the arm, the cameras and the commands, and never waits for a disk.

Encoders, fsync and commits have threads of their own. The loop answers every command at once.
"""

import contextlib
import os
import signal
import sys
import time
from importlib.metadata import version
from types import FrameType
from typing import Any, Final

import av
import cv2
import msgspec
import torch

from agent.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock
from agent.config import StationConfig
from agent.errors import AgentError, BadInput, DeviceFault, Refused
from agent.messages import (
    ArmReport,
    CameraReport,
    DiscardEpisode,
    FinishEpisode,
    FrameHeader,
    HideEpisode,
    MarkEpisode,
    Problem,
    RecorderCommand,
    RecorderQuery,
    RecorderReport,
    RecorderShutdown,
    RecorderState,
    StartEpisode,
    Tick,
)
from agent.robot.recording import free_space
from agent.robot.recording.align import Aligner, Shot
from agent.robot.recording.commit import MIN_ROWS, check_fits
from agent.robot.recording.committer import Committer
from agent.robot.recording.durable import Disk, Lock, cannot_write
from agent.robot.recording.episode import Recording, TickGrid
from agent.robot.recording.index import DatasetIndex
from agent.robot.recording.journal import Finished, Header, Journal, View, new_id
from agent.robot.recording.repair import lock
from agent.task_text import check_task
from agent.telemetry import logger
from agent.transport import CommandServer, Publisher, Subscriber

REPORT_EVERY_S: Final = 0.5
LOOP_S: Final = 0.01
"""The loop sleeps this long unless a command comes; frames and ticks wait in their sockets (room for 64 each).
Waking for each of them would cost four cameras 150 wake-ups a second."""

ARM_SILENT_S: Final = 1.0
"""Without a tick for this long no episode starts, and a running one ends."""


def main(config: StationConfig) -> None:
    """Entry point of the process. Leaves with the exit code of the error that stopped it."""
    torch.set_num_threads(1)  # lerobot's statistics must not take the cores that the control loop needs,
    cv2.setNumThreads(1)  # nor must colour conversion
    quieten_encoders()
    try:
        held = lock(config)
    except AgentError as error:
        logger.error("recorder cannot start", problem=str(error))
        sys.exit(int(error.exit_code))
    Recorder(config, held).run()


def quieten_encoders() -> None:
    """Their banners would come with every episode."""
    # lerobot gives libav its own log callback back after each file it probes; this level holds for that one.
    av.logging.set_libav_level(av.logging.ERROR)
    os.environ.setdefault("SVT_LOG", "1")  # errors only


class Recorder:
    """State of the process; everything but jobs runs in one thread."""

    def __init__(self, config: StationConfig, held: Lock, clock: Clock | None = None) -> None:
        self._config = config
        self._held = held
        self._clock = clock or SystemClock()
        self._disk = Disk()
        self._index = DatasetIndex(config.paths.dataset)
        self._grid = TickGrid(config.recording.fps, config.robot.control_hz)
        self._aligner: Aligner[Any] = Aligner(
            {name: round(camera.stale_ms * NS_PER_MS) for name, camera in config.cameras.items()}
        )
        self._recording: Recording | None = None
        self._max_rows = 0
        self._origin_ns: int | None = None
        self._last_position = -1
        self._started_ns = 0
        self._ending: tuple[Finished | None, int] | None = None  # how, and the last tick that belongs to it
        self._last_tick_ns = 0
        self._committer = Committer(config, self._disk, self._index, self._clock, self._on_change)
        self._leaving = False
        self._changed = True

    # --- the loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        paths = self._config.paths
        paths.run.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, self._on_signal)
        self._publisher = Publisher(paths.recorder_pub)
        self._server: CommandServer[RecorderCommand] = CommandServer(paths.recorder_ctl, RecorderCommand)
        self._arm = Subscriber(paths.arm_pub)
        self._cameras = {name: Subscriber(paths.camera_pub(name)) for name in self._config.cameras}
        self._committer.repair()
        report_at_ns = 0
        while not (self._leaving and self._recording is None and not self._committer.busy):
            self._answer()
            self._hear_cameras()
            self._hear_arm()
            self._write_rows()
            self._watch()
            now_ns = self._clock.now_ns()
            if self._changed or now_ns >= report_at_ns:
                report_at_ns = now_ns + round(REPORT_EVERY_S * NS_PER_S)
                self._changed = False
                self._publisher.send(self.report())
        self._committer.close()
        self._publisher.send(self.report())
        self._server.close()
        self._publisher.close()
        for subscriber in (self._arm, *self._cameras.values()):
            subscriber.close()
        self._held.release()

    def _on_change(self) -> None:
        self._changed = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._leaving = True

    def _hear_cameras(self) -> None:
        for name, subscriber in self._cameras.items():
            camera = self._config.cameras[name]
            for parts in subscriber.drain():
                message = _FROM_CAMERA.decode(parts[0].buffer)
                if isinstance(message, FrameHeader) and (message.width, message.height) == (
                    camera.width,
                    camera.height,
                ):
                    self._aligner.add_frame(name, Shot(message.seq, message.capture_ns, parts[1]))

    def _hear_arm(self) -> None:
        for parts in self._arm.drain():
            message = _FROM_ARM.decode(parts[0].buffer)
            if not isinstance(message, Tick):
                continue
            self._last_tick_ns = message.read_ns
            if self._recording is None or message.read_ns < self._started_ns:
                continue
            if self._ending is not None and message.read_ns > self._ending[1]:
                continue
            if message.measured is not None and message.sent is not None and self._position(message) is not None:
                self._aligner.add_tick(message)

    def _position(self, tick: Tick) -> int | None:
        return 0 if self._origin_ns is None else self._grid.position(tick.due_ns, self._origin_ns)

    def _write_rows(self) -> None:
        recording = self._recording
        if recording is None:
            return
        for aligned in self._aligner.rows(self._clock.now_ns()):
            if self._origin_ns is None:
                self._origin_ns = aligned.tick.due_ns
            position = self._position(aligned.tick)
            if position is None or position <= self._last_position:
                continue
            recording.add(aligned, position - self._last_position - 1)
            self._last_position = position
            if recording.counters.rows >= self._max_rows and self._ending is None:
                self._end(Finished(None, f"reached {recording.seconds:g} s"), aligned.tick.read_ns)
                self._aligner.restart()
                break

    def _watch(self) -> None:
        """Everything that ends an episode by itself."""
        now_ns = self._clock.now_ns()
        recording = self._recording
        if recording is None:
            self._committer.retry_if_due()
            return
        recording.check()
        if recording.problem:
            self._stop_short(recording.problem)
        elif self._ending is not None:
            if not self._aligner.waiting:
                self._close()
        elif self._leaving:
            self._end(Finished(None, "the agent stopped"), now_ns)
        elif now_ns - max(self._last_tick_ns, self._started_ns) > ARM_SILENT_S * NS_PER_S:
            self._stop_short(f"the arm sent no tick for {ARM_SILENT_S:g} s")
        elif free_space.critical(self._config):
            self._end(Finished(None, "the disk is nearly full"), now_ns)

    def _stop_short(self, reason: str) -> None:
        """The episode cannot go on: what is there is kept or thrown away like after a crash."""
        logger.warning("episode ended early", reason=reason)
        self._aligner.restart()
        keep = self._config.recording.on_crash == "salvage"
        if self._ending is None:
            self._end(Finished(None, reason, salvaged=True) if keep else None, 0, reason)
        self._close()

    # --- commands -------------------------------------------------------------------------------------

    def _answer(self) -> None:
        timeout_s = LOOP_S
        while (received := self._server.receive(timeout_s)) is not None:
            timeout_s = 0.0
            envelope, command = received
            try:
                self._obey(command)
                self._server.reply(envelope, self.report())
            except AgentError as error:
                self._server.reply(envelope, Problem(error.code, error.message, error.hint))
            except OSError as error:  # a command that needs the disk, and the disk refuses
                sentence = cannot_write(self._config.paths.state, error)
                self._server.reply(envelope, Problem(sentence.code, sentence.message, sentence.hint))
            self._changed = True

    def _obey(self, command: RecorderCommand) -> None:
        match command:
            case StartEpisode():
                self._start(command)
            case FinishEpisode(success=success):
                self._running()
                self._end(Finished(success, "finished"), self._clock.now_ns())
            case DiscardEpisode(cause=cause):
                self._running()
                self._aligner.restart()
                self._end(None, 0, cause or "discarded")
                self._close()
            case MarkEpisode(episode=episode, success=success):
                self._index.mark(episode, success)
            case HideEpisode(episode=episode, deleted=True):
                self._index.delete(episode)
            case HideEpisode(episode=episode):
                self._index.restore(episode)
            case RecorderShutdown():
                self._leaving = True
            case RecorderQuery():
                pass

    def _running(self) -> Recording:
        if self._recording is None or self._ending is not None:
            raise Refused("No episode is being recorded.", "Start one with `so-agent record start`.")
        return self._recording

    def _start(self, command: StartEpisode) -> None:
        """Begin an episode, or raise with the sentence that says why not."""
        task = check_task(command.task)
        if self._committer.repairing:
            raise Refused("The recorder is still starting.", "Try again in a few seconds.")
        if self._recording is not None:
            raise Refused("An episode is already being recorded.", "Finish or discard it first.")
        if self._leaving:
            raise Refused("The recorder is shutting down.", "Start the agent again.")
        free_space.require(self._config)
        now_ns = self._clock.now_ns()
        if now_ns - self._last_tick_ns > ARM_SILENT_S * NS_PER_S:
            raise DeviceFault("The arm sends no ticks.", "See `so-agent status` for the arm's state.")
        for name, camera in self._config.cameras.items():
            if camera.width % 2 or camera.height % 2:
                raise BadInput(
                    f"The camera {name} has {camera.width}x{camera.height} pixels; video needs even numbers.",
                    f"Change cameras.{name}.width and height.",
                )
            newest_ns = self._aligner.newest_ns(name)
            if newest_ns is None:
                raise DeviceFault(
                    f"The camera {name} has not delivered a frame yet.", "See `so-agent status` for its state."
                )
            if now_ns - newest_ns > camera.stall_s * NS_PER_S:
                age_s = (now_ns - newest_ns) / NS_PER_S
                raise DeviceFault(
                    f"The camera {name} has delivered no new frame for {age_s:.1f} s.",
                    "See `so-agent status` for its state.",
                )
        header = self._header(task, command)
        check_fits(self._config.paths.dataset, header)
        if command.max_s is not None and command.max_s <= 0:
            raise BadInput(f"An episode of {command.max_s:g} s has no frames.", "Give more than 0 seconds.")
        folder = self._config.paths.journal
        try:
            self._config.paths.dataset.mkdir(parents=True, exist_ok=True)
            probe = self._config.paths.dataset / ".gone-probe"
            probe.mkdir(exist_ok=True)
            probe.rmdir()
            journal = Journal.create(folder, header, self._disk)
            self._recording = Recording(journal, header, self._disk)
        except OSError as error:
            raise cannot_write(self._config.paths.state, error) from error
        longest_s = min(command.max_s or self._config.recording.max_episode_s, self._config.recording.max_episode_s)
        self._max_rows = max(MIN_ROWS, round(longest_s * header.fps))
        self._aligner.restart()
        self._origin_ns, self._last_position, self._ending = None, -1, None
        self._started_ns = self._clock.now_ns()
        self._committer.reason = "recording"
        logger.info("episode started", journal=header.id, task=task)

    def _header(self, task: str, command: StartEpisode) -> Header:
        config = self._config
        wall_s = self._clock.wall_s()
        return Header(
            id=new_id(wall_s),
            dataset=config.recording.dataset,
            task=task,
            source=command.source,
            fps=config.recording.fps,
            started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s)),
            views=tuple(
                View(name, view, config.cameras[name].width, config.cameras[name].height, config.cameras[name].fps)
                for view, name in config.views().items()
            ),
            vcodec=config.recording.vcodec,
            crf=config.recording.crf,
            robot=f"{config.robot.model}_follower",
            station=config.station,
            agent_version=version("so-agent"),
            config_hash=config.hash,
        )

    # --- ending an episode ----------------------------------------------------------------------------

    def _end(self, finished: Finished | None, last_ns: int, reason: str = "") -> None:
        """From now on only ticks up to `last_ns` belong to the episode. None throws it away."""
        recording = self._recording
        assert recording is not None  # noqa: S101 - callers have checked; for the type checker
        self._ending = finished, last_ns
        self._committer.reason = reason or (finished.reason if finished else "")
        self._stop_ns = self._clock.now_ns()
        if finished is not None:
            # On the disk before anyone is told: whatever happens to this process now, the episode is committed.
            with contextlib.suppress(OSError):  # disk full: `close` frees the ballast and the commit comes first
                recording.journal.mark_finished(finished, self._disk)

    def _close(self) -> None:
        recording, ending = self._recording, self._ending
        assert recording is not None  # noqa: S101
        assert ending is not None  # noqa: S101
        self._recording, self._ending = None, None
        self._committer.commit(recording, ending[0], self._committer.reason, self._stop_ns)
        self._changed = True

    # --- reporting ------------------------------------------------------------------------------------

    @property
    def state(self) -> RecorderState:
        if self._committer.repairing:
            return RecorderState.STARTING
        if self._recording is not None and self._ending is None:
            return RecorderState.RECORDING
        return RecorderState.COMMITTING if self._committer.busy or self._recording is not None else RecorderState.READY

    def report(self) -> RecorderReport:
        recording = self._recording
        return RecorderReport(
            at_ns=self._clock.now_ns(),
            pid=os.getpid(),
            state=self.state,
            reason=self._committer.reason,
            task=recording.header.task if recording else None,
            frames=recording.counters.rows if recording else 0,
            seconds=recording.seconds if recording else 0.0,
            repeats=dict(recording.counters.repeats) if recording else {},
            episodes=self._committer.episodes,
            salvaged=self._committer.salvaged,
            free_bytes=free_space.free_bytes(self._config),
            dataset=str(self._config.paths.dataset),
            last=self._committer.last,
        )


_FROM_ARM: msgspec.msgpack.Decoder[Tick | ArmReport] = msgspec.msgpack.Decoder(Tick | ArmReport)
_FROM_CAMERA: msgspec.msgpack.Decoder[FrameHeader | CameraReport] = msgspec.msgpack.Decoder(FrameHeader | CameraReport)
