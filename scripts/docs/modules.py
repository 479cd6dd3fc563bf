"""A page for each module of agent/, read and never imported; mkdocstrings fills it from the docstrings."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.docs.table import code, table

PACKAGE = "agent"

INTRODUCTION = """# Python

The inside of the agent, module by module, from its docstrings. Programs of yours had better use the [command
line](../command-line.md), [HTTP](../http.md) or [MQTT](../mqtt.md): those are kept stable, this is not. Imports
[point down](../../how-it-works.md#where-things-are) only.

"""

NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
"""Who looks for a word wants a guide; the names of modules are found on the list of them."""


@dataclass(frozen=True)
class Module:
    """One public module, or a package."""

    name: str
    package: bool
    about: str  # its docstring

    @property
    def uri(self) -> str:
        """Where its page is, below the folder of the reference."""
        place = self.name.replace(".", "/")
        if self.package:
            return f"{place}/index.md"
        return f"{place}.py.md" if place.endswith("/index") else f"{place}.md"  # not the page of its package

    @property
    def parent(self) -> str:
        """The package whose list it is in."""
        return self.name if self.package else self.name.rpartition(".")[0]

    @property
    def sentence(self) -> str:
        """The first sentence of its docstring."""
        paragraph = " ".join(self.about.partition("\n\n")[0].split())
        first, stop, _ = paragraph.partition(". ")
        return f"{first}." if stop else first


def modules(root: Path) -> Iterator[Module]:
    """All that do not begin with an underscore, packages before their members."""
    for path in sorted(
        (root / PACKAGE).rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path)
    ):
        package = path.name == "__init__.py"
        parts = path.relative_to(root).with_suffix("").parts[: -1 if package else None]
        if not any(part.startswith("_") for part in parts):
            yield Module(".".join(parts), package, ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")


def pages(root: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each page."""
    found = list(modules(root))
    text = INTRODUCTION
    for package in found:
        if package.package:
            text += f"## [{code(package.name)}]({package.uri})\n\n{package.about}\n\n"
            text += _list(package, found, "")
    yield "index.md", text
    for module in found:
        members = _list(module, found, module.uri.removesuffix("index.md")) if module.package else ""
        yield module.uri, f"{NOT_SEARCHED}# {code(module.name)}\n\n::: {module.name}\n\n{members}"


def navigation(root: Path, folder: str) -> list[Any]:
    """For mkdocs: the list, then a section for each package."""
    found = list(modules(root))
    sections: list[Any] = [f"{folder}index.md"]
    for package in found:
        if package.package:
            members = [{each.name.rpartition(".")[2]: f"{folder}{each.uri}"} for each in _in(package, found)]
            sections.append({package.name: [f"{folder}{package.uri}", *members]})
    return sections


def _list(package: Module, found: list[Module], folder: str) -> str:
    """The modules of a package, for a page in `folder`."""
    rows = [(f"[{code(each.name)}]({each.uri.removeprefix(folder)})", each.sentence) for each in _in(package, found)]
    return table(["module", ""], rows)


def _in(package: Module, found: list[Module]) -> list[Module]:
    return [each for each in found if not each.package and each.parent == package.name]
