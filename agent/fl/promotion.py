"""From a finished run to the policy that tasks run, and back.

What a run led to is a candidate. When nobody needs the arm it is made into a policy and compared with the one in use,
on this station's held-out episodes. A policy that is not worse is used from the next task on, and the one before it is
kept: `so-agent fl rollback` brings it back, and so does the station itself when people judge the new one's tasks
clearly worse. Nothing is promoted over a policy that has nothing to do with the run: whoever chose it has a reason.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agent.clock import Clock
from agent.config import StationConfig
from agent.errors import AgentError, BadInput, Refused
from agent.fl.candidate import Verdict
from agent.fl.membership import write
from agent.fl.record import worse
from agent.inference.importer import sync
from agent.inference.library import Library
from agent.telemetry import logger

if TYPE_CHECKING:
    from agent.fl.adapter import Adapter

KEPT: Final = 50
"""Candidates that are remembered, and judged tasks of each policy."""

POLICIES_KEPT: Final = 3
"""Promoted policies that stay in the library besides the one in use; a full-size one has 1 GB."""


class Tried(msgspec.Struct, frozen=True):
    """What became of a candidate."""

    run: str
    round: int
    adapter: str  # hash
    at: str
    outcome: str  # promoted, kept, worse, failed, rolled back
    reason: str
    policy: str | None = None  # its name in the library
    base: str | None = None  # hash
    before: float | None = None
    after: float | None = None
    rows: int = 0


class Book(msgspec.Struct):
    """What `promotion.json` holds."""

    tried: list[Tried] = msgspec.field(default_factory=list)  # the newest last
    previous: dict[str, str] = msgspec.field(default_factory=dict)  # promoted policy -> the one before it
    judged: dict[str, list[bool]] = msgspec.field(default_factory=dict)  # policy -> successes, the newest last


class Promotion:
    """Owned by Federation. Everything here is quick, but what says that it belongs into a thread."""

    def __init__(self, config: StationConfig, clock: Clock, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._settings, self._clock, self._tell = config.federation, clock, tell
        self._paths = config.paths
        self._library = Library(config.paths.policies, config.paths.policy_in_use)
        self._file = config.paths.federation / "promotion.json"
        self._candidates = config.paths.federation / "candidates"
        self.trial = (config.paths.federation / "trial").absolute()  # where a candidate becomes a policy
        self._book = self._read()
        self._unreadable: set[tuple[str, int]] = set()

    def pending(self) -> "Adapter | None":
        """A candidate that was not tried yet. In a thread: it reads the whole file."""
        from agent.fl.adapter import open_adapter

        known = {each.adapter for each in self._book.tried}
        for folder in sorted(self._candidates.glob("[!.]*")):
            mark = (folder.name, folder.stat().st_mtime_ns)
            if mark in self._unreadable:
                continue
            try:
                adapter = open_adapter(folder)
            except (AgentError, OSError) as error:
                self._unreadable.add(mark)
                logger.warning("a candidate cannot be read", candidate=folder.name, reason=str(error))
                continue
            if adapter.hash not in known:
                return adapter
        return None

    def name_for(self, adapter: "Adapter") -> str:
        """A name that the library does not know yet."""
        stem, names = adapter.manifest.run[:55], set(self._library.names())
        return next(name for name in (stem, *(f"{stem}-{number}" for number in range(2, 10_000))) if name not in names)

    def current(self) -> Path | None:
        """The policy in use; None when there is none, or it is gone."""
        try:
            return self._library.find().absolute()
        except BadInput:
            return None

    def decide(self, adapter: "Adapter", verdict: Verdict) -> Tried:
        """What becomes of a candidate that was compared. In a thread: it reads the whole policy."""
        made = Path(verdict.folder)
        before, after = verdict.before, verdict.after
        limit = None if before is None else before * (1 + self._settings.max_worse)
        numbers = f"{after:.3g} where the policy in use is off by {before:.3g}" if before and after else ""
        if limit is not None and after is not None and after > limit:
            shutil.rmtree(made, ignore_errors=True)
            reason = f"its actions are off by {numbers} (held-out episodes, {verdict.rows} rows)"
            return self._note(adapter, verdict, None, "worse", reason)
        target = self._paths.policies / made.name
        made.rename(target)
        sync(target.parent)
        if reason := self._not_to_be_used(verdict):
            return self._note(adapter, verdict, target.name, "kept", reason)
        previous = self._library.in_use()
        self._library.use(target.name)
        if previous is not None:
            self._book.previous[target.name] = previous
        reason = f"its actions are off by {numbers} (held-out episodes, {verdict.rows} rows)"
        tried = self._note(adapter, verdict, target.name, "promoted", reason)
        self._tidy()
        return tried

    def failed(self, adapter: "Adapter", reason: str) -> Tried:
        """A candidate that cannot become a policy. It is not tried again."""
        return self._note(adapter, None, None, "failed", reason)

    def _not_to_be_used(self, verdict: Verdict) -> str:
        """Why a candidate that is not worse is still not used by itself."""
        if not self._settings.promote:
            return "federation.promote is off: `so-agent policy use` takes it"
        if not verdict.rows:
            return "there are no held-out episodes to judge it by"
        current = self.current()
        if current is None or verdict.before is None:
            return "no policy is in use: `so-agent policy use` takes it"
        if self._root_of(current.name) != verdict.base_hash:
            return f"the policy in use, {current.name}, has nothing to do with this run"
        return ""

    def _root_of(self, name: str) -> str:
        """The hash of the base that a policy was begun from; its own where it was not made here."""
        made = next((each for each in reversed(self._book.tried) if each.policy == name and each.base), None)
        return made.base if made and made.base else self._library.entry(name).hash

    # --- back ---

    def rollback(self, cause: str) -> tuple[str, str]:
        """Use the policy before the promoted one. Raises Refused when none was promoted. In a thread."""
        promoted = self._library.in_use()
        previous = self._book.previous.get(promoted or "")
        if promoted is None or previous is None:
            raise Refused("The policy in use was not promoted here.", "Choose another with `so-agent policy use`.")
        self._library.use(previous)
        del self._book.previous[promoted]
        self._book.tried = [
            msgspec.structs.replace(each, outcome="rolled back", reason=cause) if each.policy == promoted else each
            for each in self._book.tried
        ]
        self._save()
        self._tell(f"Tasks run {previous} again instead of {promoted}: {cause}.", {"policy": previous})
        return promoted, previous

    def judged(self, policy: str, success: bool) -> str:
        """A person judged a task. Why the policy should be rolled back; empty when it should not."""
        history = self._book.judged.setdefault(policy, [])
        history.append(success)
        del history[:-KEPT]
        self._save()
        previous = self._book.previous.get(policy)
        if previous is None or self._library.in_use() != policy:
            return ""
        return worse(history, self._book.judged.get(previous, []))

    def status(self) -> dict[str, Any]:
        """JSON."""
        in_use = None
        with contextlib.suppress(BadInput):
            in_use = self._library.in_use()
        return {
            "in_use": in_use,
            "previous": self._book.previous.get(in_use or ""),
            "candidates": [msgspec.to_builtins(each) for each in self._book.tried[-5:]],
        }

    # --- the book ---

    def _note(
        self, adapter: "Adapter", verdict: Verdict | None, policy: str | None, outcome: str, reason: str
    ) -> Tried:
        manifest = adapter.manifest
        tried = Tried(
            run=manifest.run,
            round=manifest.round,
            adapter=adapter.hash,
            at=datetime.fromtimestamp(self._clock.wall_s(), UTC).isoformat(timespec="seconds"),
            outcome=outcome,
            reason=reason,
            policy=policy,
            base=verdict.base_hash if verdict else None,
            before=verdict.before if verdict else None,
            after=verdict.after if verdict else None,
            rows=verdict.rows if verdict else 0,
        )
        self._book.tried = [*self._book.tried, tried][-KEPT:]
        self._save()
        self._tell(f"What the run {manifest.run} led to is {outcome}: {reason}.", msgspec.to_builtins(tried))
        return tried

    def _tidy(self) -> None:
        """Of the policies that were made here, only the last few stay: those to go back to, and those nobody chose."""
        there = self._library.names()
        made = [each.policy for each in self._book.tried if each.policy in there]
        chain = [self._library.in_use()]
        while len(chain) <= POLICIES_KEPT and (before := self._book.previous.get(chain[-1] or "")):
            chain.append(before)
        aside = [each.policy for each in self._book.tried if each.outcome == "kept"][-POLICIES_KEPT:]
        for name in made:
            if name and name not in (*chain, *aside):
                with contextlib.suppress(AgentError, OSError):
                    self._library.remove(name)
        there = self._library.names()
        self._book.previous = {
            name: before for name, before in self._book.previous.items() if name in there and before in there
        }
        self._save()

    def _read(self) -> Book:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Book)
        except FileNotFoundError:
            return Book()
        except (OSError, msgspec.DecodeError) as error:
            # What was tried is tried again; better than to stand still.
            logger.error("what was promoted is forgotten", file=str(self._file), problem=str(error))
            with contextlib.suppress(OSError):
                os.replace(self._file, self._file.with_suffix(".broken"))
            return Book()

    def _save(self) -> None:
        write(self._file, msgspec.json.format(msgspec.json.encode(self._book), indent=1) + b"\n")
