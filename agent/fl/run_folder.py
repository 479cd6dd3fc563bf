"""What the server keeps of a run, so that it can go on after a crash, and people see what came of it.

OUTPUT/RUN/
    run.json                    what all of its rounds have in common
    rounds/000000/adapter/      what it began with
    rounds/000001/adapter/      the global adapter after round 1 (adapter.py)
                  round.json    who took part, what it cost, how good it is (`Round`)
                  strategy.safetensors    what the strategy remembers, if it does
    curve.png, curve.json       the losses by round

A round is there as soon as its adapter is; round.json is written again when stations have judged it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import BadInput
from agent.fl import curve
from agent.fl.adapter import Adapter, open_adapter, write_adapter
from agent.fl.layout import Shape
from agent.fl.settings import Settings
from agent.inference.bundle import Bundle
from agent.inference.importer import sync

RUN: Final = "run.json"
ROUNDS: Final = "rounds"
ROUND: Final = "round.json"
ADAPTER: Final = "adapter"
MEMORY: Final = "strategy.safetensors"
DIGITS: Final = 6
FORMAT: Final = 1

type Arrays = dict[str, NDArray[np.float32]]


class Round(msgspec.Struct):
    """What happened in one round. Losses are means, by rows."""

    round: int
    began_at: str = ""
    seconds: float = 0.0  # of training: from asking to the last reply, or the time-out
    online: int = 0  # nodes
    asked: int = 0
    used: int = 0  # replies that changed the adapter
    partial: int = 0  # of these, stopped before all steps were done
    declined: dict[str, int] = msgspec.field(default_factory=dict)  # by reason
    broken: int = 0  # replies that made no sense
    silent: int = 0  # no reply in time
    rows: float = 0.0
    steps: float = 0.0
    train_loss: float | None = None
    epsilon: float | None = None  # the most that a station has spent, where there is noise
    bytes_to_station: int = 0  # arrays, to each
    bytes_from_station: int = 0  # arrays, of the largest reply
    held_out_loss: float | None = None  # of the adapter after this round
    held_out_rows: float = 0.0
    judged_by: int = 0


class Common(msgspec.Struct, frozen=True):
    """What may not differ between rounds of a run: their adapters could not be averaged."""

    format: int
    run: str
    policy: str
    policy_hash: str
    shape: Shape
    statistics: dict[str, list[float]]
    settings: dict[str, Any]  # when it was begun; for people


class RunFolder:
    """One run. Every change is on the disk when the call returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def common(self) -> Common | None:
        """What the run was begun with; None when it was not begun. Raises BadInput when it cannot be read."""
        path = self.folder / RUN
        try:
            common = msgspec.json.decode(path.read_bytes(), type=Common)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise BadInput(f"Cannot read {path}: {error}.", "Give the run another name.") from error
        if common.format != FORMAT:
            raise BadInput(f"{path} is of another version of the agent.", "Give the run another name.")
        return common

    def begin(self, settings: Settings, base: Bundle, statistics: dict[str, list[float]], arrays: Arrays) -> Common:
        """Round 0, on the disk before anything is asked of a station."""
        common = Common(
            FORMAT,
            settings.name,
            base.manifest.name,
            base.hash,
            Shape.of(settings),
            statistics,
            msgspec.to_builtins(settings),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep_adapter(common, settings, 0, arrays, {})
        self._write(self._round(0) / ROUND, Round(0))
        self._write(self.folder / RUN, common)  # last: without it, nothing was begun
        return common

    def check_same(self, common: Common, settings: Settings, base: Bundle) -> None:
        """Raises BadInput when these are settings of another run."""
        for what, begun, wanted in (
            ("the policy", common.policy_hash, base.hash),
            ("method, rank, alpha or targets of the adapter", common.shape, Shape.of(settings)),
            ("statistics", common.settings.get("statistics"), str(settings.statistics)),
        ):
            if begun != wanted:
                raise BadInput(
                    f"The run {common.run} was begun with another value of {what}: {begun}, not {wanted}.",
                    "Give it another name, or the former settings to go on with it.",
                )

    def last(self) -> Adapter:
        """The newest adapter that is whole. Raises BadInput when there is none."""
        for folder in sorted((self.folder / ROUNDS).glob("[0-9]*"), reverse=True):
            if (folder / ADAPTER).is_dir():
                return open_adapter(folder / ADAPTER)
        raise BadInput(f"{self.folder} holds no round.", "Give the run another name.")

    def keep(
        self,
        common: Common,
        settings: Settings,
        round_: Round,
        arrays: Arrays,
        memory: Mapping[str, NDArray[np.float32]],
    ) -> Adapter:
        """A round that changed the adapter. Raises OSError."""
        from safetensors.numpy import save_file

        folder = self._round(round_.round)
        folder.mkdir(parents=True, exist_ok=True)
        if memory:
            save_file(dict(memory), folder / MEMORY)
            sync(folder / MEMORY)
        self._write(folder / ROUND, round_)
        metrics = {"train-loss": round_.train_loss} if round_.train_loss is not None else {}
        return self._keep_adapter(common, settings, round_.round, arrays, metrics)

    def note(self, round_: Round) -> None:
        """What became known of a round later, or of one that changed nothing."""
        folder = self._round(round_.round)
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder / ROUND, round_)

    def memory(self, number: int) -> Arrays:
        """What the strategy remembered after a round; nothing where it does not."""
        from safetensors.numpy import load_file

        path = self._round(number) / MEMORY
        return load_file(path) if path.exists() else {}

    def rounds(self) -> list[Round]:
        """In their order. Raises BadInput when one cannot be read."""
        found = []
        for path in sorted((self.folder / ROUNDS).glob(f"[0-9]*/{ROUND}")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Round))
            except (OSError, msgspec.DecodeError) as error:
                raise BadInput(f"Cannot read {path}: {error}.", "Remove it; the adapter beside it is whole.") from error
        return found

    def draw(self) -> None:
        """curve.png and curve.json, of all rounds so far."""
        curve.write(self.folder, self.folder.name, self.rounds())

    def _round(self, number: int) -> Path:
        return self.folder / ROUNDS / f"{number:0{DIGITS}d}"

    def _keep_adapter(
        self, common: Common, settings: Settings, number: int, arrays: Arrays, metrics: Mapping[str, float]
    ) -> Adapter:
        return write_adapter(
            self._round(number) / ADAPTER,
            arrays,
            common.shape,
            run=common.run,
            number=number,
            rounds=settings.num_server_rounds,
            policy=common.policy,
            policy_hash=common.policy_hash,
            statistics=common.statistics,
            metrics=metrics,
        )

    def _write(self, path: Path, value: msgspec.Struct) -> None:
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        sync(new)
        new.replace(path)
        sync(path.parent)
