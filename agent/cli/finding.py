"""What a check found: a line of `check-config` and `doctor`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # fine, but good to know
    WARNING = "warning"  # works, but not as well as it could, or not yet
    ERROR = "error"  # will not work


STYLES = {Level.OK: "green", Level.NOTE: "blue", Level.WARNING: "yellow", Level.ERROR: "bold red"}
MARKS = {Level.OK: "✓", Level.NOTE: "·", Level.WARNING: "!", Level.ERROR: "✗"}


@dataclass(frozen=True)
class Finding:
    """`found` is a sentence about what is, `remedy` one about what to do; `code` tells kinds apart."""

    name: str
    level: Level
    found: str
    remedy: str = ""
    code: str = ""

    @property
    def is_error(self) -> bool:
        return self.level is Level.ERROR

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def worst(findings: Sequence[Finding]) -> Level:
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)


def show(findings: Sequence[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # never hide the end of a path
    for finding in findings:
        style = STYLES[finding.level]
        words = Text(finding.found)
        if finding.remedy and finding.level is not Level.OK:
            words.append(f"\n{finding.remedy}", "dim")
        table.add_row(Text(MARKS[finding.level], style), Text(finding.name, style), words)
    Console().print(table)
