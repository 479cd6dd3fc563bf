"""An adapter on disk is whole or not there, stock peft opens it, and with its base it is a policy like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agent.errors import BadInput
from agent.fl.adapter import Adapter, check_fits, open_adapter, policy_from, write_adapter
from agent.fl.layout import Layout, Shape, layout
from agent.fl.statistics import of_policy
from agent.inference.bundle import Bundle, open_bundle
from agent.inference.loading import load_policy
from agent.inference.training.plan import Method


def learnt(plan: Layout, seed: int = 0) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    return {name: (dice.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in plan.arrays.items()}


def written(folder: Path, base: Bundle, plan: Layout, seed: int = 0, **changes: Any) -> Adapter:
    facts: dict[str, Any] = {
        "run": "kitchen", "number": 3, "rounds": 5, "policy": base.manifest.name, "policy_hash": base.hash,
        "statistics": of_policy(base), "metrics": {"train-loss": 0.5},
    }  # fmt: skip
    return write_adapter(folder, learnt(plan, seed), plan.shape, **(facts | changes))


def test_it_comes_back_as_it_was_written(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    made = written(tmp_path / "a" / "kitchen", base, plan)
    found = open_adapter(tmp_path / "a" / "kitchen")
    assert found == made
    assert found.manifest.run == "kitchen"
    assert found.manifest.metrics == {"train-loss": 0.5}
    for name, value in found.arrays().items():
        np.testing.assert_array_equal(value, learnt(plan)[name])
    assert check_fits(found, base).arrays == plan.arrays


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    first = written(tmp_path / "a", base, plan)
    (tmp_path / ".new-a-1").mkdir()  # of a process that was killed
    second = written(tmp_path / "a", base, plan, seed=1, number=4)
    assert first.hash != second.hash
    assert open_adapter(tmp_path / "a").manifest.round == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("adapter_model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x")),
        ("adapter_config.json", lambda path: path.unlink()),
        ("adapter.json", lambda path: path.write_text(path.read_text().replace('"round": 3', '"round": 4'))),
        ("adapter.sha256", lambda path: path.unlink()),
        ("more.json", lambda path: path.write_text("{}")),
    ],
)
def test_every_byte_of_it_is_checked(tmp_path: Path, base: Bundle, plan: Layout, file: str, spoil: Any) -> None:
    written(tmp_path / "a", base, plan)
    spoil(tmp_path / "a" / file)
    with pytest.raises(BadInput):
        open_adapter(tmp_path / "a")


def test_it_fits_only_its_own_base(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    with pytest.raises(BadInput, match="belongs to reach 000000000000"):
        check_fits(written(tmp_path / "a", base, plan, policy_hash="0" * 12), base)
    other = layout(base, Shape(rank=5))
    made = write_adapter(
        tmp_path / "b", learnt(other), Shape(rank=4), run="kitchen", number=1, rounds=1, policy="reach",
        policy_hash=base.hash, statistics={},
    )  # fmt: skip
    with pytest.raises(BadInput, match="not those of reach"):
        check_fits(made, base)


def chunk(policy: Any) -> torch.Tensor:
    batch = {
        "observation.state": torch.zeros(1, 6),
        "observation.images.front": torch.full((1, 3, 48, 64), 0.5),
        "observation.images.wrist": torch.full((1, 3, 48, 64), 0.3),
        "observation.language.tokens": torch.ones(1, 8, dtype=torch.long),
        "observation.language.attention_mask": torch.ones(1, 8, dtype=torch.bool),
    }
    torch.manual_seed(0)
    with torch.no_grad():
        found: torch.Tensor = policy.predict_action_chunk(batch)
    return found


def test_stock_peft_opens_it_and_the_merged_policy_acts_the_same(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    from peft import PeftModel

    made = written(tmp_path / "kitchen", base, plan)
    merged = policy_from(made, base, tmp_path / "policies", "reach-kitchen")
    stock = PeftModel.from_pretrained(load_policy(base).policy, made.folder).eval()
    ours = load_policy(open_bundle(merged.folder)).policy
    untouched = chunk(load_policy(base).policy)
    torch.testing.assert_close(chunk(ours), chunk(stock.base_model.model), atol=1e-5, rtol=1e-5)
    assert (chunk(ours) - untouched).abs().max() > 1e-3
    assert "round 3 of the federated run kitchen" in merged.manifest.description
    assert [path.name for path in (tmp_path / "policies").iterdir()] == ["reach-kitchen"]


def test_an_action_expert_replaces_the_bases(tmp_path: Path, base: Bundle) -> None:
    plan = layout(base, Shape(Method.EXPERT))
    arrays = {name: value + 1 for name, value in plan.begin(base, 0).items()}
    made = write_adapter(
        tmp_path / "x", arrays, plan.shape, run="kitchen", number=1, rounds=1, policy="reach", policy_hash=base.hash,
        statistics=of_policy(base),
    )  # fmt: skip
    merged = policy_from(made, base, tmp_path / "policies", "expert")
    old, new = (load_file(bundle.policy / "model.safetensors") for bundle in (base, merged))
    for name, value in old.items():
        torch.testing.assert_close(new[name], value + 1 if name in arrays else value)


def test_the_merged_policy_scales_by_the_runs_statistics(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    numbers = of_policy(base) | {"action.mean": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    merged = policy_from(written(tmp_path / "a", base, plan, statistics=numbers), base, tmp_path / "p", "fleet")
    assert of_policy(merged) == numbers


def test_nothing_is_left_of_a_policy_that_fails_its_trial(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    def fails(bundle: Bundle) -> None:
        raise BadInput(f"{bundle.manifest.name} is not good enough.")

    with pytest.raises(BadInput, match="not good enough"):
        policy_from(written(tmp_path / "a", base, plan), base, tmp_path / "p", "worse", fails)
    assert list((tmp_path / "p").iterdir()) == []


def test_an_adapter_that_is_cut_off_anywhere_is_refused(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    made = written(tmp_path / "a", base, plan)
    for name in [path.name for path in made.folder.iterdir()]:
        copy = tmp_path / "copy"
        shutil.copytree(made.folder, copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(BadInput):
            open_adapter(copy)
        shutil.rmtree(copy)
    assert json.loads((made.folder / "adapter.json").read_text())["files"].keys() == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
