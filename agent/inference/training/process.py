"""The training process: `python -m agent.inference.training.process JOB`, told by a Job in JSON.

It says what it does on its standard output, one JSON object a line. SIGTERM and SIGINT make it save and end; so does
the end of whoever listens.
"""

import ctypes
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.errors import AgentError, BadInput, DeviceFault
from agent.inference.training.folder import CACHE
from agent.inference.training.messages import Event, Failed, Job
from agent.priority import step_back

"""To the kernel, when memory runs out: this process rather than the arm's."""


def main() -> int:
    """Train; 0 when it came to an end or was stopped, 1 when it could not go on."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    said = _Lines()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: said.stop())
    step_back()
    _go_on_alone()
    cache = Path(job.work) / CACHE
    # lerobot's dataset reads its tables through a copy on the disk, by default in the user's home.
    os.environ |= {"HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": str(job.threads)}
    try:
        _train(job, said)
    except AgentError as error:
        said(Failed(error.code, error.message, error.hint))
    except Exception as error:  # noqa: BLE001 - the edge of the process: lerobot, torch and PyAV share no root
        traceback.print_exc()
        said(_out_of_memory(error) if _is_memory(error) else _bug(error))
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return 1 if said.failed else 0


def _go_on_alone() -> None:
    """When whoever froze this process is killed it wakes up, finds nobody to talk to, saves and ends."""
    PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def _train(job: Job, said: "_Lines") -> None:
    from agent.inference.loading import go_offline

    go_offline()
    import torch

    from agent.inference.training.run import Training

    torch.set_num_threads(job.threads)
    training = Training(msgspec.structs.replace(job, device=_device(job.device)), said)
    said.on_stop(training.stop)
    if learnt := training.run():
        said(learnt)


def _device(wanted: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise BadInput("This computer has no GPU that torch can use.", "Leave --device out, or give --device cpu.")
    return "cuda" if there and wanted != "cpu" else "cpu"


class _Lines:
    """Standard output, which belongs to the events alone: what others print goes to standard error.

    Nobody who listens is a reason to stop, as a signal is.
    """

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.failed = False
        self._stopped = False
        self._then: Callable[[], None] = lambda: None

    def __call__(self, event: Event) -> None:
        self.failed = self.failed or isinstance(event, Failed)
        try:
            self._file.write(msgspec.json.encode(event) + b"\n")
        except BrokenPipeError:
            self.stop()

    def stop(self) -> None:
        self._stopped = True
        self._then()

    def on_stop(self, then: Callable[[], None]) -> None:
        """At once, when it was stopped before."""
        self._then = then
        if self._stopped:
            then()


def _is_memory(error: Exception) -> bool:
    """torch has a class of its own for a GPU's memory, and none for the computer's."""
    return (
        isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
    )


def _out_of_memory(error: BaseException) -> Failed:
    text = f"The memory did not suffice: {_line(error)}."
    return Failed(DeviceFault.code, text, "Begin anew with a smaller --batch, or with --method lora.")


def _bug(error: Exception) -> Failed:
    return Failed(AgentError.code, f"Training failed: {type(error).__name__}: {_line(error)}.", "The log says more.")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or "no reason given"


if __name__ == "__main__":
    sys.exit(main())
