"""The pages in docs/, as people and both of their renderers read them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import markdown
import pytest
import typer
from markdown_it import MarkdownIt

from agent.cli import application
from scripts.docs import command_line
from scripts.docs.dialect import for_python_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
TAGS = ("h1", "h2", "h3", "h4", "p", "li", "ul", "ol", "pre", "code", "table", "tr", "td", "em", "strong", "a", "img")
EXTENSIONS = ["tables", "attr_list", "pymdownx.superfences", "pymdownx.highlight"]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
ROOT_COMMAND = typer.main.get_command(application())


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PAGES, ids=_id)
def test_a_page_is_built_as_github_shows_it(path: Path) -> None:
    """Two dialects of Markdown: lists, code and tables must come out the same."""
    text = path.read_text("utf-8")
    here = markdown.markdown(
        for_python_markdown(text),
        extensions=EXTENSIONS,
        extension_configs={"pymdownx.highlight": {"use_pygments": False}},
    )
    there = MarkdownIt("commonmark").enable("table").render(text)
    count = {tag: (len(re.findall(f"<{tag}[ />]", here)), len(re.findall(f"<{tag}[ />]", there))) for tag in TAGS}
    assert {tag: both for tag, both in count.items() if both[0] != both[1]} == {}
    assert "\\|" not in re.sub(r"<pre>.*?</pre>", "", here, flags=re.DOTALL)


def _lines(text: str) -> Iterator[str]:
    """Lines of fenced blocks, those that go on with a backslash as one."""
    for language, block in FENCED.findall(text):
        if language in ("", "sh", "bash", "console"):
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def _understood(line: str) -> str | None:
    """What is wrong with a line that calls so-agent; None when it is understood."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError as error:
        return str(error)
    place = next(number for number, word in enumerate(words) if Path(word).name == "so-agent")
    arguments = words[place + 1 :]
    arguments = arguments[: next((n for n, word in enumerate(arguments) if word in ("|", ">", "&", "&&", ";")), None)]
    command, context = ROOT_COMMAND, click.Context(ROOT_COMMAND, info_name="so-agent")
    try:
        while isinstance(command, click.Group):
            context = command.make_context(command.name, list(arguments), parent=context.parent)
            _, found, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None
            command = found
        command.make_context(command.name, list(arguments), parent=context)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("path", PAGES, ids=_id)
def test_commands_on_a_page_are_commands(path: Path) -> None:
    """Every line in a block that calls so-agent is one that so-agent understands."""
    for line in _lines(path.read_text("utf-8")):
        words = line.removeprefix("$ ").removeprefix("sudo ").split()
        if words and Path(words[0]).name == "so-agent":
            wrong = _understood(line)
            assert wrong is None or "does not exist" in wrong, f"{line}: {wrong}"


def test_every_command_has_a_sentence_and_an_example_that_is_understood() -> None:
    for words, command in command_line.commands():
        assert command.help, words
        examples = command_line.examples(command)
        assert examples, f"so-agent {' '.join(words)} has no example"
        for example in examples:
            assert _understood(example) is None, example


def test_everything_that_can_be_given_to_a_command_is_explained() -> None:
    for words, command in command_line.commands():
        unsaid = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
        assert unsaid == [], words


def test_the_guide_to_the_command_line_tells_of_every_command() -> None:
    guide = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    told = [line for line in guide.splitlines() if line.startswith("| `")]
    for words, _ in command_line.commands():
        start = re.compile(rf"[`\s]{words[0]} ") if len(words) > 1 else re.compile(rf"`{words[0]}[` ]")
        assert any(start.search(line) and re.search(rf"[` ]{words[-1]}[` ]", line) for line in told), words


@pytest.mark.parametrize("path", PAGES, ids=_id)
def test_make_targets_and_files_on_a_page_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join([block for _, block in FENCED.findall(text)] + re.findall(r"`(make [^`]+)`", text))
    assert set(re.findall(r"(?:^|\s)make ([a-z][a-z-]+)", code)) <= targets
    for name in re.findall(r"`((?:agent|benchmarks|configs|docs|experiments|scripts|systemd|tests)/[\w./-]+)`", text):
        # Results are what a benchmark leaves behind, and not in the repository.
        assert (ROOT / name).exists() or name.startswith("benchmarks/results/"), name


@pytest.mark.parametrize("path", PAGES, ids=_id)
def test_tests_that_a_page_names_are_there(path: Path) -> None:
    """`tests/x.py::test_y` or, for more of the same file, `::test_z`."""
    file = ROOT / "tests"
    for named, test in re.findall(r"`(tests/[\w./-]+\.py)?(?:::(test_\w+))?`", path.read_text("utf-8")):
        file = ROOT / named if named else file
        assert not test or re.search(rf"^ *(async )?def {test}\(", file.read_text("utf-8"), re.MULTILINE), (
            f"{file}::{test}"
        )


def test_pages_that_messages_point_to_exist() -> None:
    for path in [*(ROOT / "agent").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]:
        for name in set(re.findall(r"docs/[\w/-]+\.md", path.read_text("utf-8"))):
            assert (ROOT / name).is_file(), f"{_id(path)} points to {name}"


def test_the_list_of_decisions_has_them_all() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_drawings_work_in_light_and_dark_and_fetch_nothing() -> None:
    drawings = list((ROOT / "docs" / "images").glob("*.svg"))
    assert len(drawings) >= 3
    for path in drawings:
        text = path.read_text("utf-8")
        assert "prefers-color-scheme: dark" in text
        assert "<title" in text
        assert "<desc" in text
        assert re.findall(r"(?:href|src|url)\W+https?:", text) == []


@pytest.mark.parametrize("name", ["faults", "security"])
def test_every_test_that_a_page_names_is_there(name: str) -> None:
    named, file = 0, None
    for path, test in re.findall(
        r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    ):
        file = ROOT / path if path else file
        if not test:
            continue
        named += 1
        assert file
        assert re.search(rf"^\s*(async )?def {test}\(", file.read_text("utf-8"), re.MULTILINE), f"{file.name}::{test}"
    assert named > 30
