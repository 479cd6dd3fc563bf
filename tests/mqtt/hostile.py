"""Messages that nobody should send: random ones, and commands that are wrong in one way each."""

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agent.api.mqtt.commands import REQUESTS, VERBS
from tests.mqtt.daemon import command, iso

GOOD_ARGS: dict[str, dict[str, Any]] = {
    "task.start": {"task": "reach the red disc"},
    "record.start": {"task": "reach the red disc"},
    "record": {"on": True, "task": "reach the red disc"},
    "release": {"confirm": True},
    "episodes.show": {"episode": 0},
    "episodes.mark": {"episode": 0, "success": True},
    "episodes.delete": {"episode": 0},
    "episodes.restore": {"episode": 0},
    "lease.take": {"owner": "a desk", "ttl_s": 5.0},
    "lease.renew": {"token": "a-token"},
    "lease.release": {"token": "a-token"},
}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e308, 2**70, "", " ", "\x00", "\ud800", "💥" * 50, "x" * 3000, [], [[]], {}, {"": {}},
    [None] * 500, "../../etc/passwd", "so/v1/+/cmd/#", "{{7*7}}", "'; DROP TABLE", float("nan"), float("inf"),
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    verb: str
    payload: bytes
    retain: bool = False


def random_messages(count: int, seed: int) -> Iterator[Hostile]:
    """Bytes, JSON of every shape, and text; on topics of real and of made-up verbs."""
    chance = random.Random(seed)
    verbs = list(VERBS)
    for _ in range(count):
        verb = chance.choice(verbs) if chance.random() < 0.8 else _word(chance)
        kind = chance.randrange(4)
        if kind == 0:
            payload = chance.randbytes(chance.choice([0, 1, 3, 17, 200, 2000, 9000, 20_000]))
        elif kind == 1:
            payload = json.dumps(_value(chance, 4)).encode("utf-8", "surrogatepass")
        elif kind == 2:
            payload = "".join(chance.choices(string.printable, k=chance.randrange(300))).encode()
        else:  # the keys of a command, with values of any kind
            made = {
                key: _value(chance, 2) for key in ("id", "issued_at", "expires_at", "args") if chance.random() < 0.9
            }
            payload = json.dumps(made).encode("utf-8", "surrogatepass")
        yield Hostile(verb, payload, chance.random() < 0.02)


def crafted_messages(count: int, seed: int) -> Iterator[Hostile]:
    """Good commands with exactly one thing wrong."""
    chance = random.Random(seed)
    changes: list[Callable[[random.Random, dict[str, Any], str], bytes | None]] = [
        _without_a_key, _odd_value, _one_key_more, _odd_argument, _one_argument_more, _cut, _two_objects, _expired,
        _from_the_future, _lives_too_long, _ends_before_it_begins, _no_zone, _not_utf8, _deep,
    ]  # fmt: skip
    made = 0
    while made < count:
        verb = chance.choice(list(VERBS))
        good = command(GOOD_ARGS.get(verb, {}), life_s=5.0)
        payload = chance.choice(changes)(chance, good, verb)
        if payload is not None:
            made += 1
            yield Hostile(verb, payload)


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(string.ascii_letters + string.digits + "._- é", k=chance.randrange(1, 40)))


def _value(chance: random.Random, depth: int) -> Any:
    if depth and chance.random() < 0.4:
        if chance.random() < 0.5:
            return [_value(chance, depth - 1) for _ in range(chance.randrange(5))]
        return {_word(chance): _value(chance, depth - 1) for _ in range(chance.randrange(5))}
    return chance.choice([*ODD, chance.random(), chance.randrange(-(10**12), 10**12), _word(chance), iso(1.8e9)])


def _bytes(made: dict[str, Any]) -> bytes:
    return json.dumps(made).encode("utf-8", "surrogatepass")


def _without_a_key(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    del good[chance.choice(["id", "issued_at", "expires_at"])]
    return _bytes(good)


def _odd_value(chance: random.Random, good: dict[str, Any], verb: str) -> bytes | None:
    key, value = chance.choice(list(good)), chance.choice(ODD)
    if key == "args" and value == {}:
        return None
    return _bytes(good | {key: value})


def _one_key_more(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    return _bytes(good | {chance.choice(["verb", "lease", "via", "token", "Id", "id "]): chance.choice(ODD)})


def _odd_argument(chance: random.Random, good: dict[str, Any], verb: str) -> bytes | None:
    fields = list(REQUESTS[verb].model_fields)
    if not fields:
        return None
    key, value = chance.choice(fields), chance.choice([odd for odd in ODD if not isinstance(odd, bool | None)])
    field = REQUESTS[verb].model_fields[key]
    if (
        isinstance(value, str)
        and field.annotation is not bool
        and 0 < len(value.strip()) <= 200
        and value.isprintable()
    ):
        return None  # a text, where one is wanted
    if value in (0, 1, -1) or value == "":
        return None
    return _bytes(good | {"args": good["args"] | {key: value}})


def _one_argument_more(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    return _bytes(good | {"args": good["args"] | {chance.choice(["via", "wait", "yes", "_"]): chance.choice(ODD)}})


def _cut(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    made = _bytes(good)
    return made[: chance.randrange(len(made))]


def _two_objects(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    return _bytes(good) + chance.choice([b"{}", b"\n" + _bytes(good), b"x", b"\x00"])


def _expired(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    return _bytes(command(good["args"], life_s=5.0, issued_s=_now() - chance.uniform(5.1, 1e8)))


def _from_the_future(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    # The smallest is well beyond the two clocks' difference and this test's own time.
    return _bytes(command(good["args"], life_s=5.0, issued_s=_now() + chance.uniform(600, 1e8)))


def _lives_too_long(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    return _bytes(command(good["args"], life_s=chance.uniform(301, 1e8)))


def _ends_before_it_begins(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    return _bytes(command(good["args"], life_s=-chance.uniform(0, 1e6)))


def _no_zone(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    key = chance.choice(["issued_at", "expires_at"])
    return _bytes(good | {key: good[key].removesuffix("+00:00")})


def _not_utf8(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    made = bytearray(_bytes(good))
    made.insert(made.index(b"id") + 1, chance.randrange(0x80, 0xC0))
    return bytes(made)


def _deep(chance: random.Random, good: dict[str, Any], verb: str) -> bytes:
    nested = b"[" * chance.randrange(300, 3000)
    return _bytes(good)[:-1] + b', "args": ' + nested + b"]" * len(nested) + b"}"


def _now() -> float:
    import time

    return time.time()
