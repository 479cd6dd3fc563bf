"""Tiny policies, made once a test session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports Hugging Face's client

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.inference.bundle import Bundle
from agent.inference.importer import Wish, import_checkpoint
from tests.inference.peers import Keys


@pytest.fixture(scope="session")
def smolvla_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, 50 actions a chunk. Not to be changed; copy it."""
    from tests.inference.checkpoints import smolvla

    return smolvla(tmp_path_factory.mktemp("checkpoints") / "smolvla")


@pytest.fixture(scope="session")
def act_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera, 20 actions a chunk. Not to be changed; copy it."""
    from tests.inference.checkpoints import act

    return act(tmp_path_factory.mktemp("checkpoints") / "act")


@pytest.fixture(scope="session")
def smolvla_bundle(smolvla_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return import_checkpoint(smolvla_checkpoint, tmp_path_factory.mktemp("policies"), Wish(name="tiny-smolvla"))


@pytest.fixture(scope="session")
def act_bundle(act_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return import_checkpoint(act_checkpoint, tmp_path_factory.mktemp("policies"), Wish(name="tiny-act"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Of a policy server, and of a station that it knows."""
    it = Keys(tmp_path)
    it.station("kitchen")
    return it


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """Everything that is logged."""
    with structlog.testing.capture_logs() as entries:
        yield entries
