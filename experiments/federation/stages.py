"""The stages in their order. Each takes up where it was left, and does nothing when it is done."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from agent.errors import BadInput
from agent.fl.adapter import open_adapter, policy_from
from agent.fl.run_folder import ADAPTER, ROUNDS, RunFolder
from agent.fl.settings import Division, Settings
from agent.inference.bundle import Bundle, open_bundle
from agent.inference.loading import load_policy
from agent.inference.training.plan import Method
from agent.virtual.scene import SceneModel
from experiments.demo_policy import episodes, renders
from experiments.demo_policy.recipe import CUBES, DISCS
from experiments.demo_policy.recipe import Recipe as DemoRecipe
from experiments.federation import alone, flower, report, situations, start, stations
from experiments.federation.evaluate import AT_ONCE, Evaluation, Start, Tables
from experiments.federation.recipe import SHARES, Recipe
from experiments.federation.report import EVERYTHING, FASTER, LONGER, START, TOGETHER
from experiments.federation.results import Results, load

CURVE_FROM: Final = 1_000
"""Starts of the curve over rounds are others than those that decide."""

HELD_OUT: Final = 0.1
RUNS: Final = "runs"
PICTURES: Final = ("federation-bars.png", "federation-rounds.png")


class Stages:
    """Reads the demo policy's folder, and keeps everything of its own below `out`."""

    def __init__(self, demo: Path, out: Path, recipe: Recipe, demo_recipe: DemoRecipe | None = None) -> None:
        self.demo, self.out, self.recipe = demo.absolute(), out.absolute(), recipe
        self._demo_recipe = demo_recipe or DemoRecipe()
        self._console = Console(highlight=False)
        self._began = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)

    def divide(self) -> None:
        """A dataset for each station, and one that holds them all."""
        folder = self.out / "datasets"
        names = [share.part for share in SHARES]
        if all((self.out / place).exists() for place in (*(f"datasets/{name}" for name in names), EVERYTHING)):
            return
        rows = self.rows()
        found = situations.of_episodes(rows, SceneModel("so101", DISCS, CUBES))
        parts = stations.divide(found, SHARES, self.recipe.seed)
        for name, numbers in parts.items():
            few = [found[number] for number in numbers]
            counts = {text: sum(each[1] == text for each in few) for text in sorted({each[1] for each in few})}
            self._say("divide", f"{name}: {len(numbers)} episodes,", counts)

        def done(station: str, number: int, of: int) -> None:
            if number % 20 == 0 or number == of:
                self._say("divide", station, number, of)

        stations.merge(stations.write(folder, rows, parts, done), self.out / EVERYTHING)

    def start(self) -> Bundle:
        """The policy that all begin with."""
        if not (self.out / "policies" / start.NAME).exists():
            shards = renders.draw(self.demo / "renders", self._demo_recipe, lambda *done: self._say("renders", *done))
            some = shards[: self.recipe.shards]
            start.start(self.demo, self.out, self.recipe, some, lambda point: self._say("start", point))
        return open_bundle(self.out / "policies" / start.NAME)

    def federate(self) -> None:
        """Three stations, one policy, through Flower."""
        recipe = self.recipe
        settings = self.settings(TOGETHER, recipe.local_steps, recipe.rounds, recipe.rate, recipe.end)
        config: dict[str, Any] = {
            "name": TOGETHER,
            "policy": str(self.start().folder),
            "method": str(settings.method),
            "seed": settings.seed,
            "local-steps": settings.local_steps,
            "batch-size": settings.batch_size,
            "learning-rate": settings.learning_rate,
            "learning-rate-decay": settings.learning_rate_decay,
            "num-server-rounds": settings.num_server_rounds,
            "min-available-nodes": len(SHARES),
            "min-replies": len(SHARES),
            "fraction-evaluate": 0.0,
            "held-out": settings.held_out,
            "output": str(self.out / RUNS),
            "dataset": str(self.out / "datasets"),
            "partition": str(Division.STATIONS),
        }
        flower.run(self.out, config, len(SHARES), lambda done: self._say("federate", f"round {done}"))

    def alone(self) -> None:
        """All data in one place, and each station by itself."""
        local = self.recipe.rounds * self.recipe.local_steps
        self._alone(EVERYTHING, self.out / EVERYTHING, local * len(SHARES))
        for share in SHARES:
            self._alone(share.part, self.out / "datasets" / share.part, local)

    def longer(self) -> None:
        """What could be said against the comparison: all data once more, at the rate that stations have; and each
        station by itself once more, with as many steps as all have together."""
        if self.recipe.longer:
            total = self.recipe.rounds * self.recipe.local_steps * len(SHARES)
            self._alone(f"{EVERYTHING}{FASTER}", self.out / EVERYTHING, total, self.recipe.rate)
            for share in SHARES:
                self._alone(f"{share.part}{LONGER}", self.out / "datasets" / share.part, total)

    def evaluate(self) -> None:
        """Everybody who is done on the same unseen starts, in the simulator; then federated over its rounds."""
        numbers = list(range(self.recipe.starts))
        for name in self.names():
            if self._done(name) == self._rounds(name):
                self._evaluate(self.results_file(name), name, self._done(name), numbers)
        numbers = list(range(CURVE_FROM, CURVE_FROM + self.recipe.curve_starts))
        rounds = self._done(TOGETHER)
        for number in sorted({*range(0, rounds, self.recipe.curve_every), rounds}) if rounds else ():
            self._evaluate(self._curve_file(number), TOGETHER, number, numbers)

    def stack(self) -> None:
        """Everybody but the stations that learn three times as long through the whole stack, in real time."""
        results = self._results()
        if not self.recipe.stack_starts or not report.complete(results):
            return
        for name in (name for name in results if not name.endswith(LONGER)):
            file = self._stack_file(name)
            if not file.exists():
                bundle = self.bundle(name, self._done(name))
                _through_the_stack(
                    bundle, self.recipe.stack_starts, lambda *done, name=name: self._say("stack", name, *done)
                ).save(file)

    def report(self) -> None:
        """The tables and pictures of what there is, below `out/report`."""
        results = self._results()
        if not results:
            raise BadInput("Nothing has been evaluated yet.", "Give the stage `all`, or `evaluate`.")
        folder = self.out / "report"
        title = f"Simulator, {self.recipe.starts} unseen starts; bars: 95% intervals (Wilson)"
        report.draw_bars(folder / PICTURES[0], results, title)
        if curve := {int(path.stem): load(path) for path in sorted((self.out / "curve").glob("*.json"))}:
            others = {name: each for name, each in results.items() if name != TOGETHER}
            rounds_title = (
                f"Federated by round on {self.recipe.curve_starts} unseen starts (95% band); "
                "lines: the others in the end"
            )
            report.draw_rounds(folder / PICTURES[1], curve, others, rounds_title)
        text = [report.table(results, self._steps()), report.situations(results)]
        if unfinished := {name: (self._done(name), self._rounds(name)) for name in self.names() if name not in results}:
            text.append(report.unfinished(unfinished))
        if report.complete(results):
            text.append(report.verdict(results))
        if stack := {name: load(self._stack_file(name)) for name in self.names() if self._stack_file(name).exists()}:
            text += ["Through the whole stack:\n", report.table(stack, self._steps(), rested=False)]
            if report.complete(stack):
                text.append(report.verdict(stack))
        (folder / "report.md").write_text("\n".join(text), encoding="utf-8")
        self._console.print("\n".join(text))

    def all(self) -> None:
        """A first report is there before the controls, which take longer than all before them."""
        for stage in (self.divide, self.start, self.federate, self.alone, self.evaluate, self.report):
            stage()
        for stage in (self.longer, self.evaluate, self.stack, self.report):
            stage()

    def rows(self) -> episodes.Episodes:
        """What was recorded through the teleop path, by the demo policy's first stage."""
        dataset = self.demo / "station" / "datasets" / "reach"
        if not dataset.exists():
            raise BadInput(
                f"There are no recorded episodes in {self.demo}.",
                f"Make them: python -m experiments.demo_policy record --folder {self.demo}, and then pretrain.",
            )
        px = self.recipe.network.image_px
        return episodes.load(dataset, px, self.demo / "cache", lambda *done: self._say("decode", *done))

    def settings(self, name: str, steps: int, rounds: int, rate: float, end: float) -> Settings:
        """From `rate` in the first round, the rate decays to the share `end` of it in the last."""
        return Settings(
            name=name,
            method=Method.EXPERT,
            seed=self.recipe.seed,
            local_steps=steps,
            batch_size=self.recipe.batch,
            learning_rate=rate,
            learning_rate_decay=round(end ** (1 / max(1, rounds - 1)), 6),
            num_server_rounds=rounds,
            held_out=HELD_OUT,
        )

    def names(self) -> list[str]:
        """Everybody who is compared, in the order of the table."""
        local = [share.part for share in SHARES]
        if not self.recipe.longer:
            return [START, *local, TOGETHER, EVERYTHING]
        longer = [f"{name}{LONGER}" for name in local]
        return [START, *local, *longer, TOGETHER, EVERYTHING, f"{EVERYTHING}{FASTER}"]

    def bundle(self, name: str, number: int) -> Bundle:
        """A run's policy after a round, as a station would use it."""
        base = self.start()
        if name == START:
            return base
        policies = self.out / "policies"
        called = f"{name}-{number}"
        if (policies / called).exists():
            return open_bundle(policies / called)
        adapter = open_adapter(self.out / RUNS / name / ROUNDS / f"{number:06d}" / ADAPTER)
        return policy_from(adapter, base, policies, called)

    def results_file(self, name: str) -> Path:
        return self.out / "results" / f"{name}.json"

    def _stack_file(self, name: str) -> Path:
        return self.out / "stack" / f"{name}.json"

    def _curve_file(self, number: int) -> Path:
        return self.out / "curve" / f"{number:03d}.json"

    def _rounds(self, name: str) -> int:
        return {START: 0, TOGETHER: self.recipe.rounds}.get(name, self.recipe.alone_rounds)

    def _done(self, name: str) -> int:
        """Rounds of a run that are on the disk."""
        folder = RunFolder(self.out / RUNS / name)
        return 0 if name == START or folder.common() is None else folder.last().manifest.round

    def _alone(self, name: str, dataset: Path, steps: int, rate: float | None = None) -> None:
        recipe = self.recipe
        rounds = recipe.alone_rounds
        alone.learn(
            RunFolder(self.out / RUNS / name),
            self.start(),
            dataset,
            self.settings(name, steps // rounds, rounds, rate or recipe.alone_rate, recipe.end),
            lambda done: self._say(
                "alone", name, {"round": done.round, "loss": done.train_loss or 0.0, "seconds": done.seconds}
            ),
        )

    def _evaluate(self, file: Path, name: str, number: int, numbers: list[int]) -> None:
        if file.exists():
            return
        bundle = self.bundle(name, number)
        loaded = load_policy(bundle)
        with Tables(self.recipe.network.image_px, min(AT_ONCE, len(numbers))) as tables:
            evaluation = Evaluation(tables, loaded.policy, (loaded.preprocessor, loaded.postprocessor))
            results = Results(tuple(evaluation.run(numbers)))
        results.save(file)
        low, high = results.interval
        self._say("evaluate", f"{name}, round {number}", {"success": results.share, "low": low, "high": high})

    def _results(self) -> dict[str, Results]:
        """Of those who are done and judged."""
        return {name: load(self.results_file(name)) for name in self.names() if self.results_file(name).exists()}

    def _steps(self) -> dict[str, int]:
        found = {}
        for name in self._results():
            if name != START:
                found[name] = int(sum(each.steps for each in RunFolder(self.out / RUNS / name).rounds()))
        return found

    def _say(self, stage: str, *what: Any) -> None:
        words = [
            ", ".join(f"{key} {value:.4g}" for key, value in each.items()) if isinstance(each, Mapping) else str(each)
            for each in what
        ]
        self._console.print(f"[dim]{time.monotonic() - self._began:7.0f} s[/]  {stage:9}", "  ".join(words))


def _through_the_stack(bundle: Bundle, starts: int, heard: Callable[[int, float], None]) -> Results:
    """Virtual station, drivers, cameras, policy process, chunk queue, safety filter."""
    from benchmarks.evaluate import Evaluation as RealTime
    from benchmarks.task_bench.station import Table, TaskStation

    found = []
    with (
        tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as folder,  # socket paths must be short
        Table(Path(folder), DISCS, CUBES) as laid,
        TaskStation(laid, bundle.folder) as station,
    ):
        evaluation = RealTime(station)
        for number in range(starts):
            one = evaluation.one(number, None)
            place = laid.scene.scatter(_scene_seed(number))[one.named]
            bearing = situations.bearing_deg(place.x, place.y, laid.scene)
            found.append(Start(number, one.named, bearing, one.miss_m, one.touched))
            heard(number + 1, one.miss_m)
    return Results(tuple(found))


def _scene_seed(number: int) -> int:
    from experiments.demo_policy.plan import FIRST_UNSEEN

    return FIRST_UNSEEN + number
