"""The station's place in the fleet: joined when it may learn, looked after, and left when the arm is needed.

OFF -> JOINING -> ONLINE <-> WORKING -> FINISHING -> OFF, and WAITING after something went wrong.

When the arm is needed (`yield_now`) the trainer is frozen at once, so that the arm has the whole computer in its first
seconds. Then it goes on at the lowest priority, finds the flag after its step, and replies with what it has done; the
SuperNode leaves when that reply has left. A trainer that takes too long is told to reply that it was busy, and one that
does not even do that is ended. In each of these cases the fleet's round goes on.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from agent.clock import Clock, nanoseconds, seconds
from agent.config import StationConfig
from agent.fl import brief, reach
from agent.fl.brief import Brief
from agent.fl.diary import ACTIVATION_REFUSED, Diary
from agent.fl.leaving import Leaving
from agent.fl.membership import Membership
from agent.fl.room import Room
from agent.fl.shelter import Found
from agent.fl.supernode import Folders, SuperNode
from agent.telemetry import logger

LOOK_S: Final = 0.25

FREEZE_S: Final = 2.0
"""Torque, the first ticks, and the begin of loading a policy. Flower takes a trainer for dead after some 37 s."""

SESSION_S: Final = 65.0
"""How long the fleet remembers a SuperNode that was killed: two heartbeats of 30 s."""

DEAF_S: Final = 90.0
"""A message without a trainer: the executor takes a second, Python on a busy computer ten or twenty."""

ORPHAN_S: Final = 30.0
"""A trainer whose reply has left ends within 7 s."""

IMPORTED_S: Final = 20.0
"""A trainer is at its steps after that, on most computers."""

WARM_S: Final = 600.0
"""Rounds of one run follow each other within minutes. Longer than that, half a gigabyte is not kept for the next."""

LOST_S: Final = 300.0
"""Without a way to the fleet for so long, what waits here only takes memory."""

MEASURE_S: Final = 5.0
"""Between two looks at the memory; one takes some milliseconds."""

REFUSED_S: Final = 60.0
AWAY_S: Final = (5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Waits when the fleet cannot be reached."""

CRASHED_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
STABLE_S: Final = 60.0


class NodeState(StrEnum):
    OFF = "off"
    WAITING = "waiting"  # to try again
    JOINING = "joining"
    ONLINE = "online"  # the fleet knows that we are there
    WORKING = "working"  # on a message
    FINISHING = "finishing"  # the last reply, then off


@dataclass(frozen=True)
class Ended:
    """Why a session is over; empty when that was wanted."""

    reason: str
    wait_s: float = 0.0  # 0: as for a crash


class Since:
    """For how long something has been so."""

    def __init__(self) -> None:
        self._ns: int | None = None

    def seconds(self, is_so: bool, now_ns: int) -> float:
        if not is_so:
            self._ns = None
            return 0.0
        self._ns = self._ns or now_ns
        return seconds(now_ns - self._ns)


class Node:
    """Owned by Federation. Everything but `run` returns at once."""

    def __init__(
        self,
        config: StationConfig,
        membership: Membership,
        clock: Clock,
        on_work: Callable[[bool, str], None],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """`on_work(whether, on what)` is called when a trainer begins and ends; `on_event` with a sentence."""
        self._settings = config.federation
        self._membership, self._clock = membership, clock
        self._on_work, self._on_event = on_work, on_event
        self.folders = Folders(membership.folder)
        self.room = Room(config.station, config.state_dir, memory_limit(config), self.folders.tenant)
        self._wanted, self._unwanted = asyncio.Event(), asyncio.Event()
        self._look = asyncio.Event()
        self._supernode: SuperNode | None = None
        self._leaving: Leaving | None = None
        self._broken = ""  # why the session is ended although it is wanted
        self._unclean_ns: int | None = None
        self._orphan: int | None = None  # a session that the fleet takes for alive
        self._working = False
        self._measured_ns = 0
        self.state = NodeState.OFF
        self.reason = ""
        self.shelter: Found | None = None  # of trainers, as of the last session
        self.peak_mb: int | None = None
        self._messages = 0  # of earlier sessions
        self.preempted = 0
        self.refused = ""

    # --- what Federation says ---

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    @property
    def messages(self) -> int:
        """How many the fleet has sent since the agent began."""
        return self._messages + (self._supernode.diary.received if self._supernode else 0)

    def join(self) -> None:
        self._unwanted.clear()
        self._wanted.set()

    def leave(self, reason: str) -> None:
        """After the reply that is due, if one is."""
        if self._wanted.is_set():
            self._wants_no_more()
            if self._supernode:
                self._begin_leaving(reason, self._settings.reply_within_s)

    def yield_now(self, cause: str, grace: bool = True) -> None:
        """The arm is needed: the trainer stands still when this returns. Without `grace` it gets no time to finish."""
        self._wants_no_more()
        if self._supernode is None:
            return
        leaving = self._begin_leaving(cause, FREEZE_S + (self._settings.reply_within_s if grace else 0.0))
        if leaving.thaw_ns is None and leaving.asked_ns is None and self.room.tenant() is not None:
            self.room.freeze()
            leaving.thaw_ns = self._clock.now_ns() + nanoseconds(FREEZE_S)
            self.preempted += 1

    def _wants_no_more(self) -> None:
        self._wanted.clear()
        self._unwanted.set()

    def tell(self, what: Brief) -> None:
        """What trainers that start from now on know. Raises OSError."""
        self.folders.work.mkdir(mode=0o700, parents=True, exist_ok=True)
        brief.replace(self.folders.brief, what)

    def _begin_leaving(self, reason: str, within_s: float) -> Leaving:
        deadline_ns = self._clock.now_ns() + nanoseconds(within_s)
        if self._leaving is None:
            self._leaving = Leaving(reason, deadline_ns)
            with contextlib.suppress(OSError):  # a full disk: then it is told by a signal
                self.folders.flag.touch()
        self._leaving.reason = reason
        self._leaving.deadline_ns = min(deadline_ns, self._leaving.deadline_ns)
        self._look.set()
        return self._leaving

    # --- running ---

    async def run(self) -> None:
        """Until cancelled; then nothing of it is left."""
        streak = away = 0
        try:
            while True:
                self._enter(NodeState.OFF, self._leaving.reason if self._leaving else "")
                await self._wanted.wait()
                self._leaving = None
                if problem := await self._way():
                    wait_s = AWAY_S[min(away, len(AWAY_S) - 1)]
                    away += 1
                    await self._rest(problem, wait_s)
                    continue
                away = 0
                began_ns = self._clock.now_ns()
                ended = await self._session()
                streak = 0 if self._clock.now_ns() - began_ns > nanoseconds(STABLE_S) else streak + 1
                if ended.reason:
                    await self._rest(ended.reason, ended.wait_s or CRASHED_S[min(streak, len(CRASHED_S) - 1)])
        finally:
            self._enter(NodeState.OFF, "")

    async def _way(self) -> str:
        """Why there is no way to the fleet."""
        enrolment = self._membership.enrolment
        if enrolment is None:
            return "this station takes part in no fleet"
        self._enter(NodeState.JOINING, f"looking for the fleet at {enrolment.superlink}")
        return await reach.problem(enrolment.superlink, self._membership.authority)

    async def _rest(self, reason: str, wait_s: float) -> None:
        """Until it is time to try again, or nobody wants it any more."""
        self._enter(NodeState.WAITING, f"{reason}; trying again in {wait_s:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._unwanted.wait(), wait_s)

    async def _session(self) -> Ended:
        """One life of a SuperNode."""
        enrolment = self._membership.enrolment
        if enrolment is None or not self._wanted.is_set():
            return Ended("")
        self._broken = ""
        supernode = self._supernode = SuperNode(self.folders, self.room, self._look.set)
        try:
            self.room.open()
            self.folders.renew(self._settings, self.room.trainer)
            if self._orphan is not None:
                await supernode.sign_off(enrolment.superlink, self._membership, self._orphan)
                self._orphan = None
            self._enter(NodeState.JOINING, f"joining the fleet at {enrolment.superlink}")
            self.shelter = await supernode.look_inside()
            if self.shelter.problem or not self._wanted.is_set():
                return Ended(self.shelter.problem, REFUSED_S)
            await supernode.start(enrolment.superlink, self._membership)
            await self._until_over(supernode)
        except OSError as error:
            return Ended(f"the SuperNode cannot be run: {error.strerror or error}", REFUSED_S)
        finally:
            polite = await supernode.end()
            if not polite or (supernode.code or 0) < 0:
                self._unclean_ns, self._orphan = self._clock.now_ns(), supernode.diary.node_id
            self._messages += supernode.diary.received
            self._supernode = None
            self.room.close()
            self._work_is(False, "")
        return self._why(supernode.code or 0, supernode.diary)

    async def _until_over(self, supernode: SuperNode) -> None:
        alone, unworked, unasked, at_work = Since(), Since(), Since(), Since()
        sent, sent_ns = 0, None
        while supernode.code is None:
            self._look.clear()
            now_ns = self._clock.now_ns()
            tenant = self.room.tenant()
            diary = supernode.diary
            for what in diary.take_said():
                self._heard_from_trainer(what)
            self._work_is(tenant is not None, f"round {diary.round}" if diary.round else "a message of the fleet")
            if diary.sent != sent:
                sent, sent_ns = diary.sent, now_ns
            orphan_s = alone.seconds(tenant is not None and not diary.busy, now_ns)
            deaf_s = unworked.seconds(tenant is None and diary.busy, now_ns)
            unasked_s = unasked.seconds(tenant is None and not diary.busy, now_ns)
            at_work_s = at_work.seconds(tenant is not None, now_ns)
            if unasked_s > WARM_S:
                await supernode.cool_down()
            elif (
                diary.sent and self._settings.keep_warm and not self._leaving and (unasked_s or at_work_s > IMPORTED_S)
            ):
                await supernode.warm_up()  # between messages, or beside a trainer that is past the same imports
            if self._leaving:
                self._enter(NodeState.FINISHING, self._leaving.reason)
                self._leaving.step(supernode, self.room, sent_ns, now_ns)
            else:
                self._look_after(supernode, tenant, orphan_s, deaf_s)
            over, looked = asyncio.ensure_future(supernode.wait()), asyncio.ensure_future(self._look.wait())
            try:
                await asyncio.wait([over, looked], timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for future in (over, looked):
                    future.cancel()

    def _look_after(self, supernode: SuperNode, tenant: int | None, orphan_s: float, deaf_s: float) -> None:
        """How it is, and what goes wrong without a process ending."""
        diary = supernode.diary
        if tenant or diary.busy:
            self._enter(NodeState.WORKING, f"round {diary.round}" if diary.round else "a message of the fleet")
        elif diary.node_id is None:
            self._enter(NodeState.JOINING, self.reason)
        else:
            self._enter(
                NodeState.ONLINE, "the fleet cannot be reached just now" if diary.unreachable else "waiting for a round"
            )
        if tenant and orphan_s > ORPHAN_S:
            logger.warning("a trainer that nobody waits for any more is ended", pid=tenant)
            self.room.end_trainer()
        if tenant and self._takes_too_much():
            self._on_event("A trainer took more memory than federation.memory_max_gb, and was ended.", {"pid": tenant})
            self.room.end_trainer()
        if deaf_s > DEAF_S and diary.unreachable:  # which takes a station for gone after a minute
            self._give_up(supernode, "the fleet was away for so long that it waits for no reply any more")
        elif deaf_s > DEAF_S:
            self._give_up(supernode, "a message lay here, and nothing worked on it")
        elif diary.forgotten:
            self._give_up(supernode, "the fleet did not know this session any more")
        elif diary.lost_s > LOST_S and not tenant:
            self._give_up(supernode, "the fleet could not be reached for some minutes")

    def _takes_too_much(self) -> bool:
        """Of the memory. Where the kernel sees to it this is never true."""
        now_ns = self._clock.now_ns()
        if now_ns - self._measured_ns < nanoseconds(MEASURE_S):
            return False
        self._measured_ns = now_ns
        return self.room.used_bytes() > self.room.memory_max_bytes

    def _give_up(self, supernode: SuperNode, why: str) -> None:
        """End a session to begin a new one."""
        logger.error("the SuperNode is started again", reason=why)
        self._broken = why
        now_ns = self._clock.now_ns()
        self._leaving = Leaving(why, now_ns, stopped_ns=now_ns)
        supernode.ask_to_stop()

    def _why(self, code: int, diary: Diary) -> Ended:
        """Why the SuperNode ended."""
        if not self._wanted.is_set():
            return Ended("")
        if self._broken:
            return Ended(self._broken)
        now_ns = self._clock.now_ns()
        if code < 0:
            return Ended(f"the SuperNode was killed ({signal.Signals(-code).name})")
        if diary.refusal == ACTIVATION_REFUSED:
            left_s = SESSION_S - seconds(now_ns - self._unclean_ns) if self._unclean_ns else 0.0
            if left_s > 0:
                return Ended("the fleet has not forgotten the session that was killed yet", min(left_s, 20.0))
            enrolment = self._membership.enrolment
            key = enrolment.fingerprint if enrolment else "?"
            return Ended(
                f"the fleet does not know this station's key {key}: `so-agent fleet add-station` there", REFUSED_S
            )
        if code == 0:
            return Ended("" if self._leaving else "the fleet ended the session", 2.0)
        return Ended(
            f"the SuperNode ended by itself: {diary.error or f'exit status {code}'}; see {self.folders.log.name}"
        )

    def _heard_from_trainer(self, what: dict[str, Any]) -> None:
        match what:
            case {"refused": str(reason)}:
                self.refused = reason
                self._on_event(reason, {"refused": True})
            case {"failed": str(reason)}:
                logger.warning("a message of the fleet went wrong", reason=reason)
            case {"trainer_ended": int(), "peak_mb": int(peak)}:
                self.peak_mb = peak

    def _work_is(self, working: bool, what: str) -> None:
        if working != self._working:
            self._working = working
            self._on_work(working, what)

    def _enter(self, state: NodeState, reason: str) -> None:
        if state is not self.state:
            logger.info("federation", state=state, reason=reason)
        self.state, self.reason = state, reason


def memory_limit(config: StationConfig) -> int:
    """Bytes for everything federated."""
    if config.federation.memory_max_gb is not None:
        return round(config.federation.memory_max_gb * 1e9)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
