"""The process that compares a candidate, from the daemon's side: begun when nobody needs the arm, ended when somebody
does. It can begin again at any time, so ending it loses nothing but time."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import AgentError, DeviceFault, from_code
from agent.fl.candidate import Job, Problem, Verdict
from agent.fl.environment import quiet
from agent.fl.launch import Launch, command

TIMEOUT_S: Final = 3600.0
"""A full-size policy predicts for ten seconds on a small computer; 64 times that, at idle priority."""


class Comparison:
    """At most one at a time."""

    def __init__(self, home: Path) -> None:
        """`home`: the folder of federation."""
        self._home = home
        self._process: Process | None = None
        self._ended = False

    @property
    def running(self) -> bool:
        return self._process is not None

    async def run(self, job: Job) -> Verdict | None:
        """None when it was ended. Raises what made it fail."""
        cache = self._home / "trial-cache"
        environment = quiet(self._home / "flower") | {"HF_DATASETS_CACHE": str(cache), "HF_HOME": str(cache)}
        words = (sys.executable, "-m", "agent.fl.candidate", msgspec.json.encode(job).decode())
        self._ended = False
        with (self._home / "candidate.log").open("wb") as log:
            process = self._process = await asyncio.create_subprocess_exec(
                *command(Launch(words, idle=True)), stdin=DEVNULL, stdout=PIPE, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError as error:
            raise DeviceFault(f"The comparison took longer than {TIMEOUT_S:.0f} s.", "See candidate.log.") from error
        finally:
            self._kill(process)
            await process.wait()
            self._process = None
            shutil.rmtree(cache, ignore_errors=True)
        if self._ended:
            return None
        return _read(output, process.returncode or 0)

    def end(self) -> None:
        """Now, and without waiting. `run` returns None."""
        if self._process:
            self._ended = True
            self._kill(self._process)

    @staticmethod
    def _kill(process: Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(output: bytes, code: int) -> Verdict:
    last = output.strip().rpartition(b"\n")[2]
    try:
        result = msgspec.json.decode(last, type=Verdict | Problem)
    except msgspec.DecodeError as error:
        ended = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise AgentError(f"The comparison ended by itself ({ended}).", "See candidate.log.") from error
    if isinstance(result, Problem):
        raise from_code(result.code, result.message, result.hint)
    return result
