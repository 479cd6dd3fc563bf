"""Pages are written as GitHub reads them. Python-Markdown, which builds the site, is stricter about the same text.

It wants a blank line before a list, four spaces for what belongs to an item however wide its bullet is, and no
backslash before a bar in code. Where the text says what is meant, these are put right here, and nobody has to remember.
"""

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt

INDENT = 4
_GITHUB = MarkdownIt("commonmark").enable("table")
_CODE = re.compile(r"(`+)(.+?)\1")


@dataclass(frozen=True)
class _Item:
    first: int  # line
    end: int
    column: int  # where its content begins
    depth: int  # 0 for an item of a list that is in no other


def for_python_markdown(text: str) -> str:
    """The same page, as Python-Markdown has to be told."""
    lines = text.splitlines()
    tokens = _GITHUB.parse(text)
    items: list[_Item] = []
    within: list[int] = []  # first lines of the items that are open
    breaks: set[int] = set()  # lines that want a blank one before them
    depth = 0
    for token in tokens:
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                if token.map and depth == 0:
                    breaks.add(token.map[0])
                depth += 1
            case "bullet_list_close" | "ordered_list_close":
                depth -= 1
            case "list_item_open" if token.map:
                first, end = token.map
                within.append(first)
                marker = re.match(r"[ >]*(?:[-*+]|\d+[.)])[ ]*", lines[first])
                if marker:
                    items.append(_Item(first, end, marker.end(), depth - 1))
            case "list_item_close":
                within.pop()
            case "paragraph_open" if within and not token.hidden:  # of a list whose items stand apart
                breaks.add(within[-1])
            case "fence" if token.map:
                breaks.update(token.map)
            case "table_open" if token.map:
                breaks.update(token.map)
                for number in range(*token.map):
                    lines[number] = _CODE.sub(lambda found: found[0].replace("\\|", "|"), lines[number])
    made: list[str] = []
    for number, line in enumerate(lines):
        if number in breaks and made and made[-1].strip():
            made.append("")
        made.append(_indented(number, line, items))
    return "\n".join(made) + "\n"


def _indented(number: int, line: str, items: list[_Item]) -> str:
    within = [item for item in items if item.first <= number < item.end]
    if not within or not line.strip():
        return line
    deepest = max(within, key=lambda item: item.depth)
    if number == deepest.first:
        return " " * (INDENT * deepest.depth) + line.lstrip()
    own = len(line) - len(line.lstrip())
    return " " * (INDENT * (deepest.depth + 1)) + line[min(own, deepest.column) :]
