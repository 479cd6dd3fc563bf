"""Control from a distance: one lease at a time, which ends when whoever has it is not heard any more.

A page on a phone can lose its network while the arm follows a leader that nobody holds. So a remote surface may move
the arm only with a lease that it renews several times a second, and motion that was begun with a lease ends with it:
the station holds the arm. People at the station need no lease, and take it from whoever has it.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agent.clock import Clock, nanoseconds, seconds
from agent.errors import BadInput, NoControl

SHORTEST_S: Final = 0.3
"""Two or three renewals of a page on a home's Wi-Fi."""

LONGEST_S: Final = 10.0
"""Who is silent for longer does not watch the arm."""

OWNER_MAX_CHARS: Final = 80

TOKEN_BYTES: Final = 16

AGAIN = "Take control again."


@dataclass(frozen=True)
class Lease:
    """Who has control. `token` is known to its owner alone, and is shown nowhere."""

    token: str
    owner: str
    via: str | None
    ttl_s: float
    taken_ns: int


class Leases:
    """The one lease of a station, and the motion that was begun with it.

    `on_change(text, data)` hears when one is taken or ends; `on_orphan(cause)` when motion lost its lease.
    """

    def __init__(
        self, clock: Clock, on_change: Callable[[str, dict[str, Any]], None], on_orphan: Callable[[str], None]
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._on_orphan = on_orphan
        self._lease: Lease | None = None
        self._due_ns = 0
        self._moves: str | None = None  # the token that the motion under way was begun with
        self._ended: tuple[str, str] | None = None  # the last one's token, and why it ended
        self._taken = asyncio.Event()

    # --- what a remote surface asks for ---

    def take(self, owner: str, ttl_s: float, via: str | None, take_over: bool = False) -> Lease:
        """A new lease. Raises NoControl while another has one, unless it is taken over; BadInput."""
        owner = owner.strip()
        if not 1 <= len(owner) <= OWNER_MAX_CHARS or not owner.isprintable():
            raise BadInput(f"owner must be one line of 1 to {OWNER_MAX_CHARS} characters; found {owner[:90]!r}.")
        if not SHORTEST_S <= ttl_s <= LONGEST_S:
            raise BadInput(f"ttl_s must be {SHORTEST_S:g} to {LONGEST_S:g}; found {ttl_s!r}.")
        if holder := self.holder:
            if not take_over:
                raise NoControl(f"{holder.owner} has control.", "Wait until they give it back, or take it over.")
            self._end(f"{owner} took over")
        lease = self._lease = Lease(secrets.token_urlsafe(TOKEN_BYTES), owner, via, ttl_s, self._clock.now_ns())
        self._renew(lease)
        self._taken.set()
        self._on_change(f"{owner} has control", {"owner": owner, "via": via, "ttl_s": ttl_s, "held": True})
        return lease

    def renew(self, token: object) -> Lease:
        """Keep it for another `ttl_s` from now. Raises NoControl when it is over."""
        lease = self.require(token)
        self._renew(lease)
        return lease

    def release(self, token: object) -> None:
        """Give it back. Raises NoControl when it is over already."""
        lease = self.require(token)
        self._end(f"{lease.owner} gave it back")

    def require(self, token: object) -> Lease:
        """The lease of this token. Raises NoControl, with the reason, when there is none or another's."""
        if not isinstance(token, str):
            raise NoControl("This needs control, and nobody has it for this request.", "Take control first.")
        lease = self.holder
        if lease and secrets.compare_digest(lease.token.encode(), token.encode()):
            return lease
        if self._ended and secrets.compare_digest(self._ended[0].encode(), token.encode()):
            raise NoControl(f"Control ended: {self._ended[1]}.", AGAIN)
        raise NoControl(f"Control is over{f'; {lease.owner} has it now' if lease else ''}.", AGAIN)

    # --- what the station says about motion ---

    @property
    def moves(self) -> str | None:
        """The token that the motion under way was begun with; None: it needs no lease."""
        return self._moves

    def begin(self, token: str | None) -> None:
        """Motion begins, with a lease or (None) by somebody who needs none."""
        self._moves = token

    @property
    def orphaned(self) -> str | None:
        """Why the motion under way has lost its lease; None when it has not, or needs none."""
        holder = self.holder  # first: this may end it
        if self._moves is None or (holder and holder.token == self._moves):
            return None
        if self._ended and self._ended[0] == self._moves:
            return self._ended[1]
        return "control was given back or lost"

    def end(self, cause: str) -> None:
        """Nobody has control from a distance any more."""
        if self.holder:
            self._end(cause)

    # --- time ---

    @property
    def holder(self) -> Lease | None:
        """The lease that is valid now. One whose time is over ends here, if nobody noticed before."""
        if self._lease and self._clock.now_ns() >= self._due_ns:
            self._end(f"{self._lease.owner} was not heard for {self._lease.ttl_s:g} s")
        return self._lease

    async def watch(self) -> None:
        """End leases when their time is over; for ever."""
        while True:
            while self.holder:  # noqa: ASYNC110 - what ends it is time itself
                await asyncio.sleep(max(0.0, seconds(self._due_ns - self._clock.now_ns())))
            self._taken.clear()
            await self._taken.wait()

    def status(self) -> dict[str, Any] | None:
        """For people and surfaces: who has control."""
        lease = self.holder
        if lease is None:
            return None
        return {
            "owner": lease.owner,
            "via": lease.via,
            "ttl_s": lease.ttl_s,
            "seconds": round(seconds(self._clock.now_ns() - lease.taken_ns), 1),
            "moves": self._moves == lease.token,
        }

    def _renew(self, lease: Lease) -> None:
        self._due_ns = self._clock.now_ns() + nanoseconds(lease.ttl_s)

    def _end(self, cause: str) -> None:
        lease, self._lease = self._lease, None
        assert lease is not None  # noqa: S101 - only called with one
        self._ended = (lease.token, cause)
        self._on_change(
            f"{lease.owner} has no control any more: {cause}",
            {
                "owner": lease.owner,
                "via": lease.via,
                "cause": cause,
                "held": False,
                "moved": self._moves == lease.token,
            },
        )
        if self._moves == lease.token:
            self._on_orphan(cause)
