"""What federation asks of its station, and what it tells it. The station is the desk; federation is the guest."""

from typing import Any, Protocol


class Desk(Protocol):
    """Implemented by the station. All of it is quick, and is called in the daemon's own loop.

    The other direction is `Federation.yield_now(cause)`, which the station calls in the first line of whatever is about
    to move the arm, before it asks the arm, and `Federation.judged(policy, success)` after a task that a person judged.
    """

    def wanted(self) -> str | None:
        """Why the arm is, or is about to be, used: "the station is in mode teleop". None while nobody needs it.

        Only IDLE and TRAINING, with no task under way or loading, are None.
        """
        ...

    def hottest_c(self) -> float | None:
        """The hottest servo in degrees Celsius; None when the arm does not say."""
        ...

    def training(self, cause: str | None) -> None:
        """A trainer works here (and on what), or none does any more: IDLE becomes TRAINING and back. Never refuses."""
        ...

    def tell(self, text: str, data: dict[str, Any]) -> None:
        """Into the event log, as an event of the kind `federation`: a sentence, and the same for programs."""
        ...
