"""Real-time chunking without autograd: bit by bit what lerobot computes with it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, RTCAttentionSchedule
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep
from lerobot.processor.converters import create_transition
from torch import Tensor

from agent.inference.engine import Actions, Guidance
from agent.inference.guidance import MAX_WEIGHT, ModelSpace, Pull, Schedule, prefix_weights
from tests.inference.checkpoints import statistics

SIZE, WIDTH = 50, 8
SCHEDULES: tuple[Schedule, ...] = ("linear", "exp", "ones", "zeros")


def processor(schedule: Schedule) -> RTCProcessor:
    kind = RTCAttentionSchedule[schedule.upper()]
    return RTCProcessor(RTCConfig(prefix_attention_schedule=kind, max_guidance_weight=MAX_WEIGHT))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60), st.sampled_from(SCHEDULES))
def test_weights_are_lerobot_s(delay: int, horizon: int, size: int, schedule: Schedule) -> None:
    wanted = processor(schedule).get_prefix_weights(delay, min(horizon, size), size)
    assert torch.equal(prefix_weights(delay, horizon, size, schedule), wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("delay", "horizon", "known"), [(0, 10, 50), (4, 20, 46), (10, 10, 40), (13, 25, 20), (25, 5, 30), (49, 50, 1)]
)
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_guided_flow_is_bit_equal_to_lerobot_s(
    schedule: Schedule, delay: int, horizon: int, known: int, steps: int
) -> None:
    random = torch.Generator().manual_seed(7)
    matrix = torch.randn(WIDTH, WIDTH, generator=random) / WIDTH
    target = torch.randn(known, WIDTH, generator=random)

    def flow(x: Tensor) -> Tensor:
        return torch.tanh(x @ matrix)

    theirs = mine = torch.randn(SIZE, WIDTH, generator=random)
    pull = Pull.towards(target, delay, horizon, SIZE, schedule)
    for step in range(steps):
        time = 1.0 + step * (-1.0 / steps)
        theirs = theirs - 1.0 / steps * processor(schedule).denoise_step(
            x_t=theirs,
            prev_chunk_left_over=target,
            inference_delay=delay,
            time=time,
            original_denoise_step_partial=lambda x: flow(x).detach(),
            execution_horizon=horizon,
        )
        mine = mine - 1.0 / steps * pull.correct(flow(mine), mine, time)
        assert torch.equal(mine, theirs.detach())


def test_nothing_is_drawn_beyond_the_actions_that_are_known() -> None:
    pull = Pull.towards(torch.ones(6, WIDTH), delay=2, horizon=30, size=SIZE)
    assert (pull.weights[:6] > 0).all()
    assert (pull.weights[6:] == 0).all()
    x = torch.randn(SIZE, WIDTH)
    assert torch.equal(pull.correct(x, x, 0.5)[6:], x[6:])


@pytest.mark.parametrize(
    ("mode", "steady"),
    list(itertools.product([NormalizationMode.MEAN_STD, NormalizationMode.MIN_MAX], [False, True])),
)
def test_degrees_come_back_into_the_model_s_space_as_its_normaliser_puts_them(
    mode: NormalizationMode, steady: bool
) -> None:
    stats = {"action": {name: values.clone() for name, values in statistics()["action"].items()}}
    if steady:  # a joint that never moved while the policy was trained
        stats["action"]["std"][3] = 0
        stats["action"]["max"][3] = stats["action"]["min"][3]
    about = {"features": {"action": PolicyFeature(FeatureType.ACTION, (6,))}, "stats": stats}
    back = UnnormalizerProcessorStep(norm_map={FeatureType.ACTION: mode}, **about)
    forth = NormalizerProcessorStep(norm_map={FeatureType.ACTION: mode}, **about)

    def finish(chunk: Tensor) -> Actions:
        return back(create_transition(action=chunk))[TransitionKey.ACTION][0].numpy()

    actions = np.random.default_rng(0).uniform(-90, 90, (SIZE, 6)).astype(np.float32)
    found = ModelSpace.of(finish, SIZE).enter(actions)
    wanted = forth(create_transition(action=torch.from_numpy(actions)))[TransitionKey.ACTION]
    moving = [joint for joint in range(6) if not (steady and joint == 3)]
    torch.testing.assert_close(found[:, moving], wanted[:, moving], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(found).all()


def test_guidance_in_degrees_draws_the_model_s_joints_and_its_unused_columns_to_zero() -> None:
    space = ModelSpace(np.full(6, 10, np.float32), np.full(6, 20, np.float32))
    pull = space.pull(Guidance(np.full((5, 6), 30, np.float32), delay=2, horizon=4), SIZE, WIDTH)
    assert torch.equal(pull.target[:5, :6], torch.ones(5, 6))
    assert torch.equal(pull.target[:, 6:], torch.zeros(SIZE, WIDTH - 6))
    assert pull.weights[:2].tolist() == [[1.0], [1.0]]
    assert (pull.weights[4:] == 0).all()
