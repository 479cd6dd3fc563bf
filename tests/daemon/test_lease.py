"""One lease at a time, and it is over the moment its owner is not heard any more."""

from typing import Any

import pytest

from agent.errors import BadInput, NoControl
from agent.lease import Leases
from tests.daemon.clocks import HandClock


class Heard:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.changes: list[tuple[str, dict[str, Any]]] = []
        self.orphaned: list[str] = []
        self.leases = Leases(self.clock, lambda text, data: self.changes.append((text, data)), self.orphaned.append)

    def take(self, owner: str = "Ada", ttl_s: float = 0.4, **more: Any) -> str:
        return self.leases.take(owner, ttl_s, "http", **more).token


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_a_lease_lives_as_long_as_it_is_renewed(heard: Heard) -> None:
    token = heard.take()
    for _ in range(20):
        heard.clock.pass_s(0.3)
        heard.leases.renew(token)
    assert heard.leases.require(token).owner == "Ada"
    heard.clock.pass_s(0.4)
    with pytest.raises(NoControl, match=r"Ada was not heard for 0\.4 s"):
        heard.leases.renew(token)
    assert heard.leases.holder is None
    assert [data["held"] for _, data in heard.changes] == [True, False]


def test_a_second_one_is_refused_and_says_who_has_it(heard: Heard) -> None:
    heard.take()
    with pytest.raises(NoControl, match="Ada has control"):
        heard.take("Bob")
    heard.clock.pass_s(0.5)
    bob = heard.take("Bob")
    assert heard.leases.require(bob).owner == "Bob"


def test_it_can_be_taken_over_and_the_one_before_learns_why(heard: Heard) -> None:
    ada = heard.take()
    heard.leases.begin(ada)
    bob = heard.take("Bob", take_over=True)
    assert heard.orphaned == ["Bob took over"]
    assert heard.leases.orphaned == "Bob took over"
    with pytest.raises(NoControl, match="Bob took over"):
        heard.leases.require(ada)
    assert heard.leases.require(bob).owner == "Bob"


def test_one_that_is_given_back_is_over(heard: Heard) -> None:
    token = heard.take()
    heard.leases.release(token)
    with pytest.raises(NoControl, match="gave it back"):
        heard.leases.release(token)
    assert heard.orphaned == []


@pytest.mark.parametrize("end", ["silence", "release", "the operator"])
def test_motion_that_was_begun_with_it_is_orphaned_by_every_end(heard: Heard, end: str) -> None:
    token = heard.take()
    heard.leases.begin(token)
    assert heard.leases.orphaned is None
    match end:
        case "silence":
            heard.clock.pass_s(0.4)
            assert heard.leases.holder is None
        case "release":
            heard.leases.release(token)
        case _:
            heard.leases.end("the operator took it")
    assert len(heard.orphaned) == 1
    assert heard.leases.orphaned == heard.orphaned[0]
    heard.leases.begin(None)
    assert heard.leases.orphaned is None


def test_a_new_lease_of_the_same_owner_does_not_adopt_the_motion_of_the_old_one(heard: Heard) -> None:
    heard.leases.begin(heard.take())
    heard.clock.pass_s(1.0)
    heard.take()
    assert heard.leases.orphaned == "Ada was not heard for 0.4 s"


def test_a_wrong_or_missing_token_opens_nothing_and_tells_nothing(heard: Heard) -> None:
    token = heard.take()
    for wrong in (None, 7, "", "x", token[:-1], f"{token} "):
        with pytest.raises(NoControl):
            heard.leases.require(wrong)
    status = heard.leases.status()
    assert token not in str((status, heard.changes))
    assert status == {"owner": "Ada", "via": "http", "ttl_s": 0.4, "seconds": 0.0, "moves": False}


@pytest.mark.parametrize(
    ("owner", "ttl_s"),
    [("", 1), (" ", 1), ("x" * 81, 1), ("a\nb", 1), ("Ada", 0.29), ("Ada", 10.1), ("Ada", float("nan"))],
)
def test_what_is_no_owner_or_no_time_is_refused(heard: Heard, owner: str, ttl_s: float) -> None:
    with pytest.raises(BadInput):
        heard.take(owner, ttl_s)
    assert heard.leases.holder is None
