"""Mean and spread of the joints: one set for all stations, fixed for a run. They say what a number inside the policy is
in degrees; averaged weights of policies that disagree about that mean nothing.

By default they are the base policy's own. Of a fleet, each station that consents sends how many rows it has, their mean
and M2 (the sum of squares about the mean) once, before the first round; they are pooled exactly (Chan et al. 1979).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.errors import BadInput
from agent.inference.bundle import Bundle
from agent.inference.checkpoint import ACTION, NORMALIZER, PREPROCESSOR, STATE, STATISTICS
from agent.inference.contents import read_json
from agent.messages import JOINTS

if TYPE_CHECKING:
    from agent.inference.loading import Loaded

COUNT: Final = "count"
FEATURES: Final = {STATE: "STATE", ACTION: "ACTION"}
LEAST_SPREAD: Final = 1e-3
"""Degrees. A joint that nobody moved would be scaled by infinity."""

type Numbers = dict[str, list[float]]


def of_policy(bundle: Bundle) -> Numbers:
    """`action.mean` -> six numbers, and so on: those that the policy scales by. Empty when it scales nothing."""
    from safetensors.numpy import load_file

    found: Numbers = {}
    for step in read_json(bundle.policy / PREPROCESSOR)["steps"]:
        if step["registry_name"] != NORMALIZER or "state_file" not in step:
            continue
        there = load_file(bundle.policy / step["state_file"])
        modes = step.get("config", {}).get("norm_map", {})
        for feature, kind in FEATURES.items():
            for name in STATISTICS[modes.get(kind, "IDENTITY")]:
                if (key := f"{feature}.{name}") in there:
                    found[key] = [float(number) for number in there[key].ravel()]
    return found


def of_rows(dataset: Path, episodes: Iterable[int]) -> Numbers:
    """Count, mean and M2 of state and action over all rows of some episodes."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = []
    wanted = pa.array(list(episodes), pa.int64())
    for path in sorted((dataset / "data").glob("*/*.parquet")):
        table = pq.read_table(path, columns=["episode_index", STATE, ACTION])
        mine = table.filter(pc.is_in(table["episode_index"], value_set=wanted))
        if mine.num_rows:
            parts.append({feature: np.stack(mine[feature].to_numpy()).astype(np.float64) for feature in FEATURES})
    return pool([_moments(part) for part in parts])


def pool(stations: Sequence[Mapping[str, Any]]) -> Numbers:
    """Of all together. Raises BadInput for what is not six finite numbers each, and when nobody has rows."""
    total = 0.0
    means: dict[str, NDArray[np.float64]] = {}
    squares: dict[str, NDArray[np.float64]] = {}
    for station in stations:
        (count,) = _numbers(station, COUNT, 1)
        if count <= 0:
            continue
        for feature in FEATURES:
            mean, m2 = (_numbers(station, f"{feature}.{name}", len(JOINTS)) for name in ("mean", "m2"))
            if total:
                gap = mean - means[feature]
                means[feature] = means[feature] + gap * count / (total + count)
                squares[feature] = squares[feature] + m2 + gap**2 * total * count / (total + count)
            else:
                means[feature], squares[feature] = mean, m2
        total += count
    if not total:
        raise BadInput("No station has told what its joints do.", "Run with statistics=policy.")
    found: Numbers = {COUNT: [total]}
    for feature in FEATURES:
        found |= {f"{feature}.mean": means[feature].tolist(), f"{feature}.m2": squares[feature].tolist()}
    return found


def for_policy(bundle: Bundle, pooled: Mapping[str, Sequence[float]]) -> Numbers:
    """What a policy scales by, from pooled ones. Raises BadInput for one that scales by more than mean and spread."""
    own = of_policy(bundle)
    count = pooled[COUNT][0]
    found: Numbers = {}
    for name in own:
        feature, _, kind = name.rpartition(".")
        if kind not in ("mean", "std"):
            raise BadInput(
                f"{bundle.manifest.name} scales by {kind}, which no sum of stations tells.",
                "Run with statistics=policy.",
            )
        if kind == "mean":
            found[name] = list(pooled[name])
        else:
            spread = np.sqrt(np.asarray(pooled[f"{feature}.m2"]) / count)
            found[name] = np.maximum(spread, LEAST_SPREAD).tolist()
    return found


def give(loaded: "Loaded", numbers: Mapping[str, Sequence[float]]) -> None:
    """Let a loaded policy scale by these. Raises BadInput when they are not the ones that it scales by."""
    import torch
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    own = of_policy(loaded.bundle)
    if set(own) != set(numbers):
        odd = ", ".join(sorted(set(own) ^ set(numbers)))
        raise BadInput(f"The run's statistics are not those that {loaded.bundle.manifest.name} scales by: {odd}.")
    values = {name: _numbers(numbers, name, len(JOINTS)).astype(np.float32) for name in numbers}
    for pipeline in (loaded.preprocessor, loaded.postprocessor):
        for step in pipeline.steps:
            if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
                state = step.state_dict()
                step.load_state_dict(state | {name: torch.from_numpy(each) for name, each in values.items()})


def as_dataset(numbers: Mapping[str, Sequence[float]]) -> dict[str, dict[str, list[float]]]:
    """As a LeRobotDataset's meta/stats.json has them."""
    found: dict[str, dict[str, list[float]]] = {feature: {} for feature in FEATURES}
    for name, values in numbers.items():
        feature, _, kind = name.rpartition(".")
        found[feature][kind] = list(values)
    return found


def _moments(rows: Mapping[str, NDArray[np.float64]]) -> Numbers:
    found: Numbers = {COUNT: [float(len(rows[STATE]))]}
    for feature, values in rows.items():
        mean = values.mean(axis=0)
        found |= {f"{feature}.mean": mean.tolist(), f"{feature}.m2": ((values - mean) ** 2).sum(axis=0).tolist()}
    return found


def _numbers(record: Mapping[str, Any], name: str, size: int) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(record[name], np.float64).ravel()
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"There is no {name} of numbers.") from error
    if numbers.shape != (size,) or not np.isfinite(numbers).all():
        raise BadInput(f"{name} is not {size} finite numbers.")
    return numbers
