import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs.site import Site

ROOT = Path(__file__).resolve().parents[2]

BUILD_S = 500
"""20 s of one core; a test machine that is busy with others may need its time."""


@dataclass(frozen=True)
class Built:
    site: Site
    said: str
    found: dict[str, Any]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The site, made strictly and without a network; its warnings, and what its making took."""
    folder = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "tests.docs.builder", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return Built(Site(folder), made.stderr, json.loads(made.stdout.splitlines()[-1]))


@pytest.fixture(scope="session")
def site(built: Built) -> Site:
    return built.site
