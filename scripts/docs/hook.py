"""What mkdocs asks this project while it builds: pages of the reference, their order, and the dialect of Markdown."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `mkdocs` as a command of its own does not see this project

from scripts.docs import command_line, configuration, dialect, modules, routes, topics  # noqa: E402

REFERENCE = "reference/"
PYTHON = f"{REFERENCE}python/"

ICON = ROOT / "agent" / "api" / "web" / "icon.svg"


def on_config(config: MkDocsConfig) -> None:
    """Folders in the order of pages become their pages."""
    config.nav = [_expanded(entry, Path(config.docs_dir)) for entry in config.nav or ()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made and not written."""
    for uri, text in generated():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return dialect.for_python_markdown(markdown)


def generated() -> Iterator[tuple[str, str | bytes]]:
    """Every file of the reference."""
    yield f"{REFERENCE}configuration.md", configuration.page()
    yield f"{REFERENCE}station.schema.json", configuration.schema_text()
    yield f"{REFERENCE}command-line.md", command_line.page()
    yield f"{REFERENCE}http.md", routes.page()
    yield f"{REFERENCE}openapi.json", routes.description_text()
    yield f"{REFERENCE}mqtt.md", topics.page()
    for uri, text in modules.pages(ROOT):
        yield PYTHON + uri, text
    yield "icon.svg", ICON.read_bytes()


def _expanded(entry: Any, docs: Path) -> Any:
    match entry:
        case dict():
            return {title: _expanded(inner, docs) for title, inner in entry.items()}
        case list():
            return [_expanded(inner, docs) for inner in entry]
        case str() if entry == PYTHON:
            return modules.navigation(ROOT, PYTHON)
        case str() if entry.endswith("/"):
            return [f"{entry}README.md", *(f"{entry}{path.name}" for path in sorted((docs / entry).glob("0*.md")))]
        case _:
            return entry
