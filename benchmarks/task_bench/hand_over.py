"""What an observation costs this agent's control thread: one `Tick`, published. The policy process reads along."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

from agent.messages import Drive, Joints, Limit, Source, Tick
from agent.robot.pacing import prefer
from agent.transport import Publisher, Subscriber

TICKS: Final = 900
PERIOD_S: Final = 1 / 300

POSE: Final[Joints] = (12.3, -45.6, 78.9, -10.1, 112.1, 31.4)


def publishing_s(priority: int) -> list[float]:
    """How long each of `TICKS` publications took, in seconds, with a subscriber that reads them all.

    On a thread of the control thread's own `priority` (`robot.realtime_priority`), where the host permits it.
    """
    with ThreadPoolExecutor(1, initializer=prefer, initargs=(priority,)) as control:
        return control.submit(_publish).result()


def _publish() -> list[float]:
    with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as folder:  # socket paths must be short
        path = Path(folder) / "arm.pub"
        with closing(Publisher(path)) as publisher, closing(Subscriber(path)) as subscriber:
            took = []
            for seq in range(TICKS):
                time.sleep(PERIOD_S)
                begun = time.perf_counter()
                publisher.send(_tick(seq))
                took.append(time.perf_counter() - begun)
                for _ in subscriber.drain():
                    pass
    return took


def _tick(seq: int) -> Tick:
    """As large as they get: a following arm that meets its speed limit."""
    limits = (Limit("elbow_flex", "speed", 80.2, 78.9),)
    return Tick(seq, 1, 2, Drive.EXECUTE, Source.POLICY, POSE, POSE, POSE, POSE, limits, 3, 4, 5)
