"""The site that `make docs` makes: whole, and at home on a machine without a network."""

import re
import shutil
from pathlib import Path

import pytest

from agent.api.mqtt.commands import REQUESTS, VERBS
from agent.api.mqtt.topics import Topics
from scripts.docs import command_line, configuration, modules, routes
from tests.docs.conftest import Built
from tests.docs.site import Site, is_elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_it_is_made_without_warnings_a_network_or_anything_heavy(built: Built) -> None:
    assert built.said == ""
    assert built.found == {"heavy": [], "asked": []}


def test_nothing_is_fetched_from_elsewhere(site: Site) -> None:
    assert [
        (where, address) for where, address in site.assets() if is_elsewhere(address) and address[:5] != "data:"
    ] == []
    missing = [
        (where, address)
        for where, address in site.assets()
        if not is_elsewhere(address)
        and where != "404.html"  # does not know how deep it is asked for
        and not ((site.folder / where).parent / address.partition("?")[0].partition("#")[0]).exists()
    ]
    assert missing == []


def test_every_link_leads_somewhere(site: Site) -> None:
    assert [line for line in site.broken() if not line.startswith("404.html")] == []


def test_every_module_has_a_page(site: Site) -> None:
    found = list(modules.modules(ROOT))
    assert len({module.uri for module in found}) == len(found)
    assert {module.name for module in found} >= {"agent", "agent.config", "agent.robot.control", "agent.fl.node"}
    for module in found:
        page = site.pages[f"reference/python/{module.uri.removesuffix('.md')}.html"]
        assert module.name in page.words
        assert module.about, f"{module.name} does not say what it is"
        assert all(word in page.words for word in re.findall(r"\w+", module.sentence))


def test_every_field_of_the_configuration_is_in_the_reference(site: Site) -> None:
    page = site.pages["reference/configuration.html"]
    for field in configuration.fields():
        assert field.name in page.words
    assert (site.folder / "reference" / "station.schema.json").read_text() == configuration.schema_text()


def test_every_route_is_in_the_reference(site: Site) -> None:
    page = site.pages["reference/http.html"]
    described = list(routes.routes())
    assert len(described) > 30
    for route in described:
        assert route.title in page.words
        assert route.about.get("summary"), route.title
    for name in routes.description()["components"]["schemas"]:
        assert name.startswith(("HTTPValidation", "ValidationError")) or name in page.words, name


def test_every_topic_and_verb_is_in_the_reference(site: Site) -> None:
    page = site.pages["reference/mqtt.html"]
    for topic in vars(Topics("STATION")).values():
        assert topic.replace("+", "VERB") in page.words
    for verb in VERBS:
        assert verb in page.words
        for field in REQUESTS[verb].model_fields:
            assert field in page.words


def test_every_command_is_in_the_reference(site: Site) -> None:
    page = site.pages["reference/command-line.html"]
    for words, command in command_line.commands():
        assert f"so-agent {' '.join(words)}" in page.words
        for example in command_line.examples(command):
            assert example in page.words


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_somebody_without_a_network_finds_what_they_look_for(site: Site) -> None:
    """Opened from the disk, in a real browser: search works, and no request goes elsewhere."""
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site.folder / "index.html").as_uri())
        page.keyboard.press("f")
        page.keyboard.type("bus_timeout_ms")
        page.locator('.md-search-result__link[href*="configuration.html"]').first.wait_for()
        page.goto((site.folder / "how-it-works.html").as_uri())
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        browser.close()
    assert [url for url in requests if not url.startswith(site.folder.as_uri())] == []
    assert errors == []
