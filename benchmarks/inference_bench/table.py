"""From measured chunks to the table that people read. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from agent.messages import JOINTS

STAGES: Final = ("vision", "prefix", "step", "chunk")
SHORT: Final = ("pan", "lift", "elbow", "flex", "roll", "grip")


@dataclass(frozen=True)
class Row:
    """Medians of one side at one number of threads; milliseconds."""

    engine: str
    threads: int
    chunks: int  # that were timed
    ms: dict[str, float]  # by stage
    spread: float  # slowest chunk over the fastest
    ratio: float  # stock's chunk over this one's, round by round; the median
    cpu_ratio: float  # the same of the CPU time of all threads
    joints: tuple[float, ...]  # largest deviation; degrees, gripper in percent

    @property
    def cells(self) -> tuple[str, ...]:
        times = (f"{self.ms[stage]:,.{0 if self.ms[stage] >= 100 else 1}f}" for stage in STAGES)
        return (
            self.engine, str(self.threads), *times, f"{self.ratio:.2f}x", f"{self.cpu_ratio:.2f}x",
            f"{self.spread:.2f}", str(self.chunks),
            *(f"{value:.1g}" if value < 0.1 else f"{value:.2f}" for value in self.joints),
        )  # fmt: skip


HEAD: Final = ("engine", "threads", *(f"{stage} ms" for stage in STAGES), "to stock", "by CPU", "spread", "n", *SHORT)


def row(
    engine: str, threads: int, profiles: Sequence[dict[str, float]], stock: Sequence[dict[str, float]],
    joints: tuple[float, ...],
) -> Row:  # fmt: skip
    """`profiles` in seconds by stage, round by round. Stock of the same round is what they are compared with."""
    assert len(joints) == len(JOINTS)  # noqa: S101
    chunks = [profile["chunk"] for profile in profiles]

    def ratio(of: str) -> float:
        return statistics.median(theirs[of] / mine[of] for theirs, mine in zip(stock, profiles, strict=False))

    return Row(
        engine=engine,
        threads=threads,
        chunks=len(chunks),
        ms={stage: 1e3 * statistics.median(profile[stage] for profile in profiles) for stage in STAGES},
        spread=max(chunks) / min(chunks),
        ratio=ratio("chunk"),
        cpu_ratio=ratio("cpu"),
        joints=joints,
    )


def rich(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(HEAD):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for one in rows:
        table.add_row(*one.cells)
    return table


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *(one.cells for one in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
