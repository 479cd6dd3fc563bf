"""What a station is configured to reaches the trainer that works for it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.config import FederatedPrivacy
from agent.fl.brief import VARIABLE, Brief, Privacy, read_brief
from agent.fl.fleet import Fleet
from agent.fl.settings import read_settings
from agent.fl.workplace import workplace
from tests.fl.app.conftest import values
from tests.fl.bench import Member


def briefed(member: Member, tmp_path: Path) -> Brief:
    """What is written when the station would join: its look at how things are, once."""
    member.federation.membership.enroll(
        "fleet.example.org:9443", Fleet.init(tmp_path / "fleet", "test", ()).authority.read_text(), None
    )
    member.federation._step()
    assert member.federation.report()["against"] == []
    return msgspec.json.decode(member.federation.node.folders.brief.read_bytes(), type=Brief)


def test_privacy_statistics_and_limits_arrive(
    member: Callable[..., Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = member(
        "kitchen",
        privacy={"clip": 0.5, "noise": 2.0, "delta": 1e-6, "max_epsilon": 8.0},
        share_statistics=True,
        held_out=0.4,
        threads=3,
        memory_max_gb=2.5,
    )
    brief = briefed(kitchen, tmp_path)
    assert brief.privacy == Privacy(clip=0.5, noise=2.0, delta=1e-6, max_epsilon=8.0)
    assert brief.share_statistics
    assert (brief.station, brief.held_out, brief.threads) == ("kitchen", 0.4, 3)
    assert brief.memory_max_bytes == 2.5e9
    monkeypatch.setenv(VARIABLE, str(kitchen.federation.node.folders.brief))
    assert read_brief() == brief
    place = workplace(read_settings(values()), {})  # as the trainer reads it
    assert (place.privacy, place.share_statistics) == (brief.privacy, True)
    assert place.ledger == Path(brief.ledger)


def test_what_privacy_was_spent_is_written_where_no_session_clears(
    member: Callable[..., Member], tmp_path: Path
) -> None:
    kitchen = member("kitchen")
    brief = briefed(kitchen, tmp_path)
    ledger, folders = Path(brief.ledger), kitchen.federation.node.folders
    folders.renew(kitchen.config.federation, None)
    ledger.write_text("what was spent")
    folders.renew(kitchen.config.federation, None)
    assert ledger.read_text() == "what was spent"
    assert not brief.share_statistics
    assert brief.privacy is None


def test_every_term_of_privacy_that_can_be_configured_is_one_of_the_brief() -> None:
    assert set(FederatedPrivacy.model_fields) == set(Privacy.__struct_fields__)
