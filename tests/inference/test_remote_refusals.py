"""What a policy server lets nobody do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from agent.errors import BadInput, Transient
from agent.inference import server as server_module
from agent.inference.bundle import Bundle
from agent.inference.keys import read_station
from agent.inference.wire import (
    MAX_SIDE_PX,
    MAX_TASK_CHARS,
    VERSION,
    Ask,
    Declined,
    Encoding,
    Hello,
    Picture,
    Predicted,
)
from agent.messages import encode
from tests.inference.peers import (
    CAMERAS,
    PATIENCE_S,
    SIZE,
    Fake,
    Keys,
    Raw,
    Scripted,
    load_there,
    remote,
    request,
    seen,
    serving,
)

# --- who may ask ----------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_and_logged_and_let_in_once_it_is_known(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    stranger = keys.stranger()
    public = read_station(stranger)[0].public.decode()
    with serving(keys, smolvla_bundle, Fake) as running:
        with pytest.raises(BadInput, match="does not know this station's key") as refused:
            remote(keys, running.address, smolvla_bundle, "stranger")
        assert public in refused.value.hint
        assert [
            (entry["key"], entry["address"]) for entry in log if entry["event"] == "connection refused: unknown key"
        ] == [(public, "127.0.0.1")]
        (keys.server / "stations" / "stranger.pub").write_text(f"public {public}\n")
        assert remote(keys, running.address, smolvla_bundle, "stranger").predict(seen(4))[0, 0] == 4


def test_a_peer_without_any_key_gets_nowhere(keys: Keys, smolvla_bundle: Bundle) -> None:
    with serving(keys, smolvla_bundle, Fake) as running, zmq.Context() as context:
        peer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.LINGER, 0)
        failed = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED)
        peer.connect(running.address)
        peer.send_multipart([VERSION, encode(Hello(1, "tiny-smolvla", smolvla_bundle.hash))])
        assert failed.poll(PATIENCE_S * 1000)
        assert not peer.poll(0)
        peer.disable_monitor()
        failed.close(0)
        peer.close()


def test_the_wrong_servers_key_and_no_server_are_told_apart(keys: Keys, smolvla_bundle: Bundle, tmp_path: Path) -> None:
    other = Keys(tmp_path / "other")
    other.station("kitchen")
    with serving(other, smolvla_bundle, Fake) as running:
        with pytest.raises(Transient, match="does not answer") as wrong:
            remote(keys, running.address, smolvla_bundle, timeout_s=1.0)
        address = running.address
    assert "is that its key" in wrong.value.hint
    with pytest.raises(Transient, match="does not answer") as nobody:
        remote(keys, address, smolvla_bundle, timeout_s=0.2)
    assert nobody.value.hint == "Is it running, and does it know this station's key?"


def test_an_address_that_is_none_is_a_sentence(keys: Keys, smolvla_bundle: Bundle) -> None:
    with pytest.raises(BadInput, match="is no address of a policy server"):
        remote(keys, "tcp://*:5555", smolvla_bundle)


# --- what is refused ------------------------------------------------------------------------------------


def header(bundle: Bundle, **changed: Any) -> bytes:
    pictures = tuple(Picture(name, SIZE[1], SIZE[0]) for name in CAMERAS)
    fields: dict[str, Any] = {
        "id": 5, "policy": bundle.manifest.name, "hash": bundle.hash, "joints": (0.0,) * 6, "task": "reach",
        "pictures": pictures,
    }  # fmt: skip
    return encode(Ask(**(fields | changed)))


PIXELS = bytes(SIZE[0] * SIZE[1] * 3)
NUMBERS = np.zeros((50, 8), "<f4")

MALFORMED: dict[str, tuple[Callable[[Bundle], list[bytes]], str]] = {
    "one part": (lambda _: [], "is no request"),
    "no bytes": (lambda _: [b""], "cannot be read"),
    "no msgpack": (lambda _: [b"\xc1\xff\x00"], "cannot be read"),
    "a pickle": (lambda _: [b"\x80\x05\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os."], "cannot be read"),
    "a tower of brackets": (lambda _: [b"\x82\xa4type\xa3ask\xa1z" + b"\x91" * 60_000], "recursion"),
    "no utf-8": (lambda _: [b"\x82\xa4type\xa3ask\xa4task\xa2\xff\xfe"], "cannot be read"),
    "an unknown tag": (lambda _: [b"\x82\xa4type\xa4quit\xa2id\x05"], "quit"),
    "a missing field": (lambda _: [b"\x82\xa4type\xa3ask\xa2id\x05"], "missing required field"),
    "a header without end": (lambda _: [bytes(70_000)], "at most 65536"),
    "a path for a name": (lambda b: [header(b, policy="../../etc")], "regex"),
    "a long task": (lambda b: [header(b, task="x" * (MAX_TASK_CHARS + 1)), PIXELS, PIXELS], "length <= 200"),
    "too many pictures": (lambda b: [header(b, pictures=(Picture("x", 1, 1),) * 10), *[bytes(3)] * 10], "length <= 9"),
    "a huge picture": (lambda b: [header(b, pictures=(Picture("x", MAX_SIDE_PX + 1, 1),)), b""], "<= 2048"),
    "buffers missing": (lambda b: [header(b), PIXELS], "has 1 buffers; its header announces 2"),
    "buffers too many": (lambda b: [header(b), PIXELS, PIXELS, PIXELS], "has 3 buffers"),
    "a picture of another size": (lambda b: [header(b), PIXELS[3:], PIXELS], "has 9213 bytes; 64x48 has 9216"),
    "other cameras": (lambda b: [header(b, pictures=(Picture("spy", 1, 1),)), bytes(3)], "pictures of spy"),
    "no jpeg": (
        lambda b: [header(b, pictures=(Picture("x", 64, 48, Encoding.JPEG),)), b"\xff\xd8\xff" * 9],
        "is not a JPEG",
    ),
    "joints that are no numbers": (lambda b: [header(b, joints=(float("nan"),) * 6), PIXELS, PIXELS], "no numbers"),
    "guidance beyond the chunk": (
        lambda b: [header(b, guidance={"rows": 51, "delay": 0, "horizon": 9}), PIXELS, PIXELS, bytes(51 * 24)],
        "guidance has 51 actions",
    ),
    "guidance that is no numbers": (
        lambda b: [header(b, guidance={"rows": 1, "delay": 0, "horizon": 1}), PIXELS, PIXELS, b"\xff" * 24],
        "guidance holds values",
    ),
    "short noise": (
        lambda b: [header(b, noise={"rows": 50, "columns": 8}), PIXELS, PIXELS, NUMBERS[1:].tobytes()],
        "noise has 1568 bytes",
    ),
    "noise for another chunk": (
        lambda b: [header(b, noise={"rows": 49, "columns": 8}), PIXELS, PIXELS, NUMBERS[1:].tobytes()],
        "noise has 49 rows",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_is_refused_with_a_sentence_and_logged_with_the_stations_name(
    what: str, keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    make, sentence = MALFORMED[what]
    fake = Fake(smolvla_bundle)
    with (
        serving(keys, smolvla_bundle, lambda _: fake) as running,
        Raw(keys.station("kitchen"), running.address) as peer,
    ):
        load_there(peer, smolvla_bundle)
        refused = peer.ask(VERSION, *make(smolvla_bundle))
        assert isinstance(refused, Declined)
        assert refused.code == "bad-input"
        assert sentence in refused.message
        assert [(entry["station"], sentence in entry["reason"]) for entry in log if "refused" in entry["event"]] == [
            ("kitchen", True)
        ]
        assert fake.asked == []
        good = peer.ask(*request(smolvla_bundle, 6, seen(3)))
        assert isinstance(good, Predicted)  # and the server goes on


def test_a_jpeg_that_would_unpack_to_gigabytes_is_never_unpacked(keys: Keys, smolvla_bundle: Bundle) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    bomb = bytearray(file.getvalue())
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\xdc\xff\xdc"  # height and width
    with serving(keys, smolvla_bundle, Fake) as running, Raw(keys.station("kitchen"), running.address) as peer:
        load_there(peer, smolvla_bundle)
        pictures = tuple(Picture(name, 64, 48, Encoding.JPEG) for name in CAMERAS)
        refused = peer.ask(VERSION, header(smolvla_bundle, pictures=pictures), bytes(bomb), bytes(bomb))
    assert isinstance(refused, Declined)
    assert "65500x65500, not 64x48" in refused.message or "is not a JPEG" in refused.message


def test_another_protocol_version_is_refused_on_either_side(keys: Keys, smolvla_bundle: Bundle, log: list[Any]) -> None:
    hello = encode(Hello(1, smolvla_bundle.manifest.name, smolvla_bundle.hash))
    with serving(keys, smolvla_bundle, Fake) as running, Raw(keys.station("kitchen"), running.address) as peer:
        refused = peer.ask(b"99", hello)
    assert isinstance(refused, Declined)
    assert "Protocol version b'99' is not 1" in refused.message
    assert [entry["station"] for entry in log if entry["event"] == "request refused"] == ["kitchen"]
    newer = Scripted(keys, lambda message, _: [[b"2", b"whatever that is"]])
    with newer, pytest.raises(BadInput, match="speaks version b'2' of the protocol, this station 1"):
        remote(keys, newer.address, smolvla_bundle)


def test_a_message_beyond_the_limit_is_refused_and_a_part_far_beyond_it_is_not_even_received(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_MESSAGE_BYTES", 1_000_000)
    monkeypatch.setattr(server_module, "MAX_PART_BYTES", 2_000_000)
    with (
        serving(keys, smolvla_bundle, Fake) as running,
        Raw(keys.station("kitchen"), running.address) as peer,
        Raw(keys.station("garage"), running.address) as other,
    ):
        load_there(peer, smolvla_bundle)
        refused = peer.ask(VERSION, header(smolvla_bundle), bytes(600_000), bytes(600_000))
        assert isinstance(refused, Declined)
        assert "at most 1000000 are allowed" in refused.message
        assert refused.id == 5
        peer.say(VERSION, header(smolvla_bundle), bytes(2_100_000))
        peer.until_cut()
        assert isinstance(other.ask(*request(smolvla_bundle, 6, seen(3))), Predicted)
    assert [entry["station"] for entry in log if entry["event"] == "request refused"] == ["kitchen"]
    assert "kitchen" in [entry["station"] for entry in log if entry["event"] == "station disconnected"]


def test_a_bundle_that_differs_is_refused_and_so_is_one_that_is_not_there(
    keys: Keys, smolvla_bundle: Bundle, log: list[Any]
) -> None:
    name = smolvla_bundle.manifest.name
    other = Bundle(smolvla_bundle.folder, smolvla_bundle.manifest, "0123456789ab")
    with serving(keys, smolvla_bundle, Fake) as running:
        with pytest.raises(BadInput, match=f"{name} is {smolvla_bundle.hash} on the server and 0123456789ab on the"):
            remote(keys, running.address, other)
        with Raw(keys.station("kitchen"), running.address) as peer:
            missing = peer.ask(VERSION, encode(Hello(1, "nowhere", smolvla_bundle.hash)))
    assert isinstance(missing, Declined)
    assert missing.message == "There is no policy nowhere."
    assert len([entry for entry in log if entry["event"] == "request refused"]) == 2


def test_a_picture_that_no_server_takes_is_refused_before_it_is_sent(keys: Keys, smolvla_bundle: Bundle) -> None:
    fake = Fake(smolvla_bundle)
    with serving(keys, smolvla_bundle, lambda _: fake) as running:
        engine = remote(keys, running.address, smolvla_bundle)
        with pytest.raises(BadInput, match="2048 pixels a side at most"):
            engine.predict(seen(size=(MAX_SIDE_PX + 1, 4)))
        assert engine.predict(seen(5))[0, 0] == 5
    assert len(fake.asked) == 1
