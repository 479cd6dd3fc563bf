"""What the station sees now: the newest tick of a task and the newest frame of every camera, or why there is none.

The latest wins: whatever a slow policy has not looked at is replaced. Nothing stale is ever handed out; a policy that
cannot see stops thinking, and the arm holds when its actions run out.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import zmq

from agent.clock import NS_PER_MS, Clock
from agent.config import StationConfig
from agent.errors import BadInput
from agent.inference.engine import Image
from agent.messages import CameraReport, Drive, FrameHeader, Source, Tick
from agent.transport import Subscriber, topic

FRAMES_WAITING: Final = 2
"""At most this many frames of a camera wait to be looked at; older ones would only be thrown away."""


class Observer:
    """Subscribes to the arm and to the cameras that a policy looks through. Owned by one thread; close it."""

    def __init__(self, config: StationConfig, clock: Clock, cameras: Mapping[str, str]) -> None:
        """`cameras`: view (OBS_IMAGE_1) -> the policy's own feature name.

        Raises BadInput when this station has no camera for one of the views.
        """
        self._clock = clock
        self._stale_tick_ns = round(config.safety.stale_action_ms * NS_PER_MS)
        require_views(config, cameras)
        views = config.views()
        self.generation = 0  # ticks of other generations are not looked at
        self.tick: Tick | None = None
        self._features = {views[view]: feature for view, feature in cameras.items()}
        self._stale_frame_ns = {name: round(config.cameras[name].stale_ms * NS_PER_MS) for name in self._features}
        self._frames: dict[str, tuple[FrameHeader, zmq.Frame]] = {}
        self._arm = Subscriber(config.paths.arm_pub, topic=TICKS)
        self._cameras = {
            name: Subscriber(config.paths.camera_pub(name), queue=FRAMES_WAITING) for name in self._features
        }
        self._poller = zmq.Poller()
        for subscriber in (self._arm, *self._cameras.values()):
            self._poller.register(subscriber.socket, zmq.POLLIN)

    def begin(self, generation: int) -> None:
        """From now on only ticks of this generation count."""
        self.generation, self.tick = generation, None

    def hear(self) -> list[Tick]:
        """Take in what has come, without waiting. The ticks of this generation among it, oldest first."""
        ticks = []
        for parts in self._arm.drain():
            tick = _TICK.decode(parts[0].buffer)
            if tick.generation == self.generation and self.generation:
                ticks.append(tick)
                if tick.measured is not None and tick.plan_ns is not None:
                    self.tick = tick
        for name, subscriber in self._cameras.items():
            for parts in subscriber.drain():
                message = _CAMERA.decode(parts[0].buffer)
                if isinstance(message, FrameHeader) and len(parts) > 1:
                    self._frames[name] = (message, parts[1])
        return ticks

    def blind(self) -> str:
        """Why there is nothing to predict from now; empty when there is."""
        now_ns = self._clock.now_ns()
        if self.tick is None:
            return "waiting for the arm"
        if (age_ns := now_ns - self.tick.read_ns) > self._stale_tick_ns:
            return f"the joints were last read {age_ns / NS_PER_MS:.0f} ms ago"
        for name, limit_ns in self._stale_frame_ns.items():
            frame = self._frames.get(name)
            if frame is None:
                return f"no picture from the camera {name}"
            if (age_ns := now_ns - frame[0].capture_ns) > limit_ns:
                return f"the last picture of the camera {name} is {age_ns / NS_PER_MS:.0f} ms old"
        return ""

    def images(self) -> dict[str, Image]:
        """The newest picture of every camera, by the policy's feature names. Only when not `blind`."""
        return {feature: _pixels(*self._frames[name]) for name, feature in self._features.items()}

    def wait(self, timeout_s: float) -> None:
        """Until something comes, or the time is over."""
        self._poller.poll(max(0, int(timeout_s * 1000)))

    def close(self) -> None:
        self._arm.close()
        for subscriber in self._cameras.values():
            subscriber.close()


def require_views(config: StationConfig, cameras: Mapping[str, str]) -> None:
    """Raises BadInput when this station has no camera for one of the views that a policy looks through."""
    views = config.views()
    if missing := [view for view in cameras if view not in views]:
        raise BadInput(
            f"The policy looks through {', '.join(missing)}, and this station has no such camera.",
            "Give one of the cameras that view, or import the policy with another --camera mapping; "
            f"there are {', '.join(f'{view} ({name})' for view, name in views.items()) or 'no cameras'}.",
        )


def _pixels(header: FrameHeader, payload: zmq.Frame) -> Image:
    """RGB, shape (height, width, 3); a view of the message's own memory."""
    return np.frombuffer(payload.buffer, np.uint8).reshape(header.height, header.width, 3)


_TICK: msgspec.msgpack.Decoder[Tick] = msgspec.msgpack.Decoder(Tick)
_CAMERA: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FrameHeader | CameraReport)

TICKS: Final = topic(Tick(0, 0, 0, Drive.HOLD, Source.NONE))
"""Of the arm's messages its reports are not even sent here."""
