"""The table and the two pictures of docs/federation-proof.md."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from experiments.federation.results import Results, compare
from experiments.federation.situations import PARTS

START: Final = "start"
TOGETHER: Final = "together"
EVERYTHING: Final = "everything"
LABELS: Final = {
    START: "starting policy",
    TOGETHER: "federated",
    EVERYTHING: "centralised, all data",
} | {each: f"local only, {each}" for each in PARTS}
LONGER: Final = "-longer"
FASTER: Final = "-faster"
COLOURS: Final = {
    START: "tab:gray",
    TOGETHER: "tab:blue",
    EVERYTHING: "tab:green",
    f"{EVERYTHING}{FASTER}": "tab:olive",
}
LOCAL_COLOUR: Final = "tab:orange"
LONGER_COLOUR: Final = "tab:red"

MORE_POINTS: Final = 20.0
"""Federated is to be better than the best local by this much."""

OF_CENTRAL: Final = 0.9
"""And to reach this share of what all data in one place does."""


def label(name: str) -> str:
    if name.endswith(LONGER):
        return f"{label(name.removesuffix(LONGER))}, three times as long"
    if name.endswith(FASTER):
        return f"{label(name.removesuffix(FASTER))}, the stations' rate"
    return LABELS[name]


def best_local(results: Mapping[str, Results]) -> str:
    local = [name for name in results if name.removesuffix(LONGER) in PARTS]
    return max(local, key=lambda name: results[name].share)


def best_central(results: Mapping[str, Results]) -> str:
    central = [name for name in results if name.removesuffix(FASTER) == EVERYTHING]
    return max(central, key=lambda name: results[name].share)


def complete(results: Mapping[str, Results]) -> bool:
    """Whether there is what a verdict compares."""
    return {TOGETHER, EVERYTHING, *PARTS} <= results.keys()


def table(results: Mapping[str, Results], steps: Mapping[str, int], rested: bool = True) -> str:
    """Markdown: one line a policy. Where the fingertip rested first is known of the simulator only."""
    columns = ["policy", "steps", "there after 6 s", "95% interval", "at the other disc", "median miss"]
    if rested:
        columns.insert(4, "rested there first")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, each in results.items():
        low, high = each.interval
        first = f"| {each.chosen} " if rested else ""
        lines.append(
            f"| {label(name)} | {steps.get(name, 0):,} | {each.hits} of {each.count} | {low:.0%} to {high:.0%} "
            f"{first}| {each.others} | {each.median_cm:.1f} cm |"
        )
    return "\n".join(lines) + "\n"


def situations(results: Mapping[str, Results]) -> str:
    """Markdown: successes by where the named disc lies, and which one it is."""
    keys = list(next(iter(results.values())).situations())
    lines = [
        "| policy | " + " | ".join(f"{where}, {disc.removesuffix(' disc')}" for where, disc in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    for name, each in results.items():
        found = each.situations()
        lines.append(f"| {label(name)} | " + " | ".join(f"{found[key][0]} of {found[key][1]}" for key in keys) + " |")
    return "\n".join(lines) + "\n"


def unfinished(rounds: Mapping[str, tuple[int, int]]) -> str:
    """Who is not in the tables, and how far they are."""
    some = "; ".join(f"{label(name)} ({done} of {of} rounds)" for name, (done, of) in rounds.items())
    return f"Not run to the end, or not judged: {some}.\n"


def verdict(results: Mapping[str, Results]) -> str:
    """Whether the aims are reached, in two sentences."""
    best = best_local(results)
    ahead = compare(results[TOGETHER], results[best])
    central = best_central(results)
    behind = compare(results[TOGETHER], results[central])
    low, high = ahead.points_interval
    first, last = behind.ratio_interval
    return (
        f"Federated against the best local ({label(best)}): {ahead.points:+.0f} points "
        f"(95% interval {low:+.0f} to {high:+.0f}; aim +{MORE_POINTS:.0f}: "
        f"{'reached' if ahead.points >= MORE_POINTS else 'missed'}).\n"
        f"Federated against the best centralised ({label(central)}): {behind.ratio:.2f} of it "
        f"(95% interval {first:.2f} to {last:.2f}; aim {OF_CENTRAL}: "
        f"{'reached' if behind.ratio >= OF_CENTRAL else 'missed'}).\n"
    )


def draw_bars(file: Path, results: Mapping[str, Results], title: str) -> None:
    figure = Figure(figsize=(8, 0.45 * len(results) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, each) in enumerate(reversed(results.items())):
        low, high = each.interval
        axes.barh(place, 100 * each.share, color=_colour(name), alpha=0.85)
        axes.plot([100 * low, 100 * high], [place, place], color="black", lw=1.2, marker="|")
    axes.set_yticks(range(len(results)), [label(name) for name in reversed(results)])
    axes.set_xlim(0, 100)
    axes.set_xlabel("starts that end within 2 cm of the named disc, %")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    _save(figure, file)


def draw_rounds(file: Path, curve: Mapping[int, Results], lines: Mapping[str, Results], title: str) -> None:
    """Success over rounds, and what the others have in the end."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    rounds = sorted(curve)
    axes.fill_between(
        rounds,
        [100 * curve[number].interval[0] for number in rounds],
        [100 * curve[number].interval[1] for number in rounds],
        color=COLOURS[TOGETHER],
        alpha=0.15,
        lw=0,
    )
    axes.plot(
        rounds, [100 * curve[number].share for number in rounds], "o-", color=COLOURS[TOGETHER], label="federated"
    )
    styles = itertools.cycle(("--", ":", "-."))
    for name, each in lines.items():
        axes.axhline(100 * each.share, color=_colour(name), ls=next(styles), lw=1.3, label=label(name))
    axes.set_ylim(0, 103)
    axes.set_xlabel("round")
    axes.set_ylabel("starts that end within 2 cm of the named disc, %")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, file)


def _colour(name: str) -> str:
    return LONGER_COLOUR if name.endswith(LONGER) else COLOURS.get(name, LOCAL_COLOUR)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
