"""Mean and spread of a fleet are those of all its rows together, and every station scales by them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from agent.errors import BadInput
from agent.fl.statistics import as_dataset, for_policy, give, of_policy, of_rows, pool
from agent.inference.bundle import Bundle
from agent.inference.loading import load_policy
from tests.fl.app.conftest import EPISODES
from tests.inference.checkpoints import MEANS, SPREADS


def test_the_policys_own_are_what_it_scales_by(base: Bundle) -> None:
    assert of_policy(base) == {
        "observation.state.mean": list(MEANS),
        "observation.state.std": list(SPREADS),
        "action.mean": list(MEANS),
        "action.std": list(SPREADS),
    }


def test_pooled_statistics_are_those_of_all_rows(base: Bundle, dataset: Path) -> None:
    parts = [(0, 3), (1,), (2, 4, 5)]
    pooled = pool([of_rows(dataset, part) for part in parts])
    rows = np.concatenate(
        [np.stack(pq.read_table(path)["action"].to_numpy()) for path in sorted(dataset.glob("data/*/*.parquet"))]
    ).astype(np.float64)
    assert pooled["count"] == [len(rows)]
    found = for_policy(base, pooled)
    np.testing.assert_allclose(found["action.mean"], rows.mean(axis=0), rtol=1e-9)
    moves = rows.std(axis=0) > 1e-3
    np.testing.assert_allclose(np.array(found["action.std"])[moves], rows.std(axis=0)[moves], rtol=1e-9)
    # The last joint never moved: nothing is divided by zero.
    assert not moves[-1]
    assert found["action.std"][-1] == 1e-3
    stats = json.loads((dataset / "meta" / "stats.json").read_text())
    np.testing.assert_allclose(found["observation.state.mean"], stats["observation.state"]["mean"], rtol=1e-4)


def test_a_station_scales_by_what_travels(base: Bundle, dataset: Path) -> None:
    numbers = for_policy(base, pool([of_rows(dataset, range(EPISODES))]))
    loaded = load_policy(base)
    give(loaded, numbers)
    degrees = loaded.postprocessor(torch.zeros(1, base.manifest.chunk_size, 6))[0]
    np.testing.assert_allclose(degrees[0].numpy(), numbers["action.mean"], rtol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda numbers: numbers.pop("action.std"),
        lambda numbers: numbers.update({"action.q01": [0.0] * 6}),
        lambda numbers: numbers.update({"action.std": [1.0] * 5}),
        lambda numbers: numbers.update({"action.mean": [float("nan")] * 6}),
    ],
)
def test_others_than_the_policys_are_refused(base: Bundle, spoil: object) -> None:
    numbers = of_policy(base)
    spoil(numbers)  # type: ignore[operator]
    with pytest.raises(BadInput):
        give(load_policy(base), numbers)


def test_nobody_who_says_anything_is_a_sentence() -> None:
    with pytest.raises(BadInput, match="No station has told"):
        pool([])
    with pytest.raises(BadInput, match="is not 6 finite numbers"):
        pool(
            [
                {
                    "count": 3,
                    **{
                        f"{name}.{kind}": [0.0] * 5
                        for name in ("action", "observation.state")
                        for kind in ("mean", "m2")
                    },
                }
            ]
        )


def test_they_are_written_as_a_dataset_has_them(base: Bundle) -> None:
    written = as_dataset(of_policy(base))
    assert written["action"] == {"mean": list(MEANS), "std": list(SPREADS)}
    assert set(written) == {"observation.state", "action"}
