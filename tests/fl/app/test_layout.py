"""What travels is known from the header of the weights alone: it is what lerobot and peft really train."""

import math

import numpy as np
import pytest

from agent.errors import BadInput
from agent.fl.layout import BYTES_ON_WIRE, PROJECTIONS, TARGETS, Shape, layout
from agent.inference.bundle import Bundle
from agent.inference.loading import load_policy
from agent.inference.training.plan import Method
from tests.inference import checkpoints


@pytest.mark.parametrize("targets", [(), ("q_proj", "o_proj", "gate_proj"), ("state_proj",), ("k_proj", *PROJECTIONS)])
def test_an_adapter_is_what_peft_trains(base: Bundle, targets: tuple[str, ...]) -> None:
    shape = Shape(rank=3, targets=targets)
    policy = load_policy(base).policy
    policy.config.pretrained_path = base.policy
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 3, "target_modules": shape.pattern})
    real = {
        name.replace(".default.", "."): tuple(each.shape)
        for name, each in wrapped.named_parameters()
        if each.requires_grad
    }
    assert dict(layout(base, shape).arrays) == real


def test_without_targets_they_are_lerobots_own(base: Bundle) -> None:
    policy = load_policy(base).policy
    policy.config.pretrained_path = base.policy
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    real = {name.replace(".default.", ".") for name, each in wrapped.named_parameters() if each.requires_grad}
    assert set(layout(base, Shape(rank=4)).arrays) == real
    assert set(TARGETS) == {name.split(".lora_")[0].rpartition(".")[2] for name in real}


def test_the_action_expert_is_what_lerobot_trains_of_it(base: Bundle) -> None:
    policy = load_policy(base).policy.requires_grad_(True)
    inner = policy.model.vlm_with_expert
    inner.train_expert_only = inner.freeze_vision_encoder = True
    inner.set_requires_grad()
    policy.model.set_requires_grad()
    real = {name: tuple(each.shape) for name, each in policy.named_parameters() if each.requires_grad}
    plan = layout(base, Shape(Method.EXPERT))
    assert dict(plan.arrays) == real
    begun = plan.begin(base, 0)
    for name, value in policy.state_dict().items():
        if name in begun:
            np.testing.assert_array_equal(begun[name], value.numpy())


def test_an_adapter_begins_as_peft_draws_it_and_changes_nothing(base: Bundle) -> None:
    plan = layout(base, Shape(rank=16))
    begun = plan.begin(base, seed=5)
    assert {name: value.shape for name, value in begun.items()} == dict(plan.arrays)
    for name, value in begun.items():
        if "lora_B" in name:
            assert not value.any()
        else:
            bound = 1 / math.sqrt(value.shape[1])
            assert np.abs(value).max() <= bound
            if value.size > 100:
                assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    again = plan.begin(base, seed=5)
    other = plan.begin(base, seed=6)
    assert all((begun[name] == again[name]).all() for name in begun)
    assert any((begun[name] != other[name]).any() for name in begun)


def test_bytes_a_round_are_known_before_joining(base: Bundle) -> None:
    plan = layout(base, Shape(rank=4))
    sizes = sum(math.prod(shape) for shape in plan.arrays.values())
    assert plan.parameters == sizes
    assert plan.bytes_a_round == sizes * BYTES_ON_WIRE
    assert layout(base, Shape(rank=8)).bytes_a_round == 2 * plan.bytes_a_round
    assert plan.policy_parameters > 200_000


def test_targets_that_are_not_there_are_named(base: Bundle) -> None:
    with pytest.raises(BadInput, match=r"no router.*It has down_proj, .*q_proj, .*state_proj"):
        layout(base, Shape(targets=("q_proj", "router")))


def test_only_smolvla_has_adapters(act_bundle: Bundle) -> None:
    with pytest.raises(BadInput, match="only SmolVLA"):
        layout(act_bundle, Shape())


@pytest.fixture(scope="module")
def act_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from agent.inference.importer import Wish, import_checkpoint

    checkpoint = checkpoints.act(tmp_path_factory.mktemp("checkpoints") / "act")
    return import_checkpoint(checkpoint, tmp_path_factory.mktemp("policies"), Wish("act"))
