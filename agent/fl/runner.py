"""`flwr-clientapp` of a station: Flower's own, but it answers to the station.

Flower's SuperNode starts whatever is called `flwr-clientapp` in PATH, once for each message; ours comes first there.
* An app that is not on the station's list is refused with a sentence, before a file of it is unpacked.
* SIGTERM makes it reply that the arm is needed. Flower's own would end without a reply, and the SuperNode would wait
  for it, online but deaf.
* What goes wrong around the app is told to the station. Flower would send the fleet the text of the exception, in which
  there are names of folders.
* It says who it is, so that it can be frozen, and shuts itself in: no device, no file but what it needs (shelter.py).

`flwr-agentapp` and the like are this program, too, and refuse: what they run was never meant for a station.

Reaches into `flwr.supernode.runtime.run_clientapp`; tests/fl/station/test_contract.py says what must hold of it.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from agent import priority
from agent.errors import AgentError, Refused
from agent.fl import brief, shelter
from agent.fl.exchange import Decline
from agent.fl.room import Tenant, born

VARIABLE: Final = "SO_AGENT_TRAINER_RULES"

SAYS: Final = "so-agent says "
"""Begins a line for the station in what the SuperNode prints; the rest of it is JSON."""

PROGRAM: Final = "flwr-clientapp"

ADDRESS: Final = "--runtime-api-address"
"""Before the address of the SuperNode, in the arguments."""

TOUCHED: Final = (
    "pull_task_input",
    "install_from_fab",
    "register_signal_handlers",
    "get_load_client_app_fn",
    "start_parent_process_monitor",
    "push_message",
)
"""Names that Flower's runner looks up in its own module when it calls them."""

PARENT_S: Final = 0.5
"""Between two looks whether the executor still runs."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the station lets its trainers do."""

    tenant: str  # file in which a trainer says who it is
    allowed: tuple[str, ...]  # SHA-256 of apps besides our own
    cgroup: str | None = None  # folder of the control group that it enters
    warm: str | None = None  # socket of a process that has the imports done, if one runs
    uid: int | None = None  # the user that it becomes; None: as who we are
    gid: int | None = None


class Preempted(BaseException):
    """The station needs its arm. Not an Exception: no app may take it for one of its own."""


class Answer:
    """What becomes of one message."""

    def __init__(self, rules: Rules, program: str) -> None:
        self.rules, self._program = rules, program
        self.wanted = False  # the arm is
        self._refusal = ""
        self._working = False

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """On SIGTERM. While the message comes or the reply goes it is only remembered."""
        self.wanted = True
        if self._working:
            self._working = False
            raise Preempted

    def judge(self, app: bytes) -> None:
        """Whether the app may run."""
        from agent.fl.allowed import check

        try:
            if self._program != PROGRAM:
                raise Refused(f"A station does not run what {self._program} runs.")
            check(app, frozenset(self.rules.allowed))
        except AgentError as error:
            self._refusal = str(error)
            say({"refused": self._refusal})

    def load(self, real: Callable[[], Any]) -> Callable[..., Any]:
        """The app, which is loaded when it is called; or what stands in for it."""
        from flwr.app import Error, Message

        def busy(message: Any) -> Any:
            return Message(Error(Decline.BUSY, "the arm is needed"), reply_to=message)

        def answer(message: Any, context: Any) -> Any:
            if self._refusal:
                return Message(Error(Decline.NOT_AGREED, self._refusal), reply_to=message)
            try:
                if self.wanted:
                    return busy(message)
                self._working = True
                reply = real()(message=message, context=context)
                self._working = False
            except Preempted:
                return busy(message)
            else:
                return reply
            finally:
                self._working = False

        return answer

    def discreet(self, reply: Any) -> Any:
        """The fleet gets the kind of an error that Flower has written itself: with a full disk, an app that cannot be
        unpacked, its text names every file."""
        from flwr.app import Error

        if reply.has_error() and reply.error.code not in set(Decline):
            say({"failed": reply.error.reason})
            reply.error = Error(int(Decline.FAILED), Decline.FAILED.sentence)
        return reply

    @property
    def refused(self) -> bool:
        return bool(self._refusal)


def say(what: dict[str, Any]) -> None:
    """To the station, through the SuperNode's output, which both have."""
    sys.stdout.write(f"{SAYS}{json.dumps(what)}\n")
    sys.stdout.flush()


def move_in(rules: Rules) -> None:
    """Enter the control group, and say who we are."""
    if os.getsid(0) != os.getpid():
        os.setsid()  # the leader of a group of its own, which can be stopped as one
        priority.step_back()  # again: a new session competes as an equal
    if rules.cgroup:
        Path(rules.cgroup, "cgroup.procs").write_text(str(os.getpid()))
    tenant = Path(rules.tenant)
    new = tenant.with_name(f".{tenant.name}.{os.getpid()}")
    new.write_bytes(msgspec.json.encode(Tenant(os.getpid(), born(os.getpid()))))
    new.replace(tenant)


def attach(answer: Answer) -> None:
    """Let `answer` stand between Flower's runtime and the app."""
    import flwr.supernode.runtime.run_clientapp as flower

    pull, install, handlers, loader, _, push = (getattr(flower, name) for name in TOUCHED)

    def pull_task_input(client: Any) -> Any:
        message, context, run, fab = pull(client)
        answer.judge(fab.content)
        return message, context, run, fab

    def install_from_fab(content: bytes, **how: Any) -> Any:
        return None if answer.refused else install(content, **how)

    def register_signal_handlers(*args: Any, **kwargs: Any) -> None:
        handlers(*args, **kwargs)
        signal.signal(signal.SIGTERM, answer.stop)

    def get_load_client_app_fn(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        load = loader(*args, **kwargs)
        return lambda *which: answer.load(lambda: load(*which))

    def start_parent_process_monitor(parent_pid: int) -> None:
        threading.Thread(target=_end_with, args=(parent_pid, born(parent_pid)), daemon=True).start()

    def push_message(client: Any, message: Any, context: Any) -> None:
        push(client, answer.discreet(message), context)

    for ours in (
        pull_task_input,
        install_from_fab,
        register_signal_handlers,
        get_load_client_app_fn,
        start_parent_process_monitor,
        push_message,
    ):
        setattr(flower, ours.__name__, ours)


def _end_with(parent: int, since: int) -> None:
    """As Flower does, but without a signal to the parent, which a trainer behind a fence may not send."""
    while born(parent) == since:
        time.sleep(PARENT_S)
    signal.raise_signal(signal.SIGINT)


def main() -> None:
    """What the SuperNode starts. It is the trainer, or lets one be that has its imports done already."""
    its = rules()
    answer = Answer(its, Path(sys.argv[0]).name)
    signal.signal(signal.SIGTERM, answer.stop)
    move_in(its)
    if its.warm:
        from agent.fl.warm import hand_over

        flag = _flag()
        if hand_over(its.warm, lambda: answer.wanted or flag.exists()):
            return
        if flag.exists():
            answer.stop()  # the reply is that the arm is needed; nothing has to be imported for it
    run(answer)


def rules() -> Rules:
    """Those of this process. Raises OSError, msgspec.DecodeError."""
    return msgspec.json.decode(Path(os.environ[VARIABLE]).read_bytes(), type=Rules)


def run(answer: Answer) -> None:
    """Work on one message, in a process that does nothing else."""
    signal.signal(signal.SIGTERM, answer.stop)
    move_in(answer.rules)
    found = brief.read_brief()
    shelter.enter(shelter.fence(found, _port(sys.argv), answer.rules.uid, answer.rules.gid))
    if found:
        os.environ["FLWR_HOME"] = str(Path(found.scratch) / "flower")  # where an app is unpacked
    attach(answer)
    from flwr.supernode.cli import flwr_clientapp

    sys.argv[0] = PROGRAM
    try:
        flwr_clientapp()
    finally:
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        say({"trainer_ended": os.getpid(), "peak_mb": round(peak_kb / 1024)})


def _port(argv: list[str]) -> int | None:
    """Where the SuperNode listens, on loopback."""
    for before, word in pairwise(argv):
        if before == ADDRESS and word.rpartition(":")[2].isdigit():
            return int(word.rpartition(":")[2])
    return None


def _flag() -> Path:
    found = brief.read_brief()
    return Path(found.flag if found else os.devnull + "/none")


if __name__ == "__main__":
    main()
