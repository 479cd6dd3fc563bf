"""A built site, as a browser would find it on a disk."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

URLS_IN_CSS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])([^"')]+)""")


@dataclass
class Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._quiet = 0
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        if "id" in values:
            self.ids.add(values["id"])
        self._quiet += tag in ("script", "style")
        if tag == "a":
            self.links += [values["href"]] if "href" in values else []
        else:  # whatever else names an address is fetched by itself
            self.assets += [values[name] for name in ("src", "href", "poster", "data", "action") if name in values]
            self.assets += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.assets += URLS_IN_CSS.findall(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._quiet -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self._quiet:
            self.assets += URLS_IN_CSS.findall(data)
        else:
            self.words += data


@dataclass(frozen=True)
class Site:
    folder: Path

    @cached_property
    def pages(self) -> dict[str, Page]:
        """By its path below the site."""
        return {
            path.relative_to(self.folder).as_posix(): Page(path.read_text("utf-8"))
            for path in sorted(self.folder.rglob("*.html"))
        }

    def assets(self) -> Iterator[tuple[str, str]]:
        """Every address that is fetched by itself, with where it stands."""
        for name, page in self.pages.items():
            yield from ((name, asset) for asset in page.assets)
        for path in sorted(self.folder.rglob("*.css")):
            found = URLS_IN_CSS.findall(path.read_text("utf-8"))
            yield from ((path.relative_to(self.folder).as_posix(), url) for url in found)

    def broken(self) -> Iterator[str]:
        """Links between pages that lead nowhere."""
        for name, page in self.pages.items():
            for link in page.links:
                address, anchor = urldefrag(link)
                if is_elsewhere(link):
                    continue
                target = (self.folder / name).parent / unquote(address) if address else self.folder / name
                if not target.is_file():
                    yield f"{name}: {link} leads nowhere"
                elif anchor and unquote(anchor) not in self._ids(target):
                    yield f"{name}: {link} has no such place"

    def _ids(self, target: Path) -> set[str]:
        page = self.pages.get(target.resolve().relative_to(self.folder.resolve()).as_posix())
        return page.ids | {"__skip"} if page else set()


def is_elsewhere(address: str) -> bool:
    """Whether it leads to another host, or is none that is fetched."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("mailto", "data")
