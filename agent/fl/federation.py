"""Federation, as the station knows it: idle hours become a better policy, and the arm never waits for it.

Once a second it looks at how things are (conditions.py) and joins or leaves. `yield_now` comes from the station in the
moment in which somebody wants the arm.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agent.clock import Clock, seconds
from agent.config import StationConfig
from agent.errors import AgentError, BadInput
from agent.fl.brief import Brief, Privacy, Progress
from agent.fl.candidate import Job
from agent.fl.comparison import Comparison
from agent.fl.conditions import Surroundings, against
from agent.fl.cost import Cost, free_bytes
from agent.fl.desk import Desk
from agent.fl.membership import Membership
from agent.fl.node import Node, NodeState
from agent.fl.promotion import Promotion
from agent.telemetry import logger

if TYPE_CHECKING:
    from agent.fl.adapter import Adapter

LOOK_S: Final = 1.0

PROMOTE_S: Final = 2.0
"""How often a look is taken for what a finished run has left."""

type Told = Callable[[dict[str, Any]], Awaitable[None]]
type Verb = Callable[[dict[str, Any], Told], Awaitable[dict[str, Any]]]


class Federation:
    """Owned by the station; only its own event loop may touch it."""

    def __init__(self, config: StationConfig, clock: Clock, desk: Desk) -> None:
        self._config, self._clock, self._desk = config, clock, desk
        self._settings = config.federation
        self.membership = Membership(config, clock)
        self.node = Node(config, self.membership, clock, self._work, desk.tell)
        self._cost = Cost(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._used_ns = clock.now_ns()
        self._waived = False  # a person does not want to wait until the station has been idle for long
        self._against: list[str] = ["the agent has just started"]
        self._problem = ""
        self._brief: Brief | None = None
        self.promotion = Promotion(config, clock, self._tell_soon)
        self._comparison = Comparison(self.membership.folder)
        self._judgements: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self._one_at_a_time = asyncio.Lock()  # changes of the policy in use

    # --- what the station calls ---

    async def run(self) -> None:
        """Until cancelled; then no process of it is left."""
        self._loop = asyncio.get_running_loop()
        tasks = [
            asyncio.create_task(self.node.run(), name="supernode"),
            asyncio.create_task(self._promote(), name="promotion"),
            asyncio.create_task(self._judge(), name="judgements"),
        ]
        try:
            while True:
                self._step()
                done, _ = await asyncio.wait(tasks, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # none of them ends by itself: this raises why it did
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._desk.training(None)

    def yield_now(self, cause: str) -> None:
        """The arm is wanted. A trainer stands still when this returns; the rest happens by itself."""
        self._used_ns = self._clock.now_ns()
        self._waived = False
        self._comparison.end()
        if self.node.state is NodeState.OFF and not self.node.wanted:
            return
        short = _free_memory() < self._cost.memory_bytes()
        self.node.yield_now(f"the arm is needed: {cause}", grace=not short)
        self._desk.training(None)
        logger.info("federation makes way", cause=cause, state=self.node.state)

    def judged(self, policy: str, success: bool) -> None:
        """A person judged a task that this policy did. One that does clearly worse than the one before is not kept."""
        self._judgements.put_nowait((policy, success))

    def status(self) -> dict[str, Any] | None:
        """For `so-agent status`; None while the station is in no fleet."""
        found = self.report()
        return found if found["enrolled"] else None

    def report(self) -> dict[str, Any]:
        """For `so-agent fl status`; JSON."""
        node = self.node
        try:
            enrolment, consent = self.membership.enrolment, self.membership.consent
        except BadInput as error:
            return {"enrolled": True, "state": NodeState.OFF, "reason": str(error), "against": [str(error)]}
        why = self._against[0] if self._against and node.state is NodeState.OFF else node.reason
        return {
            "enrolled": enrolment is not None,
            "superlink": enrolment.superlink if enrolment else None,
            "key": enrolment.fingerprint if enrolment else None,
            "paused": bool(enrolment and enrolment.paused),
            "state": node.state,
            "reason": self._problem or why or "joining",
            "against": list(self._against),
            "consent": sorted(consent.datasets),
            "progress": self._progress(),
            "messages": node.messages,
            "preempted": node.preempted,
            "refused": node.refused or None,
            "peak_mb": node.peak_mb,
            "round_bytes": self._cost.round_bytes(),
            "isolation": {
                "by": node.room.kind,
                "limits": node.room.limits,
                "trainer": msgspec.structs.asdict(node.shelter) if node.shelter else None,
            },
            "promotion": self.promotion.status() | {"comparing": self._comparison.running},
        }

    def verbs(self) -> dict[str, Verb]:
        """To be answered by the station, under these names."""
        return {
            "fl.status": self._status_verb,
            "fl.enroll": self._enroll_verb,
            "fl.leave": self._leave_verb,
            "fl.pause": self._pause_verb,
            "fl.resume": self._resume_verb,
            "fl.consent": self._consent_verb,
            "fl.rollback": self._rollback_verb,
        }

    # --- once a second ---

    def _step(self) -> None:
        try:
            self._against = against(self._settings, self._surroundings(), joined=self.node.wanted)
            if self._against:
                self.node.leave(self._against[0])
            else:
                self._tell()
                self.node.join()
            self._problem = ""
        except (AgentError, OSError) as error:
            # A file that cannot be read or a full disk: said in the status, and tried again in a second.
            if str(error) != self._problem:
                logger.error("federation cannot go on", problem=str(error))
            self._problem = str(error)
            self.node.leave(self._problem)

    def _surroundings(self) -> Surroundings:
        now_ns = self._clock.now_ns()
        enrolment = self.membership.enrolment
        wanted = self._desk.wanted()
        if wanted:
            self._used_ns, self._waived = now_ns, False
        idle_s = seconds(now_ns - self._used_ns)
        return Surroundings(
            enrolled=enrolment is not None,
            paused=bool(enrolment and enrolment.paused),
            datasets=len(self.membership.learnable) if enrolment else 0,
            wanted=wanted,
            idle_s=float("inf") if self._waived else idle_s,
            local=datetime.fromtimestamp(self._clock.wall_s()).time(),
            free_memory_bytes=_free_memory(),
            wanted_memory_bytes=self._cost.memory_bytes(),
            free_disk_bytes=_free_disk(self._config.paths.state),
            hottest_c=self._desk.hottest_c(),
        )

    def _tell(self) -> None:
        """The trainer learns of a consent that was given or taken back with its next message."""
        settings, folders, paths = self._settings, self.node.folders, self._config.paths
        privacy = settings.privacy
        brief = Brief(
            station=self._config.station,
            datasets=tuple(str(dataset.absolute()) for dataset in self.membership.learnable),
            held_out=settings.held_out,
            policies=str(paths.policies.absolute()),
            flag=str(folders.flag.absolute()),
            progress=str(folders.progress.absolute()),
            candidates=str(folders.candidates.absolute()),
            scratch=str(folders.scratch.absolute()),
            threads=self._threads,
            ledger=str(folders.ledger.absolute()),
            privacy=Privacy(**privacy.model_dump()) if privacy else None,
            share_statistics=settings.share_statistics,
            memory_max_bytes=self.node.room.memory_max_bytes,
        )
        if brief != self._brief or not folders.brief.exists():
            self.node.tell(brief)
            self._brief = brief

    @property
    def _threads(self) -> int:
        return self._settings.threads or max(1, len(os.sched_getaffinity(0)) - 1)

    def _work(self, working: bool, what: str) -> None:
        self._desk.training(what if working and not self._desk.wanted() else None)

    def _progress(self) -> dict[str, Any] | None:
        if self.node.state not in (NodeState.WORKING, NodeState.FINISHING):
            return None
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found = msgspec.json.decode(self.node.folders.progress.read_bytes(), type=Progress)
            return dict(msgspec.structs.asdict(found))
        return None

    # --- what runs led to ---

    async def _promote(self) -> None:
        while True:
            await asyncio.sleep(PROMOTE_S)
            if not self._calm():
                continue
            adapter = await asyncio.to_thread(self.promotion.pending)
            if adapter is not None:
                await self._try(adapter)

    async def _try(self, adapter: "Adapter") -> None:
        """One candidate, unless somebody wants the arm meanwhile."""
        try:
            job = await asyncio.to_thread(self._job, adapter)
            verdict = await self._comparison.run(job)
            if verdict is None or self._desk.wanted():
                return  # between tasks only: another time
            async with self._one_at_a_time:
                await asyncio.to_thread(self.promotion.decide, adapter, verdict)
        except (AgentError, OSError) as error:
            logger.warning("a candidate could not be tried", run=adapter.manifest.run, reason=str(error))
            async with self._one_at_a_time:
                self.promotion.failed(adapter, str(error))

    def _tell_soon(self, text: str, data: dict[str, Any]) -> None:
        """To the desk, from whatever thread: it belongs to the daemon's own loop."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._desk.tell, text, data)

    def _job(self, adapter: "Adapter") -> Job:
        current = self.promotion.current()
        return Job(
            adapter=str(adapter.folder.absolute()),
            policies=str(self._config.paths.policies.absolute()),
            current=str(current) if current else None,
            name=self.promotion.name_for(adapter),
            target=str(self.promotion.trial),
            datasets=tuple(str(dataset.absolute()) for dataset in self.membership.learnable),
            held_out=self._settings.held_out,
            threads=self._threads,
        )

    def _calm(self) -> bool:
        """Whether there is time to look at a candidate: as for joining, but at any hour, and while paused, too."""
        try:
            now = replace(self._surroundings(), enrolled=True, paused=False, datasets=1)
        except (AgentError, OSError):
            return False
        return self.node.state is not NodeState.WORKING and not against(
            self._settings.model_copy(update={"hours": ()}), now, joined=False
        )

    async def _judge(self) -> None:
        while True:
            policy, success = await self._judgements.get()
            async with self._one_at_a_time:
                try:
                    if reason := self.promotion.judged(policy, success):
                        await asyncio.to_thread(self.promotion.rollback, reason)
                except (AgentError, OSError) as error:
                    logger.error("a judgement was not taken down", policy=policy, problem=str(error))

    # --- verbs ---

    async def _status_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        _only(args)
        return self.report()

    async def _enroll_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        superlink, authority, key = (args.pop(name, None) for name in ("superlink", "ca", "key"))
        _only(args)
        if not isinstance(superlink, str) or not isinstance(authority, str) or not isinstance(key, str | None):
            raise BadInput("fl.enroll needs superlink and ca, and may have a key.", "See `so-agent fl enroll --help`.")
        enrolment = await asyncio.to_thread(self.membership.enroll, superlink, authority, key)
        self.node.leave("this station was enrolled anew")
        self._step()
        return {**msgspec.structs.asdict(enrolment), "public_key": self.membership.public_line()}

    async def _leave_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        _only(args)
        self.membership.leave()
        self._step()
        return {"enrolled": False}

    async def _pause_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        _only(args)
        self.membership.pause(True)
        self._step()
        return {"paused": True}

    async def _resume_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        now = args.pop("now", False)
        _only(args)
        self.membership.pause(False)
        self._waived = bool(now)
        self._step()
        return {"paused": False, "against": list(self._against)}

    async def _consent_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        dataset, on = args.pop("dataset", None), args.pop("on", None)
        _only(args)
        if dataset is not None:
            if not isinstance(dataset, str) or not isinstance(on, bool):
                raise BadInput(
                    "fl.consent needs a dataset and whether it may be learnt from.", "See `fl consent --help`."
                )
            self.membership.give_consent(dataset, on)
            self._step()
        return consents(self.membership)

    async def _rollback_verb(self, args: dict[str, Any], told: Told) -> dict[str, Any]:
        _only(args)
        async with self._one_at_a_time:
            left, taken = await asyncio.to_thread(self.promotion.rollback, "fl rollback was asked for")
        return {"policy": taken, "instead_of": left}


def consents(membership: Membership) -> dict[str, Any]:
    """Dataset -> since when it may be learnt from; None: it may not."""
    given = membership.consent.datasets
    return {"consent": {name: given.get(name) for name in sorted({*membership.datasets(), *given})}}


def _only(args: dict[str, Any]) -> None:
    if args:
        raise BadInput(f"Unknown argument{'s' if len(args) > 1 else ''}: {', '.join(sorted(args))}.")


def _free_memory() -> float:
    return free_bytes()


def _free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free
