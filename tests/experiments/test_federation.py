"""The experiment that stations learn more together: its parts, and all of it with a tiny network."""

import itertools
import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset

from agent.fl.run_folder import RunFolder
from agent.fl.settings import Division, Settings
from agent.fl.statistics import of_policy
from agent.fl.workplace import PARTITION, PARTITIONS, workplace
from agent.inference.loading import load_policy
from agent.inference.training.plan import Wish, make_plan
from agent.inference.training.rows import Rows
from agent.virtual.kinematics import Kinematics
from agent.virtual.scene import SECTOR_DEG, SceneModel
from experiments.demo_policy import checkpoint, network
from experiments.demo_policy.episodes import Episodes
from experiments.demo_policy.evaluate import LONGEST_S
from experiments.demo_policy.plan import FIRST_UNSEEN
from experiments.demo_policy.recipe import CONTROL_HZ, CUBES, DISCS, task_text
from experiments.demo_policy.recipe import quick as quick_demo
from experiments.federation import report, situations, stations
from experiments.federation.__main__ import main
from experiments.federation.evaluate import Start, Tables
from experiments.federation.recipe import SHARES, quick
from experiments.federation.report import EVERYTHING, FASTER, LONGER, START, TOGETHER
from experiments.federation.results import Results, compare, load
from experiments.federation.stages import RUNS, Stages

RECIPE = quick()
ROWS = 6
EACH = 8  # episodes of a part and a disc


@pytest.fixture(scope="module")
def scene() -> SceneModel:
    return SceneModel("so101", DISCS, CUBES)


@pytest.fixture(scope="module")
def rows(scene: SceneModel) -> Episodes:
    """Episodes in which the fingertip goes to a place of each part of the table; pictures of noise."""
    dice = np.random.default_rng(0)
    kinematics = Kinematics(scene)
    texts = sorted(task_text(f"{disc} disc") for disc in DISCS)
    axis = float(scene.model.body("shoulder").pos[0])
    states, tasks = [], []
    for bearing, task, _ in itertools.product((30, 0, -30), range(len(texts)), range(EACH)):
        angle = np.deg2rad(bearing + dice.uniform(-10, 10))
        there = kinematics.reach((axis + 0.25 * np.cos(angle), 0.25 * np.sin(angle), 0.01))
        assert there is not None
        states.append(np.linspace(np.zeros(6), there, ROWS))
        tasks.append(np.full(ROWS, task))
    count = len(states) * ROWS
    px = RECIPE.network.image_px
    pictures = [dice.integers(0, 256, (count, px * 3 // 4, px, 3), dtype=np.uint8) for _ in range(2)]
    joints = np.concatenate(states).astype(np.float32)
    numbers = np.repeat(np.arange(len(states)), ROWS)
    return Episodes(*pictures, joints, joints + 0.5, numbers, np.concatenate(tasks), np.array(texts))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the demo policy, but for the episodes: a vision tower that has seen nothing."""
    folder = tmp_path_factory.mktemp("demo")
    network.write_vlm(folder / "vlm", RECIPE.network)
    tower = torch.nn.ModuleList(network.tower(network.build(folder / "vlm", RECIPE.network, 0)))
    checkpoint.save(folder / "pretrained.safetensors", tower, torch.optim.AdamW(tower.parameters()), {})
    return folder


class Prepared(Stages):
    """With episodes that need no station to be recorded."""

    recorded: Episodes

    def rows(self) -> Episodes:
        return self.recorded


@pytest.fixture(scope="module")
def stages(rows: Episodes, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Datasets and starting policy are there."""
    found = Prepared(demo, tmp_path_factory.mktemp("out"), replace(RECIPE, stack_starts=0), quick_demo())
    found.recorded = rows
    found.divide()
    found.start()
    return found


def start_of(number: int, touched: str | None, bearing: float = 0.0) -> Start:
    return Start(number, "red disc", bearing, 0.01, touched)


def test_the_table_has_three_parts_and_an_episode_belongs_where_its_fingertip_ends(
    rows: Episodes, scene: SceneModel
) -> None:
    assert [situations.part(bearing) for bearing in (SECTOR_DEG, 16, 14, -14, -16, -SECTOR_DEG)] == [
        "left", "left", "middle", "middle", "right", "right",
    ]  # fmt: skip
    found = situations.of_episodes(rows, scene)
    assert [part for part, _ in found[:: 2 * EACH]] == ["left", "middle", "right"]
    assert all(found.count((part, text)) == EACH for part in situations.PARTS for text in rows.texts)


def test_each_station_has_its_part_and_mostly_its_disc_and_no_episode_is_on_two(
    rows: Episodes, scene: SceneModel
) -> None:
    found = situations.of_episodes(rows, scene)
    parts = stations.divide(found, SHARES, seed=0)
    assert parts == stations.divide(found, SHARES, seed=0)
    for share in SHARES:
        here = [found[number] for number in parts[share.part]]
        assert {part for part, _ in here} == {share.part}
        assert here.count((share.part, task_text(f"{share.disc} disc"))) == EACH
        assert len(here) == EACH + round(share.others * EACH)
    everything = list(itertools.chain(*parts.values()))
    assert len(set(everything)) == len(everything)


def test_a_stations_dataset_holds_the_rows_that_were_recorded(stages: Stages, rows: Episodes) -> None:
    found = situations.of_episodes(rows, SceneModel("so101", DISCS, CUBES))
    parts = stations.divide(found, SHARES, RECIPE.seed)
    dataset = LeRobotDataset("station/left", root=stages.out / "datasets" / "left")
    row = int(np.flatnonzero(rows.episodes == parts["left"][1])[2])
    there = dataset[ROWS + 2]
    assert np.allclose(there["observation.state"], rows.states[row])
    assert np.allclose(there["action"], rows.actions[row])
    assert np.array_equal((there["observation.images.wrist"] * 255).round().permute(1, 2, 0), rows.wrist[row])
    assert there["task"] == rows.texts[rows.tasks[row]]
    everything = LeRobotDataset("station/all", root=stages.out / EVERYTHING)
    assert everything.num_frames == sum(map(len, parts.values())) * ROWS


def test_a_row_to_learn_from_is_lerobots_without_decoding_a_chunk_of_pictures(stages: Stages) -> None:
    base, dataset = stages.start(), stages.out / "datasets" / "middle"
    plan = make_plan(Wish(steps=1, batch=4, hold_out=0), base, dataset)
    mine = Rows(plan, dataset, load_policy(base).policy.config, "cpu")
    batch = next(mine.batches(0))
    chunk = [number / CONTROL_HZ for number in range(base.manifest.chunk_size)]
    theirs = LeRobotDataset("station/middle", root=dataset, delta_timestamps={"action": chunk})
    for place, index in enumerate(batch["index"].tolist()):
        there = theirs[index]
        for key in ("action", "action_is_pad", "observation.state", "observation.images.front"):
            assert torch.equal(batch[key][place].squeeze(0), there[key]), key


def test_in_a_simulation_each_station_can_have_a_dataset_of_its_own(stages: Stages) -> None:
    settings = Settings(partition=Division.STATIONS, dataset=str(stages.out / "datasets"))
    names = []
    for number in range(len(SHARES)):
        (portion,) = workplace(settings, {PARTITION: number, PARTITIONS: len(SHARES)}).portions
        names.append(portion.dataset.name)
        assert portion.episodes.learnt
    assert names == sorted(share.part for share in SHARES)


def test_tables_are_apart_from_each_other() -> None:
    """Each arm goes where it is sent, and each picture shows its own table."""
    with Tables(RECIPE.network.image_px, 2) as tables:
        goals = ((30.0, -35.0, 45.0, 65.0, 0.0, 5.0), (-30.0, -35.0, 45.0, 65.0, 0.0, 5.0))
        for table in range(2):
            tables.turn_to(table)
            tables.reset((0.0, -35.0, 45.0, 65.0, 0.0, 5.0), tables.scene.scatter(FIRST_UNSEEN + table))
        for _ in range(round(LONGEST_S * CONTROL_HZ / 3)):
            for table, goal in enumerate(goals):
                tables.turn_to(table)
                tables.tick(goal)
        pictures = []
        for table, goal in enumerate(goals):
            tables.turn_to(table)
            assert tables.joints() == pytest.approx(goal, abs=0.5)
            pictures.append(tables.images()["front"])
        assert not np.array_equal(*pictures)


def test_what_is_between_two_policies_is_judged_on_the_same_starts() -> None:
    good = Results(tuple(start_of(number, "red disc" if number < 90 else None) for number in range(100)))
    poor = Results(tuple(start_of(number, "red disc" if number < 45 else "blue disc") for number in range(100)))
    found = compare(good, poor)
    assert (found.points, found.ratio) == (pytest.approx(45), pytest.approx(2))
    low, high = found.points_interval
    assert 30 < low < 45 < high < 60
    assert (poor.hits, poor.others) == (45, 55)
    with pytest.raises(ValueError, match="same starts"):
        compare(good, Results(good.starts[1:]))


def test_the_verdict_names_the_best_local_and_says_whether_the_aims_are_reached() -> None:
    def hitting(hits: int) -> Results:
        return Results(tuple(start_of(number, "red disc" if number < hits else None) for number in range(50)))

    results = {START: hitting(0), "left": hitting(10), "middle": hitting(15), "right": hitting(5)}
    results |= {f"left{LONGER}": hitting(20), TOGETHER: hitting(40), EVERYTHING: hitting(30)}
    assert "1.33 of it" in report.verdict(results)
    results[f"{EVERYTHING}{FASTER}"] = hitting(50)
    assert report.best_local(results) == f"left{LONGER}"
    text = report.verdict(results)
    assert "local only, left, three times as long" in text
    assert "+40 points" in text
    assert "aim +20: reached" in text
    assert "the best centralised (centralised, all data, the stations' rate): 0.80 of it" in text
    assert "aim 0.9: missed" in text


def test_the_pictures_have_room_for_everybody(tmp_path: Path) -> None:
    some = Results(tuple(start_of(number, "red disc") for number in range(5)))
    parts = [each.part for each in SHARES]
    names = [START, *parts, *(f"{part}{LONGER}" for part in parts), TOGETHER, EVERYTHING, f"{EVERYTHING}{FASTER}"]
    everybody = dict.fromkeys(names, some)
    report.draw_bars(tmp_path / "bars.png", everybody, "")
    report.draw_rounds(tmp_path / "rounds.png", {0: some, 20: some}, everybody, "")
    assert {path.name for path in tmp_path.iterdir()} == {"bars.png", "rounds.png"}


def test_alone_everybody_learns_with_the_same_steps_and_scales_evaluation_and_report_follow(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the federated run itself, for which a run of one station stands in."""
    stages.alone()
    steps = {name: sum(each.steps for each in RunFolder(stages.out / RUNS / name).rounds()) for name in stages.names()
             if name not in (START, TOGETHER)}  # fmt: skip
    share = RECIPE.rounds * RECIPE.local_steps
    assert steps == {**{each.part: share for each in SHARES}, EVERYTHING: 3 * share}
    common = [RunFolder(stages.out / RUNS / name).common() for name in steps]
    assert len({json.dumps(each.statistics) for each in common if each}) == 1
    stages.evaluate()
    stages.report()
    text = (stages.out / "report" / "report.md").read_text()
    assert f"Not run to the end, or not judged: federated (0 of {RECIPE.rounds} rounds)." in text
    assert "Federated against" not in text
    shutil.copytree(stages.out / RUNS / EVERYTHING, stages.out / RUNS / TOGETHER)
    stages.evaluate()
    stages.report()
    assert [each.number for each in load(stages.results_file(START)).starts] == list(range(RECIPE.starts))
    text = (stages.out / "report" / "report.md").read_text()
    assert "centralised, all data" in text
    assert "Federated against the best local" in text
    for name in ("federation-bars.png", "federation-rounds.png"):
        assert (stages.out / "report" / name).stat().st_size > 5_000
    said = capsys.readouterr().out
    stages.evaluate()
    assert capsys.readouterr().out == ""  # there is nothing left to do
    assert "round 2" in said


def test_without_recorded_episodes_it_says_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["federation", "divide", "--folder", str(tmp_path), "--quick"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest has handlers of its own
    assert main() != 0
    assert "experiments.demo_policy record" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_stations_learn_together_through_flower(stages: Stages, tmp_path: Path) -> None:
    for name in ("datasets", "policies"):
        shutil.copytree(stages.out / name, tmp_path / name)
    Stages(stages.demo, tmp_path, RECIPE, quick_demo()).federate()
    folder = RunFolder(tmp_path / RUNS / TOGETHER)
    rounds = folder.rounds()
    assert [each.used for each in rounds] == [0, *[len(SHARES)] * RECIPE.rounds]
    common = folder.common()
    assert common is not None
    assert common.statistics == of_policy(stages.start())
