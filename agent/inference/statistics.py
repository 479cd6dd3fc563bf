"""Give a policy the statistics of a dataset: for policies that carry none of their own, as `lerobot/smolvla_base`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent.errors import BadInput
from agent.inference.checkpoint import ACTION, NORMALIZER, POSTPROCESSOR, PREPROCESSOR, STATE, UNNORMALIZER
from agent.inference.contents import read_json
from agent.messages import JOINTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IN_DATASET: Final = Path("meta/stats.json")
"""Where a LeRobotDataset keeps them."""

WANTED: Final = ("mean", "std", "min", "max", "q01", "q10", "q90", "q99")


def give_statistics(policy: Path, source: Path) -> None:
    """Write a dataset's statistics of state and action into a checkpoint folder; those of cameras stay.

    Raises BadInput when the dataset has none of six joints.
    """
    from safetensors.numpy import load_file, save_file

    own = _read(source)
    for file, kind in ((PREPROCESSOR, NORMALIZER), (POSTPROCESSOR, UNNORMALIZER)):
        pipeline = read_json(policy / file)
        for number, step in enumerate(pipeline["steps"]):
            if step["registry_name"] != kind:
                continue
            name = step.setdefault("state_file", f"{Path(file).stem}_step_{number}_{kind}.safetensors")
            old = load_file(policy / name) if (policy / name).exists() else {}
            kept = {key: value for key, value in old.items() if key.startswith("observation.image")}
            save_file(kept | own, policy / name)
        (policy / file).write_text(json.dumps(pipeline, indent=2), encoding="utf-8")


def _read(source: Path) -> "dict[str, NDArray[np.float32]]":
    import numpy as np

    path = source / IN_DATASET if source.is_dir() else source
    values: dict[str, Any] = read_json(path)
    found = {}
    for feature in (STATE, ACTION):
        about = values.get(feature)
        if not isinstance(about, dict):
            raise BadInput(f"{path} has no statistics of {feature}.", "Name a dataset of this arm.")
        for name in WANTED:
            if name in about:
                try:
                    numbers = np.asarray(about[name], np.float32)
                except (TypeError, ValueError) as error:
                    raise BadInput(f"{path}: {feature}.{name} holds no numbers.", "Name a dataset.") from error
                if numbers.shape != (len(JOINTS),) or not np.isfinite(numbers).all():
                    raise BadInput(
                        f"{path}: {feature}.{name} has shape {numbers.shape}, not six finite numbers.",
                        "Name a dataset of an SO arm.",
                    )
                found[f"{feature}.{name}"] = numbers
    return found
