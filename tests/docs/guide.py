"""The tables of docs/configuration.md, as a reader understands them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
NAME = re.compile(r"`([a-z_0-9]+)`")
RANGE = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?) to (-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Row:
    """One line of a table: one field, or several that belong together."""

    block: str  # "" for those at the top of the file
    names: tuple[str, ...]
    defaults: tuple[str, ...]
    meaning: str

    @property
    def mentioned(self) -> set[str]:
        """Fields of a block inside, which are told of in a sentence."""
        return set(NAME.findall(self.meaning))

    @property
    def ranges(self) -> list[tuple[float, float]]:
        return [(float(low), float(high)) for low, high in RANGE.findall(self.meaning)]


def rows() -> Iterator[Row]:
    block = ""
    for line in GUIDE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            named = NAME.search(line)
            block = named[1] if named else ""
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and NAME.search(cells[0]):
            names = tuple(NAME.findall(cells[0]))
            parts = tuple(part.strip() for part in cells[1].split(",")) if len(names) > 1 else (cells[1],)
            yield Row(block, names, parts if len(parts) == len(names) else parts * len(names), cells[2])
