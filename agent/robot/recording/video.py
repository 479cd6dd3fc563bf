"""One camera's video, encoded while it is recorded.

The file is a fragmented MP4 with a fragment a frame, so that a kill costs at most the frame being written. Closed
properly it becomes an ordinary MP4 in place (FFmpeg's `hybrid_fragmented`): the journal's file is the dataset's file,
and committing a ten-minute episode takes no longer than committing a short one.
"""

import contextlib
import os
import queue
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av
import cv2
import numpy as np
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.compute_stats import RunningQuantileStats, auto_downsample_height_width

GOP: Final = 2
"""lerobot's default: training reads single frames at random, so every second one is a key frame."""

QUEUE_S: Final = 2.0
"""Frames that may wait for the encoder. More delay than this will not be caught up with."""

STATS_EVERY_ROWS: Final = 10
"""Frames sampled for the image statistics: 3 a second. lerobot samples about as many of a one-minute episode; each
sample costs 5 ms of histograms."""

MUX_OPTIONS: Final = {"movflags": "frag_every_frame+hybrid_fragmented", "flush_packets": "1"}

type Image = np.ndarray[Any, np.dtype[np.uint8]]
"""Height x width x 3, RGB."""


def encoder_config(vcodec: str, crf: int) -> RGBEncoderConfig:
    """lerobot's own encoder settings, so that `info.json` records them as it expects."""
    if vcodec == "libsvtav1":
        # Without pred-struct=1 (low delay) SVT-AV1 holds back several frames, which a kill would lose. It goes in
        # when the stream is opened: RGBEncoderConfig writes `svtav1-params` itself.
        return RGBEncoderConfig(vcodec=vcodec, crf=crf, g=GOP)
    # Measured at 640x480 on one core: ultrafast 4 ms a frame, superfast 10 ms and twice the size.
    return RGBEncoderConfig(vcodec=vcodec, crf=crf, g=GOP, preset="ultrafast", extra_options={"tune": "zerolatency"})


class ImageStats:
    """Running statistics of some of an episode's frames, in lerobot's form."""

    def __init__(self) -> None:
        self._running = RunningQuantileStats()
        self._images = 0

    def add(self, image: Image) -> None:
        small = auto_downsample_height_width(image.transpose(2, 0, 1))
        self._running.update(small.transpose(1, 2, 0).reshape(-1, 3))
        self._images += 1

    def result(self) -> dict[str, Any]:
        """Per channel, scaled to [0, 1], as `compute_episode_stats` gives them; `count` is in images."""
        stats = {key: value.reshape(-1, 1, 1) / 255.0 for key, value in self._running.get_statistics().items()}
        stats["count"] = np.array([self._images])
        return stats


class VideoWriter(threading.Thread):
    """Encodes what is put into it, in a thread of its own: libavcodec works without the GIL."""

    def __init__(self, path: Path, config: RGBEncoderConfig, fps: int, width: int, height: int) -> None:
        super().__init__(name=f"encode-{path.stem}", daemon=True)
        self.path = path
        self.frames = 0
        self.error: Exception | None = None
        self.stats = ImageStats()
        self._config = config
        self._fps = fps
        self._size = (width, height)
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(8, round(QUEUE_S * fps)))

    def put(self, pixels: Any) -> bool:
        """Queue one frame (anything with the buffer protocol). False when the encoder has fallen behind or failed."""
        if self.error is not None:
            return False
        try:
            self._queue.put_nowait(pixels)
        except queue.Full:
            return False
        return True

    def finish(self) -> None:
        """No more frames. Blocks until everything queued is encoded and the file is closed."""
        self._queue.put(None)
        self.join()

    def run(self) -> None:
        try:
            self._encode()
        except (OSError, av.FFmpegError, ValueError, cv2.error) as error:
            # ValueError: a buffer of the wrong size.
            self.error = error
            while self._queue.get() is not None:  # whoever finishes must not block on a full queue
                pass

    def _encode(self) -> None:
        width, height = self._size
        with av.open(str(self.path), "w", format="mp4", options=MUX_OPTIONS) as container:
            options = self._config.get_codec_options(1, as_strings=True)
            if self._config.vcodec == "libsvtav1":
                options["svtav1-params"] += ":pred-struct=1"
            stream: Any = container.add_stream(self._config.vcodec, self._fps, options=options)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, self._fps)
            while (pixels := self._queue.get()) is not None:
                image = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
                # OpenCV makes the encoder's colours in 0.5 ms with its copy, PyAV in 3 ms; they differ by 2 of 255.
                planes: Any = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
                frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
                frame.pts = self.frames
                for packet in stream.encode(frame):
                    container.mux(packet)
                if self.frames % STATS_EVERY_ROWS == 0:
                    self.stats.add(image)
                self.frames += 1
            for packet in stream.encode():
                container.mux(packet)


def _boxes(path: Path, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Boxes of an MP4 from `start` on that lie completely in the file: type, start, end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while start + 8 <= size:
            file.seek(start)
            header = file.read(16)
            length, kind = struct.unpack_from(">I4s", header)
            if length == 1 and len(header) == 16:
                (length,) = struct.unpack_from(">Q", header, 8)
            if length < 8 or start + length > size:
                return
            yield kind, start, start + length
            start += length


def cut_torn_tail(path: Path) -> None:
    """Shorten the file to its last complete fragment, so that no demuxer has to guess."""
    boxes = list(_boxes(path))
    kinds = [kind for kind, _, _ in boxes]
    if kinds[-2:] == [b"mdat", b"moov"] and b"moof" not in kinds:
        return  # closed properly
    if kinds == [b"ftyp", b"free"]:
        _reopen(path, boxes[-1][2])
        boxes = list(_boxes(path))
    os.truncate(path, max((stop for kind, _, stop in boxes if kind == b"mdat"), default=0))


def _reopen(path: Path, start: int) -> None:
    """Undo the last write of closing the file, for one whose end the power took.

    Closing turns the header of the first `moov` into that of one `mdat` around all fragments. The boxes inside are
    untouched: the `moov` ended where the first `mdat` among them begins.
    """
    for kind, begin, _ in _boxes(path, start + 8):
        if kind == b"mdat":
            with path.open("r+b") as file:
                file.seek(start)
                file.write(struct.pack(">I4s", begin - start, b"moov"))
            return


def count_frames(path: Path) -> int:
    """Packets in the video; 0 for a file that holds none."""
    count = 0
    with contextlib.suppress(av.FFmpegError, OSError, IndexError), av.open(str(path)) as container:
        count = sum(1 for packet in container.demux(video=0) if packet.size)
    return count


def copy_frames(source: Path, target: Path, frames: int) -> None:
    """The first `frames` frames as an ordinary MP4. Nothing is encoded again."""
    with av.open(str(source)) as reader, av.open(str(target), "w", format="mp4") as writer:
        # Opaque: else PyAV looks for an encoder named like the decoder, and there is no libdav1d encoder.
        stream = writer.add_stream_from_template(reader.streams.video[0], opaque=True)
        for index, packet in enumerate(reader.demux(video=0)):
            if index >= frames or not packet.size:
                break
            packet.stream = stream
            writer.mux(packet)


def decoded_stats(path: Path, frames: int, fps: int) -> ImageStats:
    """Statistics of a finished file. Decodes the last two seconds completely, where a cut would show, and samples
    before. Raises av.FFmpegError when the video cannot be decoded."""
    stats = ImageStats()
    tail = frames - 2 * fps
    decoded = 0
    with av.open(str(path)) as container:
        wanted = sample = False
        for index, packet in enumerate(container.demux(video=0)):
            if packet.is_keyframe:
                sample = index % STATS_EVERY_ROWS < GOP
                wanted = sample or index >= tail
            if not wanted and packet.size:
                continue
            for frame in packet.decode():
                decoded += 1
                if sample:
                    stats.add(cast(av.VideoFrame, frame).to_ndarray(format="rgb24").astype(np.uint8, copy=False))
                    sample = False
    if not decoded:
        raise OSError(f"{path} holds no frame that can be decoded")
    return stats
