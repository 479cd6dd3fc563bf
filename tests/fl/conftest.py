"""What every federated test needs: a tiny policy and a few drawn episodes, made once a session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports Hugging Face's client

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle; not to be changed."""
    from agent.inference.importer import Wish, import_checkpoint
    from tests.inference.checkpoints import smolvla

    checkpoint = smolvla(tmp_path_factory.mktemp("checkpoints") / "smolvla", chunk_size=8)
    return import_checkpoint(checkpoint, tmp_path_factory.mktemp("policies"), Wish(name="tiny")).folder


@pytest.fixture(scope="session")
def drawn_episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset with five short episodes; not to be changed."""
    from agent.fl.synthetic import drawn

    return drawn(tmp_path_factory.mktemp("drawn"), episodes=5)
