"""Messages arrive whole or not at all, and a bad peer gets a sentence instead of a crash."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from agent.errors import BadInput, EstopLatched, NotRunning
from agent.messages import (
    ArmCommand,
    ArmHeartbeat,
    ArmQuery,
    ArmReply,
    ArmReport,
    CameraReport,
    CameraState,
    Drive,
    FrameHeader,
    Problem,
    encode,
)
from agent.transport import (
    IPC_PATH_MAX_BYTES,
    AsyncCommandClient,
    AsyncSubscriber,
    CommandClient,
    Publisher,
    Subscriber,
    endpoint,
    topic,
)
from tests.stand_in import StandIn

REPORT = ArmReport(1, 2, Drive.HOLD, "a test", True, False)


class Server(StandIn):
    """Answers every command in the same way, and keeps what it was."""

    def __init__(self, path: Path, said: msgspec.Struct) -> None:
        super().__init__(path, ArmCommand)
        self._said = said
        self.seen: list[Any] = []

    def answer(self, command: Any) -> msgspec.Struct:
        self.seen.append(command)
        return self._said


@pytest.fixture
def server(short_dir: Path) -> Iterator[Server]:
    with Server(short_dir / "ctl", REPORT) as thread:
        yield thread


def test_a_command_gets_its_reply(short_dir: Path, server: Server) -> None:
    client: CommandClient[ArmReport] = CommandClient(short_dir / "ctl", ArmReply)
    assert client.ask(ArmQuery(), 2.0) == REPORT
    assert server.seen == [ArmQuery()]


async def test_an_asyncio_client_gets_the_same_reply(short_dir: Path, server: Server) -> None:
    client: AsyncCommandClient[ArmReport] = AsyncCommandClient(short_dir / "ctl", ArmReply)
    assert await client.ask_async(ArmHeartbeat(), 2.0) == REPORT


def test_a_problem_becomes_the_error_it_names(short_dir: Path) -> None:
    server = Server(short_dir / "ctl", Problem("estop-latched", "Latched.", "Reset it."))
    server.start()
    client: CommandClient[ArmReport] = CommandClient(short_dir / "ctl", ArmReply)
    with pytest.raises(EstopLatched, match="Latched"):
        client.ask(ArmQuery(), 2.0)
    server.close()


def test_silence_is_reported_within_the_deadline(short_dir: Path) -> None:
    client: CommandClient[ArmReport] = CommandClient(short_dir / "nobody", ArmReply)
    with pytest.raises(NotRunning, match="Nothing answered"):
        client.ask(ArmQuery(), 0.1)


def test_a_peer_that_does_not_ask_properly_is_ignored_and_the_server_lives(short_dir: Path, server: Server) -> None:
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 200)
        socket.connect(endpoint(short_dir / "ctl"))
        socket.send(b"one part")
    client: CommandClient[ArmReport] = CommandClient(short_dir / "ctl", ArmReply)
    assert client.ask(ArmQuery(), 2.0)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([b"99", encode(ArmQuery())], "Protocol version"),
        ([b"1", b"\xc1 not msgpack"], "Malformed command"),
        ([b"1", msgspec.msgpack.encode({"type": "explode"})], "Malformed command"),
        ([b"1", b"\x82\xa4type\xa5estop\xa5cause\xa2\xff\xff"], "Malformed command"),  # a text that is not UTF-8
        ([b"1", b"\x81\xa4type" + b"\x91" * 100_000], "Malformed command"),  # nested deeper than anyone can follow
        ([b"1", msgspec.msgpack.encode({"type": "drive", "drive": "fly", "cause": "x"})], "Malformed command"),
    ],
)
def test_a_bad_peer_gets_a_sentence_and_the_server_lives(
    short_dir: Path, server: Server, parts: list[bytes], sentence: str
) -> None:
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint(short_dir / "ctl"))
        socket.send_multipart(parts)
        assert socket.poll(2000)
        answer = msgspec.msgpack.decode(socket.recv(), type=Problem)
    assert sentence in answer.message
    assert server.seen == []
    client: CommandClient[ArmReport] = CommandClient(short_dir / "ctl", ArmReply)
    assert client.ask(ArmQuery(), 2.0) == REPORT


def test_a_subscriber_survives_a_restarted_publisher(short_dir: Path) -> None:
    subscriber = Subscriber(short_dir / "pub")
    for generation in (1, 2):
        publisher = Publisher(short_dir / "pub")
        received = None
        for _ in range(200):
            publisher.send(msgspec.structs.replace(REPORT, pid=generation))
            if received := subscriber.receive(0.02):
                break
        assert received is not None
        assert msgspec.msgpack.decode(received[0].buffer, type=ArmReport).pid == generation
        publisher.close()
        list(subscriber.drain())
    subscriber.close()


async def test_a_topic_keeps_frames_from_those_who_only_want_reports(short_dir: Path) -> None:
    report = CameraReport("front", 1, 2, CameraState.STREAMING)
    subscriber = AsyncSubscriber(short_dir / "pub", topic=topic(report))
    everything = Subscriber(short_dir / "pub")
    publisher = Publisher(short_dir / "pub")
    waiting = asyncio.ensure_future(subscriber.receive())
    frames = 0
    while frames == 0 or not waiting.done():  # until both subscriptions have arrived
        publisher.send(FrameHeader("front", 1, 2, 2, 2), bytes(12))
        publisher.send(report)
        await asyncio.sleep(0.001)
        frames += sum(len(parts) == 2 for parts in everything.drain())
    parts = waiting.result()
    assert len(parts) == 1
    assert msgspec.msgpack.decode(parts[0], type=CameraReport) == report
    for socket in (subscriber, everything, publisher):
        socket.close()


def test_a_socket_path_too_long_for_the_kernel_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=str(IPC_PATH_MAX_BYTES)):
        endpoint(tmp_path / ("x" * IPC_PATH_MAX_BYTES))
