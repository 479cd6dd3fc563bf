"""Markdown tables and inline code that survive whatever a schema holds."""

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with a blank line behind it; nothing when there are no rows."""
    lines = [_line(row) for row in rows]
    return "\n".join([_line(columns), _line(["---"] * len(columns)), *lines, "", ""]) if lines else ""


def code(text: object) -> str:
    """Inline code, whatever backticks the text holds."""
    words = str(text)
    fence = "``" if "`" in words else "`"
    padding = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{padding}{words}{padding}{fence}"


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```\n\n"


def _line(cells: Sequence[str]) -> str:
    # Inside a cell a bar is written as \|, in code as elsewhere, and a cell has one line.
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
