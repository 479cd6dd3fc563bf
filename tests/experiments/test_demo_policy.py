import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, resize_with_pad

from agent.virtual.scene import Pose2
from experiments.demo_policy import network, renders
from experiments.demo_policy.episodes import ROWS_AT_REST, Episodes, moving, shrink
from experiments.demo_policy.evaluate import Control, Evaluation
from experiments.demo_policy.export import export, load, processors
from experiments.demo_policy.plan import FIRST_UNSEEN, Planner
from experiments.demo_policy.pretrain import Pretraining
from experiments.demo_policy.recipe import CHUNK, CUBES, DISCS, Recipe, quick
from experiments.demo_policy.simulator import Simulator
from experiments.demo_policy.train import Training

ROOT = Path(__file__).resolve().parents[2]
RECIPE = replace(quick(), save_every_s=0.0)
ROWS = 30


class Killed(Exception):
    """What a test throws in the middle of a stage."""


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "vlm"
    network.write_vlm(folder, RECIPE.network)
    return folder


@pytest.fixture(scope="module")
def rows() -> Episodes:
    random = np.random.default_rng(0)
    px = RECIPE.network.image_px
    images = [random.integers(0, 256, (2 * ROWS, px * 3 // 4, px, 3), dtype=np.uint8) for _ in range(2)]
    joints = [random.normal(0, 20, (2 * ROWS, 6)).astype(np.float32) for _ in range(2)]
    which = np.repeat([0, 1], ROWS)
    return Episodes(*images, *joints, which, which, np.array(["touch the blue disc", "touch the red disc"]))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> renders.Render:
    return renders.load(renders.draw(tmp_path_factory.mktemp("renders"), RECIPE, lambda *_: None))


def policy_like(vlm: Path, recipe: Recipe = RECIPE) -> SmolVLAPolicy:
    return network.build(vlm, recipe.network, recipe.seed)


def weights(policy: SmolVLAPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("px", [96, 128])
def test_images_are_shrunk_as_the_policy_will_see_them(px: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    theirs = resize_with_pad(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), px, px, pad_value=0)
    content = theirs[0, :, px // 4 :].permute(1, 2, 0).numpy()
    assert np.abs(shrink(picture, px) - content).max() < 0.51


def test_waiting_before_a_reach_is_left_out_and_some_rest_after_it_is_kept() -> None:
    actions = np.zeros((100, 6), np.float32)
    actions[20:60, 1] = np.linspace(1, 40, 40)
    actions[60:, 1] = 40
    kept = moving(actions)
    assert 18 <= kept.start <= 20
    assert kept.stop == 59 + ROWS_AT_REST
    assert ROWS_AT_REST < 20


def test_a_chunk_holds_the_last_action_of_its_episode_and_never_shows_the_next_one(rows: Episodes) -> None:
    chunks = rows.chunks()
    assert chunks.shape == (2 * ROWS, CHUNK, 6)
    assert np.array_equal(chunks[0, :ROWS], rows.actions[:ROWS])
    assert np.array_equal(chunks[ROWS - 1], np.tile(rows.actions[ROWS - 1], (CHUNK, 1)))


def test_plans_are_the_same_every_time_name_each_disc_in_turn_and_keep_unseen_tables_apart() -> None:
    scene_seeds, discs = [], []
    with Simulator(RECIPE.network.image_px) as simulator:
        planner = Planner(simulator.scene)
        for number in range(20):
            plan = planner.plan(number, seed=3)
            assert plan == planner.plan(number, seed=3)
            scene_seeds.append(plan.scene_seed)
            discs.append(plan.disc)
        assert planner.plan(FIRST_UNSEEN + 5).scene_seed >= FIRST_UNSEEN
    assert all(seed < FIRST_UNSEEN for seed in scene_seeds)
    assert all(one != other for one, other in itertools.pairwise(discs))


def test_renders_know_where_the_discs_are(drawn: renders.Render) -> None:
    colours = (lambda red, green, blue: red - green - blue, lambda red, green, blue: blue - red - green)
    height, width = drawn.front.shape[1:3]
    for index in range(8):
        for disc, colour in enumerate(colours):
            picture = drawn.front[index].astype(float)
            strength = colour(*np.moveaxis(picture, -1, 0))
            if (strength > 60).sum() < 15:  # the arm is in front of it
                continue
            v, u = np.argwhere(strength > 60).mean(axis=0)
            across, up, in_view = drawn.seen[index, 0, disc]
            assert in_view == 1
            assert (across + 1) / 2 * width == pytest.approx(u + 0.5, abs=4)
            assert (1 - up) / 2 * height == pytest.approx(v + 0.5, abs=4)


def test_pretraining_that_was_killed_goes_on_as_if_it_had_not_been(
    vlm: Path, drawn: renders.Render, tmp_path: Path
) -> None:
    whole = policy_like(vlm)
    Pretraining(whole, drawn, RECIPE, tmp_path / "whole").run(lambda _: None)

    stopped = Pretraining(policy_like(vlm), drawn, replace(RECIPE, pretrain_steps=3), tmp_path / "parts")
    # The schedule is that of the whole run; only the end comes early.
    stopped._recipe = RECIPE
    save = stopped._save

    def save_and_die() -> None:
        save()
        if stopped.step == 3:
            raise Killed

    stopped._save = save_and_die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        stopped.run(lambda _: None)
    resumed = policy_like(vlm)
    Pretraining(resumed, drawn, RECIPE, tmp_path / "parts").run(lambda _: None)
    assert same(weights(whole), weights(resumed))


def test_training_that_was_killed_goes_on_as_if_it_had_not_been(vlm: Path, rows: Episodes, tmp_path: Path) -> None:
    def nothing(_: Any) -> dict[str, float]:
        return {"success": 0.0}

    whole = Training(policy_like(vlm), rows, vlm, RECIPE, tmp_path / "whole")
    whole.run(lambda _: None, nothing)

    def dies(point: dict[str, float]) -> None:
        if point.get("success") is not None and point["step"] == 4:
            raise Killed

    file = tmp_path / "parts"
    with pytest.raises(Killed):
        Training(policy_like(vlm), rows, vlm, RECIPE, file).run(dies, nothing)
    resumed = Training(policy_like(vlm), rows, vlm, RECIPE, file)
    assert 0 < resumed.step < RECIPE.train_steps
    resumed.run(lambda _: None, nothing)
    assert same(weights(whole.average), weights(resumed.average))
    assert not same(weights(whole.average), weights(policy_like(vlm)))


def test_training_leaves_the_vision_tower_as_it_was_pretrained(vlm: Path, rows: Episodes, tmp_path: Path) -> None:
    policy = policy_like(vlm)
    training = Training(policy, rows, vlm, RECIPE, tmp_path / "file")  # scales the last projection, once
    before = weights(policy)
    training.run(lambda _: None, lambda _: {"success": 0.0})
    for name, tensor in policy.state_dict().items():
        if "vision_model" in name or "connector" in name:
            assert torch.equal(tensor, before[name])


def test_what_is_exported_is_a_whole_checkpoint_that_predicts_the_same(
    vlm: Path, rows: Episodes, tmp_path: Path
) -> None:
    policy = policy_like(vlm)
    folder = export(tmp_path / "policy", policy, vlm, rows.statistics())
    assert not any(str(vlm) in file.read_text() for file in folder.rglob("*.json"))
    again, parts_of_it = load(folder)
    with Simulator(RECIPE.network.image_px) as simulator:
        simulator.reset((0.0, -35.0, 45.0, 65.0, 0.0, 5.0), simulator.scene.scatter(1))
        chunks = []
        for each, parts in ((policy, processors(policy, vlm, rows.statistics())), (again, parts_of_it)):
            torch.manual_seed(0)
            chunks.append(Evaluation(simulator, parts).chunk(each, "touch the red disc"))
    assert chunks[0].shape == (CHUNK, 6)
    assert np.array_equal(*chunks)


def test_controls_take_away_what_they_say(vlm: Path, rows: Episodes) -> None:
    policy = policy_like(vlm)
    with Simulator(RECIPE.network.image_px) as simulator:
        evaluation = Evaluation(simulator, processors(policy, vlm, rows.statistics()))
        simulator.reset((0.0, -35.0, 45.0, 65.0, 0.0, 5.0), simulator.scene.scatter(1))

        def chunk(control: Control, text: str = "touch the red disc") -> Any:
            torch.manual_seed(0)
            return evaluation.chunk(policy, text, control)

        as_it_is = chunk(Control.NONE)
        assert not np.array_equal(as_it_is, chunk(Control.NONE, "touch the blue disc"))
        for control in (Control.GREY, Control.FRONT_ONLY, Control.WRIST_ONLY):
            assert not np.array_equal(as_it_is, chunk(control))


def test_the_simulator_starts_where_it_is_told_and_follows_goals() -> None:
    with Simulator(RECIPE.network.image_px, DISCS, CUBES) as simulator:
        start = (10.0, -35.0, 45.0, 65.0, 0.0, 5.0)
        simulator.reset(start, simulator.scene.scatter(2))
        assert simulator.joints() == pytest.approx(start, abs=0.5)
        goal = (20.0, -30.0, 40.0, 60.0, 5.0, 10.0)
        for _ in range(30):
            simulator.tick(goal)
        assert simulator.joints() == pytest.approx(goal, abs=0.5)
        x, y, z = simulator.data.site("tip").xpos
        assert z > 0.03
        assert not simulator.near(Pose2(x, y))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_stages_run_and_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "experiments.demo_policy",
        "all",
        "--folder",
        tmp_path,
        "--quick",
        "--threads",
        "1",
    ]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "committed" not in done.stdout  # the second time
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert {control.value for control in Control} < set(evaluation)
    for name in ("training.png", "pretraining.png", "policy/model.safetensors", "policy/vlm/tokenizer.json"):
        assert (tmp_path / name).stat().st_size > 0
