"""A policy learns from the station's own episodes: it learns, it survives a kill, and it stays a bundle."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.config import StationConfig
from agent.errors import BadInput, Fatal, Refused
from agent.inference.bundle import Bundle, open_bundle
from agent.inference.engine import Observation
from agent.inference.importer import Wish as ImportWish
from agent.inference.importer import import_checkpoint
from agent.inference.loading import load_policy
from agent.inference.training import curve, saved
from agent.inference.training.folder import CHECKPOINTS, RESULT, alone, newest_checkpoint
from agent.inference.training.messages import DECODER, Began, Event, Job, Learnt, Saved, Stepped, Stopped, Validated
from agent.inference.training.plan import Plan, Wish, make_plan, read_plan, split
from agent.inference.training.rows import Rows
from agent.inference.training.run import Training
from agent.inference.training.supervise import Share, Supervisor, begin, go_on
from agent.robot.recording.index import DatasetIndex
from agent.robot.recording.repair import repair
from tests.inference.checkpoints import act, smolvla
from tests.recording.made import journal

EPISODES = 6
ROWS = 12
CHUNK = 6
RATE = 3e-3

type Edit = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Made:
    """A station's policies and episodes, not to be changed."""

    config: StationConfig
    policy: Bundle

    @property
    def dataset(self) -> Path:
        return self.config.paths.dataset


def station(folder: Path) -> StationConfig:
    arm = {"model": "so101", "follower": {"port": "/dev/none", "id": "follower"}, "calibration_dir": str(folder)}
    return StationConfig(station="test", state_dir=folder, robot=arm)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads make them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Six episodes of two cameras, in which the arm does the same each time; a tiny SmolVLA that knows nothing."""
    config = station(tmp_path_factory.mktemp("station"))
    for number in range(EPISODES):
        journal(config.paths.journal, ROWS, first=1, number=number, task=f"task {number % 2}")
    repair(config)
    checkpoint = smolvla(tmp_path_factory.mktemp("checkpoints") / "reach", chunk_size=CHUNK)
    return Made(config, import_checkpoint(checkpoint, config.paths.policies, ImportWish("reach", tasks=("reach",))))


@pytest.fixture
def config(made: Made, tmp_path: Path) -> StationConfig:
    """A station with the same policy and episodes, in which nothing was trained yet."""
    mine = station(tmp_path / "station")
    shutil.copytree(made.config.paths.policies, mine.paths.policies)
    shutil.copytree(made.config.paths.datasets, mine.paths.datasets)
    return mine


def wish(**what: Any) -> Wish:
    values: dict[str, Any] = {"policy": "reach", "dataset": "episodes", "steps": 6, "name": "new", "rate": RATE}
    return Wish(**(values | what))


def job(supervisor: Supervisor, bundle: Path | None = None, save_every_s: float = 60.0) -> Job:
    paths = supervisor._config.paths
    bundle = bundle or paths.policies / supervisor.plan.policy
    dataset = paths.datasets / supervisor.plan.dataset
    return Job(str(supervisor.work), str(bundle), str(dataset), "cpu", 1, save_every_s)


def trained(supervisor: Supervisor, say: Callable[[Event], None] = lambda event: None) -> Learnt | None:
    """In this process, which has imported everything."""
    return Training(job(supervisor), say).run()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    """Names of the weights that are not what they were."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


# --- learning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "expert", "full"])
def test_it_learns_and_becomes_a_bundle_that_predicts(config: StationConfig, method: str) -> None:
    supervisor = begin(config, wish(steps=40, method=method, rate=RATE * (3 if method == "lora" else 1)), Share())
    said: list[Event] = []
    learnt = trained(supervisor, said.append)
    assert learnt
    assert learnt.before is not None
    assert learnt.after is not None
    assert learnt.after < 0.6 * learnt.before
    assert learnt.last_loss < 0.6 * learnt.first_loss
    first = said[0]
    assert isinstance(first, Began)
    assert (first.rows, first.held_out) == ((EPISODES - 1) * ROWS, 1)
    assert [event.loss for event in said if isinstance(event, Validated)] == [learnt.before, learnt.after]
    different = changed(config.paths.policies / "reach" / "policy", supervisor.work / RESULT)
    inside = {name.split(".")[1] if "vlm_with_expert" not in name else name.split(".")[2] for name in different}
    assert ("vlm" in inside) == (method == "full")
    assert "lm_expert" in inside
    assert any("vision_model" in name for name in different) == (method == "full")
    bundle = supervisor.publish(learnt)
    assert open_bundle(bundle.folder).hash == bundle.hash
    assert bundle.manifest.tasks == ("reach", "task 0", "task 1")
    for part in ("reach", supervisor.plan.policy_hash, "5 episodes", "40 steps", method, "seed 0"):
        assert part in bundle.manifest.description
    loaded = load_policy(bundle)
    images = {name: np.zeros((48, 64, 3), np.uint8) for name in bundle.manifest.cameras.values()}
    chunk = loaded.predict(loaded.prepare(Observation((0.0,) * 6, images, "task 0")))
    assert loaded.finish(chunk).shape == (CHUNK, 6)


def test_the_work_folder_keeps_the_curve_and_a_summary(config: StationConfig) -> None:
    supervisor = begin(config, wish(steps=4), Share())
    learnt = trained(supervisor)
    assert learnt
    bundle = supervisor.publish(learnt)
    kept = {path.name for path in supervisor.work.iterdir()}
    assert kept == {"plan.json", "summary.json", "curve.json", "curve.png", "lock"}
    assert (supervisor.work / "curve.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((supervisor.work / "curve.json").read_text())
    assert [point["step"] for point in points["training"]] == [1, 2, 3, 4]
    assert [point["step"] for point in points["held_out"]] == [0, 4]
    summary = json.loads((supervisor.work / "summary.json").read_text())
    assert (summary["policy"], summary["hash"], summary["after"]) == ("new", bundle.hash, learnt.after)


def test_the_policy_keeps_its_own_statistics(config: StationConfig) -> None:
    supervisor = begin(config, wish(steps=1), Share())
    trained(supervisor)
    for path in (config.paths.policies / "reach" / "policy").iterdir():
        if path.name != "model.safetensors":
            assert (supervisor.work / RESULT / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_statistics_of_the_dataset_are_taken_when_asked_for(config: StationConfig) -> None:
    supervisor = begin(config, wish(steps=1, statistics="dataset"), Share())
    base = supervisor._taught_from()
    learnt = Training(job(supervisor, base), lambda event: None).run()
    assert learnt
    bundle = supervisor.publish(learnt)
    [file] = bundle.policy.glob("*_unnormalizer_processor.safetensors")
    expected = json.loads((config.paths.dataset / "meta/stats.json").read_text())["action"]["mean"]
    assert np.allclose(load_file(file)["action.mean"], expected)
    assert "statistics of the dataset" in bundle.manifest.description
    assert not base.exists()


def test_an_act_learns_too(config: StationConfig, tmp_path: Path) -> None:
    checkpoint = act(tmp_path / "act", chunk_size=CHUNK)
    import_checkpoint(checkpoint, config.paths.policies, ImportWish("act"))
    supervisor = begin(config, wish(policy="act", steps=2, rate=None), Share())
    assert supervisor.plan.method == "full"
    assert trained(supervisor)
    assert changed(checkpoint, supervisor.work / RESULT)


def test_adapters_for_a_policy_that_has_none_are_a_sentence(config: StationConfig, tmp_path: Path) -> None:
    import_checkpoint(act(tmp_path / "act", chunk_size=CHUNK), config.paths.policies, ImportWish("act"))
    supervisor = begin(config, wish(policy="act", method="lora"), Share())
    with pytest.raises(BadInput, match="no adapters for act"):
        trained(supervisor)


def test_a_loss_that_is_no_number_ends_it_and_keeps_what_was_saved(config: StationConfig, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(config.paths.policies / "reach" / "policy", tmp_path / "broken"))
    values = weights(copy)
    values["model.action_out_proj.bias"].fill_(float("nan"))
    save_file(values, copy / "model.safetensors")
    vlm = config.paths.policies / "reach" / "vlm"
    import_checkpoint(copy, config.paths.policies, ImportWish("broken", vlm=vlm))
    supervisor = begin(config, wish(policy="broken"), Share())
    with pytest.raises(Fatal, match="no number at step 1") as caught:
        trained(supervisor)
    assert "--rate below" in caught.value.hint


# --- going on ------------------------------------------------------------------------------------------


def uninterrupted(made: Made, tmp_path: Path, **what: Any) -> dict[str, torch.Tensor]:
    """The result of the same plan, without a break."""
    mine = station(tmp_path / "uninterrupted")
    for folder in ("policies", "datasets"):
        shutil.copytree(made.config.paths.state / folder, mine.paths.state / folder)
    supervisor = begin(mine, wish(**what), Share())
    assert trained(supervisor)
    return weights(supervisor.work / RESULT)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_was_killed_ends_bit_for_bit_as_one_that_was_not(
    made: Made, config: StationConfig, tmp_path: Path
) -> None:
    supervisor = begin(config, wish(steps=16), Share())
    command = msgspec.json.encode(job(supervisor, save_every_s=0.001)).decode()
    child = subprocess.Popen(
        [sys.executable, "-m", "agent.inference.training.process", command], stdout=subprocess.PIPE
    )
    assert child.stdout
    for line in child.stdout:
        event = DECODER.decode(line)
        if isinstance(event, Saved) and event.step >= 5:
            child.kill()
            break
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    checkpoint = newest_checkpoint(supervisor.work)
    assert checkpoint
    assert 5 <= int(checkpoint.name) < 16
    half = supervisor.work / CHECKPOINTS / f"{saved.STAGING}99"  # as a kill in the middle of saving leaves it
    half.mkdir(exist_ok=True)
    (half / "weights.safetensors").write_bytes(b"half")
    said: list[Event] = []
    learnt = trained(go_on(config, Wish(name="new"), Share()), said.append)
    assert learnt
    assert isinstance(said[0], Began)
    assert said[0].step == int(checkpoint.name)
    assert learnt.before is not None  # measured before the kill
    assert not half.exists()
    assert same(weights(supervisor.work / RESULT), uninterrupted(made, tmp_path, steps=16))


@pytest.mark.parametrize("method", ["lora", "expert", "full"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(
    made: Made, config: StationConfig, tmp_path: Path, method: str
) -> None:
    """Across the end of an epoch: 60 rows are 7.5 batches."""
    supervisor = begin(config, wish(steps=10, method=method), Share())
    training = Training(job(supervisor, save_every_s=0.001), lambda event: said.append(event) or stop_at(6, event))
    said: list[Event] = []

    def stop_at(step: int, event: Event) -> None:
        if isinstance(event, Saved) and event.step == step:
            training.stop()

    assert training.run() is None
    assert said[-1] == Stopped(6, 10)
    assert trained(go_on(config, Wish(), Share()))  # the only one that was interrupted
    assert same(weights(supervisor.work / RESULT), uninterrupted(made, tmp_path, steps=10, method=method))


def test_new_episodes_do_not_change_a_training_that_goes_on(made: Made, config: StationConfig, tmp_path: Path) -> None:
    supervisor = begin(config, wish(steps=4), Share())
    training = Training(job(supervisor, save_every_s=0.001), lambda event: stop(event))

    def stop(event: Event) -> None:
        if isinstance(event, Saved):
            training.stop()

    assert training.run() is None
    journal(config.paths.journal, ROWS, first=500, number=50, task="another")
    repair(config)
    assert trained(go_on(config, Wish(name="new"), Share()))
    assert same(weights(supervisor.work / RESULT), uninterrupted(made, tmp_path, steps=4))


def test_a_finished_training_whose_bundle_failed_is_not_learnt_again(config: StationConfig) -> None:
    supervisor = begin(config, wish(steps=2), Share())
    assert trained(supervisor)
    said: list[Event] = []
    again = go_on(config, Wish(name="new"), Share())
    learnt = trained(again, said.append)
    assert learnt
    assert not [event for event in said if isinstance(event, Stepped)]
    again.publish(learnt)
    with pytest.raises(BadInput, match="new is done"):
        go_on(config, Wish(name="new"), Share())


def test_going_on_with_other_settings_or_another_policy_is_refused(config: StationConfig, tmp_path: Path) -> None:
    begin(config, wish(steps=4), Share())
    with pytest.raises(BadInput, match="begun with --steps 4, not 5"):
        go_on(config, Wish(name="new", steps=5), Share())
    with pytest.raises(BadInput, match="begun with --hold-out 1, not 2"):
        go_on(config, Wish(name="new", hold_out=2), Share())
    shutil.rmtree(config.paths.policies / "reach")
    import_checkpoint(smolvla(tmp_path / "other", chunk_size=CHUNK, seed=9), config.paths.policies, ImportWish("reach"))
    with pytest.raises(BadInput, match="was begun with reach"):
        go_on(config, Wish(name="new"), Share())


def test_what_to_go_on_with_must_be_clear(config: StationConfig) -> None:
    with pytest.raises(BadInput, match="No training was interrupted"):
        go_on(config, Wish(), Share())
    with pytest.raises(BadInput, match="No training x was begun"):
        go_on(config, Wish(name="x"), Share())
    for name in ("one", "two"):
        begin(config, wish(name=name), Share())
    with pytest.raises(BadInput, match="one, two"):
        go_on(config, Wish(), Share())


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    checkpoints = tmp_path / CHECKPOINTS
    saved.save(checkpoints, saved.Progress(step=3), lambda folder: None)
    with pytest.raises(Fatal, match="No space left") as caught:
        saved.save(checkpoints, saved.Progress(step=7), full)
    assert "--resume" in caught.value.hint
    assert [path.name for path in checkpoints.iterdir()] == ["000003"]
    saved.save(checkpoints, saved.Progress(step=9, curve=[(9, 0.5)]), lambda folder: None)
    assert [path.name for path in checkpoints.iterdir()] == ["000009"]
    assert saved.progress_of(checkpoints / "000009").curve == [(9, 0.5)]


def test_two_cannot_train_in_one_folder(config: StationConfig) -> None:
    supervisor = begin(config, wish(), Share())
    with alone(supervisor.work):
        with pytest.raises(Refused, match="being trained already"):
            trained(supervisor)
        with pytest.raises(Refused, match="being trained already"):
            begin(config, wish(), Share())
        supervisor.forget()
        assert read_plan(supervisor.work) == supervisor.plan
    supervisor.forget()
    assert not supervisor.work.exists()


def test_nothing_is_overwritten(config: StationConfig) -> None:
    with pytest.raises(BadInput, match="There is a policy reach already"):
        begin(config, wish(name="reach"), Share())
    supervisor = begin(config, wish(steps=1), Share())
    learnt = trained(supervisor)
    assert learnt
    with pytest.raises(BadInput, match="was begun before"):
        begin(config, wish(), Share())
    supervisor.publish(learnt)
    shutil.rmtree(config.paths.policies / "new")
    with pytest.raises(BadInput, match="was done before"):
        begin(config, wish(), Share())


# --- what it learns from -------------------------------------------------------------------------------


def test_held_out_episodes_are_never_learnt_from(made: Made) -> None:
    plan = make_plan(wish(hold_out=2), made.policy, made.dataset)
    assert sorted((*plan.episodes, *plan.held_out)) == list(range(EPISODES))
    loaded = load_policy(made.policy)
    rows = Rows(plan, made.dataset, loaded.policy.config, "cpu")
    seen = {int(number) for batch in islice(rows.batches(0), 12) for number in batch["episode_index"]}
    assert seen == set(plan.episodes)
    judged = [int(number) for batch in rows.held_out() for number in batch["episode_index"]]
    assert set(judged) == set(plan.held_out)
    assert judged == [int(number) for batch in rows.held_out() for number in batch["episode_index"]]


def test_deleted_episodes_are_not_learnt_from(made: Made, tmp_path: Path) -> None:
    dataset = tmp_path / made.dataset.name
    shutil.copytree(made.dataset, dataset)
    before = make_plan(wish(hold_out=2), made.policy, dataset)
    DatasetIndex(dataset).delete(before.episodes[0])
    DatasetIndex(dataset).delete(before.held_out[0])
    after = make_plan(wish(hold_out=2), made.policy, dataset)
    assert (after.episodes, after.held_out) == (before.episodes[1:], before.held_out[1:])


def test_the_order_of_rows_depends_on_seed_and_step_alone(made: Made) -> None:
    loaded = load_policy(made.policy)

    def order(seed: int, step: int, count: int) -> list[list[int]]:
        rows = Rows(make_plan(wish(seed=seed), made.policy, made.dataset), made.dataset, loaded.policy.config, "cpu")
        return [batch["index"].tolist() for batch in islice(rows.batches(step), count)]

    whole = order(0, 0, 12)
    assert order(0, 5, 7) == whole[5:]
    assert order(1, 0, 12) != whole


def test_cameras_are_matched_by_view_not_by_name(made: Made, tmp_path: Path) -> None:
    """The policy's front camera was the wrist of this station: the smaller picture."""
    copy = Path(shutil.copytree(made.dataset, tmp_path / "episodes"))
    about = json.loads((copy / "meta/so_agent.json").read_text())
    about["views"] = {
        "OBS_IMAGE_1": "observation.images.wrist", "OBS_IMAGE_2": "observation.images.front"
    }  # fmt: skip
    (copy / "meta/so_agent.json").write_text(json.dumps(about))
    plan = make_plan(wish(), made.policy, copy)
    assert plan.cameras["observation.images.front"] == "observation.images.wrist"
    rows = Rows(plan, copy, load_policy(made.policy).policy.config, "cpu")
    batch = next(rows.batches(0))
    assert tuple(batch["observation.images.front"].shape[-2:]) == (32, 48)
    assert tuple(batch["observation.images.wrist"].shape[-2:]) == (48, 64)
    assert float(batch["observation.images.wrist"].max()) <= 1


def test_a_dataset_of_another_tool_is_matched_by_name(made: Made, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made.dataset, tmp_path / "episodes"))
    (copy / "meta/so_agent.json").unlink()
    cameras = make_plan(wish(), made.policy, copy).cameras
    assert cameras == {name: name for name in ("observation.images.front", "observation.images.wrist")}


def info(**changes: Any) -> Edit:
    return lambda values: values.update(changes)


def feature(name: str, **changes: Any) -> Edit:
    return lambda values: values["features"][name].update(changes)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (info(robot_type="aloha"), "another arm: aloha"),
        (feature("action", names=["x", "y"]), "another arm: its action is x, y"),
        (feature("observation.state", shape=[14]), "another arm: its observation.state has shape"),
        (lambda values: values["features"].pop("action"), "has no action"),
        (info(fps=15), "gives 30 actions a second, episodes has 15 rows"),
        (info(total_episodes=0), "holds no episodes"),
        (info(codebase_version="v2.1"), "LeRobotDataset v2.1, not v3"),
        (info(features=None), "has no features"),
        (lambda values: values["features"].pop("observation.images.wrist"), "looks at the view OBS_IMAGE_2"),
    ],
)
def test_a_dataset_that_does_not_fit_is_a_sentence(made: Made, tmp_path: Path, edit: Edit, says: str) -> None:
    copy = Path(shutil.copytree(made.dataset, tmp_path / "episodes"))
    values = json.loads((copy / "meta/info.json").read_text())
    edit(values)
    (copy / "meta/info.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=says):
        make_plan(wish(), made.policy, copy)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"policy": "unknown"}, "There is no policy unknown"),
        ({"policy": None}, "No policy is in use"),
        ({"dataset": "unknown"}, "There is no dataset unknown"),
        ({"dataset": "../x"}, "not the name of a dataset"),
        ({"steps": None}, "--steps is missing"),
        ({"steps": 0}, "--steps 0"),
        ({"batch": 0}, "--batch 0"),
        ({"rate": 3.0}, "--rate 3"),
        ({"seed": -1}, "--seed -1"),
        ({"method": "magic"}, "no --method magic"),
        ({"statistics": "mine"}, "no --statistics mine"),
        ({"hold_out": EPISODES}, "none would be left"),
        ({"name": "Bad Name"}, "cannot be a policy's name"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_sentences(config: StationConfig, what: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        begin(config, wish(**what), Share())
    assert not (config.paths.state / "training").exists()


def test_pictures_of_another_size_are_refused_where_the_policy_does_not_resize(made: Made, tmp_path: Path) -> None:
    bundle = import_checkpoint(
        act(tmp_path / "act", cameras=("wrist",), chunk_size=CHUNK),
        tmp_path / "policies",
        ImportWish("act", cameras={"OBS_IMAGE_2": "observation.images.wrist"}),
    )
    with pytest.raises(BadInput, match="wrist are 64x48, episodes holds 48x32"):
        make_plan(wish(), bundle, made.dataset)
    with pytest.raises(BadInput, match="no action expert"):
        make_plan(wish(method="expert"), bundle, made.dataset)


def test_a_policy_that_would_be_taught_unscaled_actions_is_refused(made: Made, tmp_path: Path) -> None:
    """As a checkpoint whose preprocessor scales observations only: it predicts, but must not be taught like this."""
    copy = Path(shutil.copytree(made.policy.policy, tmp_path / "reach"))
    [file] = copy.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    save_file({name: value for name, value in load_file(file).items() if not name.startswith("action")}, file)
    bundle = import_checkpoint(copy, tmp_path / "policies", ImportWish("reach", vlm=made.policy.vlm))
    with pytest.raises(BadInput, match="no statistics to be taught"):
        make_plan(wish(), bundle, made.dataset)
    assert make_plan(wish(statistics="dataset"), bundle, made.dataset)


@pytest.mark.parametrize(("episodes", "expected"), [(1, 0), (2, 0), (3, 1), (10, 1), (11, 2), (100, 10)])
def test_one_episode_of_ten_is_held_out(episodes: int, expected: int) -> None:
    learnt, held = split(episodes, None, seed=0)
    assert len(held) == expected
    assert sorted((*learnt, *held)) == list(range(episodes))


def test_held_out_episodes_come_from_all_parts_and_of_tasks_that_take_turns() -> None:
    _, held = split(100, 10, seed=0)
    assert [number // 10 for number in held] == list(range(10))
    assert {number % 2 for number in held} == {0, 1}
    assert split(100, 10, seed=0) == split(100, 10, seed=0)
    assert split(100, 10, seed=1)[1] != held
    assert split(5, 0, seed=0) == ((0, 1, 2, 3, 4), ())


def test_a_plan_is_read_as_it_was_written(config: StationConfig) -> None:
    supervisor = begin(config, wish(), Share())
    plan: Plan = read_plan(supervisor.work)
    assert plan == supervisor.plan
    (supervisor.work / "plan.json").write_text("{}")
    with pytest.raises(BadInput, match="Cannot read"):
        read_plan(supervisor.work)


def test_a_long_curve_has_no_more_points_than_can_be_seen() -> None:
    assert [curve.every(steps) for steps in (1, 200, 201, 100_000)] == [1, 1, 2, 500]
    assert curve.ends([(step, float(step)) for step in range(20)]) == (0.5, 18.5)
    assert all(np.isnan(curve.ends([])))


# --- what it must not do -------------------------------------------------------------------------------

GUARDED = """
import sys
def forbid(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto", "pickle.find_class")):
        raise SystemExit(f"forbidden: {event} {arguments}")
sys.addaudithook(forbid)
import torch
def never(*arguments, **settings):
    raise SystemExit("forbidden: torch.load or torch.save")
torch.load = torch.save = torch.hub.load_state_dict_from_url = never
from agent.inference.training.process import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_touches_neither_network_nor_pickle_and_takes_only_spare_time(
    config: StationConfig, tmp_path: Path
) -> None:
    """Adapters, a listener who goes, and going on; a connection or an unpickled class would end the process."""
    supervisor = begin(config, wish(steps=12, method="lora"), Share())
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # no HF_HUB_OFFLINE: the agent sees to it
    order = msgspec.json.encode(job(supervisor, save_every_s=0.001)).decode()

    def process() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", GUARDED, order], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    first = process()
    assert first.stdout
    assert isinstance(DECODER.decode(first.stdout.readline()), Began)
    stat = Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()
    assert stat[16] == "19"  # niceness
    assert os.sched_getscheduler(first.pid) == os.SCHED_IDLE
    assert Path(f"/proc/{first.pid}/oom_score_adj").read_text().strip() == "1000"
    while not isinstance(DECODER.decode(first.stdout.readline()), Saved):
        pass
    first.stdout.close()  # whoever listened is gone: it saves and ends by itself
    assert first.stderr
    err = first.stderr.read()
    assert first.wait() == 0, err.decode()
    assert newest_checkpoint(supervisor.work)
    second = process()
    out, err = second.communicate()
    assert second.returncode == 0, err.decode() + out.decode()
    assert isinstance(DECODER.decode(out.splitlines()[-1]), Learnt)
    assert list(tmp_path.glob(".cache/huggingface/datasets/*")) == []


def test_the_disk_is_looked_at_before_it_begins(config: StationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = begin(config, wish(), Share())
    usage = shutil.disk_usage(config.paths.state)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(Fatal, match="only 1 MB are free"):
        trained(supervisor)
