"""Enrolment, keys and consent, as files."""

import stat
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.errors import BadInput, Refused
from agent.fl import station_key
from agent.fl.fleet import Fleet
from agent.fl.membership import Membership


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.init(tmp_path / "fleet", "test", ("fleet.example.org",))


@pytest.fixture
def membership(make_config: Any) -> Membership:
    return Membership(make_config(), SystemClock())


def dataset(make_config: Any, name: str) -> None:
    info = make_config().paths.datasets / name / "meta" / "info.json"
    info.parent.mkdir(parents=True)
    info.write_text("{}")


def test_enrolling_makes_a_key_that_the_fleet_takes(membership: Membership, fleet: Fleet) -> None:
    enrolment = membership.enroll("fleet.example.org:9443", fleet.authority.read_text(), None)
    member = fleet.add_station("kitchen", membership.public_line())
    assert member.fingerprint == enrolment.fingerprint
    assert stat.S_IMODE(membership.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(membership.folder.stat().st_mode) == 0o700


def test_enrolling_again_keeps_the_key(membership: Membership, fleet: Fleet) -> None:
    first = membership.enroll("one.example.org:9443", fleet.authority.read_text(), None)
    second = membership.enroll("two.example.org:9443", fleet.authority.read_text(), None)
    assert second.fingerprint == first.fingerprint
    assert membership.enrolment == second


def test_a_key_of_ones_own_is_taken(membership: Membership, fleet: Fleet) -> None:
    private = station_key.generate()
    membership.enroll("a.example.org:1", fleet.authority.read_text(), private.decode())
    assert membership.key.read_bytes() == private


@pytest.mark.parametrize(
    "address", ["fleet.example.org", "https://fleet.example.org:1", "fleet:0", "fleet:70000", "a b:1"]
)
def test_an_address_that_is_none_is_refused(membership: Membership, fleet: Fleet, address: str) -> None:
    with pytest.raises(BadInput, match="no address"):
        membership.enroll(address, fleet.authority.read_text(), None)
    assert membership.enrolment is None


def test_only_an_authority_is_trusted(membership: Membership, fleet: Fleet) -> None:
    with pytest.raises(BadInput, match="not an authority's"):
        membership.enroll("a.example.org:1", fleet.certificate.read_text(), None)
    with pytest.raises(BadInput, match="no certificate"):
        membership.enroll("a.example.org:1", "-----BEGIN nothing", None)


def test_an_rsa_key_is_refused(membership: Membership, fleet: Fleet) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    with pytest.raises(BadInput, match="elliptic curve"):
        membership.enroll("a.example.org:1", fleet.authority.read_text(), private.decode())


def test_nothing_is_learnt_from_without_consent(membership: Membership, make_config: Any) -> None:
    dataset(make_config, "kitchen")
    dataset(make_config, "diary")
    assert membership.learnable == []
    membership.give_consent("kitchen", True)
    assert [path.name for path in membership.learnable] == ["kitchen"]
    membership.give_consent("kitchen", False)
    assert membership.learnable == []


def test_consent_to_a_dataset_that_is_not_there_is_refused(membership: Membership, make_config: Any) -> None:
    dataset(make_config, "kitchen")
    with pytest.raises(BadInput, match="There is no dataset garden"):
        membership.give_consent("garden", True)
    with pytest.raises(BadInput, match="There is no dataset"):
        membership.give_consent("../kitchen", True)


def test_leaving_and_pausing_need_an_enrolment(membership: Membership, fleet: Fleet) -> None:
    for change in (membership.leave, lambda: membership.pause(True)):
        with pytest.raises(Refused, match="takes part in no fleet"):
            change()
    membership.enroll("a.example.org:1", fleet.authority.read_text(), None)
    assert membership.pause(True).paused
    membership.leave()
    assert membership.enrolment is None
    assert membership.key.is_file()


def test_a_file_that_was_torn_is_named(membership: Membership, fleet: Fleet) -> None:
    membership.enroll("a.example.org:1", fleet.authority.read_text(), None)
    (membership.folder / "enrolment.json").write_text('{"superlink": ')
    with pytest.raises(BadInput, match=r"enrolment\.json"):
        _ = membership.enrolment
