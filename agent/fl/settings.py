"""Every number of a federated run, as `--run-config` gives them. Server and stations read and check the same ones.

The defaults are those of `[tool.flwr.app.config]` in pyproject.toml; Flower lets only what is named there be
overridden. The limits hold on stations, too, whoever controls the server.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from agent.config import NAME_PATTERN
from agent.errors import BadInput
from agent.inference.training.plan import Method

type Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
type Seconds = Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400)]
type Factor = Annotated[float, msgspec.Meta(ge=0, le=1000)]


class Aggregation(StrEnum):
    FEDAVG = "fedavg"  # mean, by rows learnt from (McMahan et al. 2017)
    FEDPROX = "fedprox"  # the same, with stations held near the global adapter (Li et al. 2018)
    FEDADAM = "fedadam"  # Adam on the server (Reddi et al. 2020)
    FEDMEDIAN = "fedmedian"  # median of each number: one broken station cannot shift it (Yin et al. 2018)
    TRIMMED = "trimmed-mean"  # mean without the ends (Yin et al. 2018)


class Division(StrEnum):
    """How a simulation divides the episodes of one dataset among its stations."""

    IID = "iid"
    TASK = "task"  # each station has seen some of the tasks only
    DIRICHLET = "dirichlet"  # of each task, stations have shares of very different size
    STATIONS = "stations"  # `dataset` is a folder of datasets, and each station has one, in the order of their names


class Compression(StrEnum):
    NONE = "none"  # fp16
    INT8 = "int8"  # a byte a number
    TOP_K = "top-k"  # the largest of them, and where they belong


class Scaling(StrEnum):
    """Whose mean and spread of the joints all stations use throughout a run."""

    POLICY = "policy"  # the base policy's own
    FLEET = "fleet"  # of all stations that consent, asked for once, before the first round


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Read with `read_settings`. Names in `--run-config` have `-` instead of `_`."""

    # What is learnt.
    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)] = "federated"  # the same name again goes on with it
    policy: str = "demo-reach"  # base: a bundle's folder, or its name among those shipped with the repository
    begin_with: str = ""  # folder of an adapter of the same base, e.g. the last of another run
    method: Method = Method.LORA
    adapter_rank: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    adapter_alpha: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    adapter_targets: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_,]*$")] = ""  # e.g. q_proj,v_proj; none: lerobot's
    statistics: Scaling = Scaling.POLICY
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0

    # What a station does in a round.
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20
    local_seconds: Seconds = 0.0  # stop earlier, with what there is; 0: never
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-3
    learning_rate_decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0  # factor from round to round
    min_examples: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0  # less is not sent; 0: a batch

    # How rounds go.
    strategy: Aggregation = Aggregation.FEDAVG
    num_server_rounds: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 3
    fraction_fit: Share = 1.0
    fraction_evaluate: Share = 1.0
    min_available_nodes: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2
    min_replies: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1  # fewer change nothing
    node_timeout_s: Seconds = 600.0  # wait so long for nodes to be online
    round_timeout_s: Seconds = 3600.0  # and so long for their replies
    max_empty_rounds: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3  # in a row: the run is given up
    deliver_s: Seconds = 0.0  # after the last round, so long for nodes that were away
    proximal_mu: Factor = 0.01
    server_learning_rate: Factor = 0.01
    server_beta_1: Share = 0.9
    server_beta_2: Share = 0.99
    server_tau: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-3
    trim: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.2

    # What leaves a station.
    compression: Compression = Compression.NONE
    top_k: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    privacy_clip: Factor = 0.0  # 0: off
    privacy_noise: Factor = 0.0  # standard deviation, as a multiple of the clip
    privacy_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5

    # Where the server keeps rounds, and what stands in for stations in a simulation.
    output: str = ""  # absolute folder; none: SO_AGENT_FLEET_DIR, else ~/.local/state/so-agent/fleet
    dataset: str = ""  # absolute folder of a LeRobotDataset; none: one that is drawn, see synthetic.py
    partition: Division = Division.IID
    partition_alpha: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 0.5
    held_out: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1

    @property
    def enough(self) -> int:
        """Rows below which partial work is not sent."""
        return self.min_examples or self.batch_size

    @property
    def private(self) -> bool:
        return self.privacy_noise > 0

    def rate(self, number: int) -> float:
        """The learning rate of a round, counted from 1."""
        return self.learning_rate * self.learning_rate_decay ** (number - 1)


def read_settings(values: Mapping[str, object]) -> Settings:
    """From a run's configuration. Raises BadInput, naming what is wrong."""
    try:
        settings = msgspec.convert(dict(values), Settings, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(
            f"The run's configuration is not possible: {error}.", "See docs/federation-app.md for what is."
        ) from error
    if settings.method is Method.FULL:
        raise BadInput("With method full, a whole policy would travel.", "Give method=lora, or expert.")
    if settings.private and not settings.privacy_clip:
        raise BadInput("privacy-noise without privacy-clip protects nothing.", "Give privacy-clip, e.g. 1.0.")
    return settings


def defaults() -> dict[str, str | int | float]:
    """What `[tool.flwr.app.config]` holds."""
    found: dict[str, str | int | float] = msgspec.to_builtins(Settings())
    return found
