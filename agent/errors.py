"""The one family of errors this agent raises on purpose.

Three branches, by what the caller can do about it: `Transient` goes away by trying again, `Fatal` needs
a person, `Safety` stops the arm. Every error carries a sentence that says what is wrong (`message`) and
one that says what to do (`hint`); both are shown to people as they are.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the `so-agent` command. They are an interface."""

    DONE = 0
    BAD_INPUT = 2
    REFUSED = 3
    NOT_RUNNING = 4
    DEVICE_FAULT = 5


class AgentError(Exception):
    """Root of the family. `exit_code` is what the command line returns for it."""

    exit_code: Exit = Exit.DEVICE_FAULT
    code: str = "agent-error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class Transient(AgentError):
    """Expected to go away by itself; the caller may try again."""

    code = "transient"


class Fatal(AgentError):
    """Will not go away without a person."""

    code = "fatal"


class Safety(AgentError):
    """The arm must not move until this is cleared."""

    code = "safety"


class BadInput(Fatal):
    """What the user typed or configured cannot be used."""

    exit_code = Exit.BAD_INPUT
    code = "bad-input"


class Refused(Fatal):
    """Valid, but not in this mode. The message names the mode, the hint says what to do."""

    exit_code = Exit.REFUSED
    code = "refused"


class NoControl(Refused):
    """Moving the arm from a distance needs a lease, which is over or somebody else's."""

    code = "no-control"


class NotRunning(Transient):
    """Nothing answers on the agent's socket."""

    exit_code = Exit.NOT_RUNNING
    code = "not-running"


class DeviceFault(Transient):
    """A servo bus or camera does not do what it should."""

    code = "device-fault"


class BadPrediction(Transient):
    """A policy gave something that is not a chunk of actions. Nothing of it is acted on."""

    code = "bad-prediction"


class EstopLatched(Safety):
    """The emergency stop is latched; only an explicit local reset clears it."""

    exit_code = Exit.REFUSED
    code = "estop-latched"


FAMILY: dict[str, type[AgentError]] = {
    kind.code: kind
    for kind in (
        AgentError,
        Transient,
        Fatal,
        Safety,
        BadInput,
        Refused,
        NoControl,
        NotRunning,
        DeviceFault,
        BadPrediction,
        EstopLatched,
    )
}


def from_code(code: str, message: str, hint: str = "") -> AgentError:
    """Rebuild an error that crossed a socket. Unknown codes become the root, never a crash."""
    return FAMILY.get(code, AgentError)(message, hint)
