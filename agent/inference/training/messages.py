"""What the training process says, one JSON object a line; `so-agent train --json` hands it on as it is."""

from typing import Final

import msgspec


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the training process is told: in which folders things lie, and how much of the computer it may have.

    Nothing here changes what is learnt, but for the last digits that depend on threads and device.
    """

    work: str
    bundle: str
    dataset: str
    device: str
    threads: int
    save_every_s: float


class Began(msgspec.Struct, frozen=True, tag="began", tag_field="event"):
    """It has loaded everything."""

    step: int  # above 0 when it goes on
    steps: int
    rows: int  # in the episodes to learn from
    held_out: int  # episodes
    trained: int  # parameters that change
    parameters: int
    device: str
    threads: int


class Validated(msgspec.Struct, frozen=True, tag="validated", tag_field="event"):
    """The loss on the held-out episodes, with the same rows and random numbers each time."""

    step: int
    loss: float


class Stepped(msgspec.Struct, frozen=True, tag="step", tag_field="event"):
    """Said after a step, but at most twice a second."""

    step: int
    steps: int
    loss: float  # mean since the last of these
    rate: float  # the learning rate
    steps_s: float
    left_s: float


class Saved(msgspec.Struct, frozen=True, tag="saved", tag_field="event"):
    """What it has learnt so far is on the disk."""

    step: int


class Stopped(msgspec.Struct, frozen=True, tag="stopped", tag_field="event"):
    """It was asked to stop, and has saved."""

    step: int
    steps: int


class Learnt(msgspec.Struct, frozen=True, tag="learnt", tag_field="event"):
    """All steps are done, and the policy lies in the work folder's `result/`."""

    steps: int
    before: float | None  # on held-out episodes; None where there are none
    after: float | None
    first_loss: float  # of training: mean of the first and last tenth of the curve
    last_loss: float
    seconds: float  # of training, over all its parts
    tasks: tuple[str, ...]  # the texts of the episodes


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="event"):
    """The last word of a training that cannot go on: an error of the agent's family."""

    code: str
    message: str
    hint: str = ""


type Event = Began | Validated | Stepped | Saved | Stopped | Learnt | Failed

DECODER: Final = msgspec.json.Decoder(Began | Validated | Stepped | Saved | Stopped | Learnt | Failed)
