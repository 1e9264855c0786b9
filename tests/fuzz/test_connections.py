"""Whole connections: what the backend hears of a client's stream, and the client of a backend's."""

import asyncio
import random
from collections.abc import Iterator

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import conversations
from tests.fuzz.memory_rig import Backend, Heard, speak
from tests.fuzz.profiles import tries
from tests.fuzz.strategies import backend_streams, client_streams, cut, cuts
from tests.fuzz.targets import corpus
from tests.protocol.support import Peer, rig, until


@pytest.fixture(scope="module", autouse=True)
def _loop() -> Iterator[None]:
    yield
    conversations.close()


@given(data=client_streams, places=cuts)
@tries(300)
def test_no_request_more_and_none_less(data: bytes, places: list[int]) -> None:
    """The backend hears exactly the requests that h11 reads, up to the first refusal; each gets its own answer."""
    conversations.check_client_stream(data, places)


@given(data=backend_streams, places=cuts, asker=st.integers(0, len(conversations.ASKERS) - 1))
@tries(300)
def test_no_answer_but_the_own_one(data: bytes, places: list[int], asker: int) -> None:
    """Whole or visibly cut, and what follows it on the backend's connection reaches nobody."""
    conversations.check_backend_stream(data, places, asker)


def test_the_oracle_sees_smuggling() -> None:
    """A proxy that took one request for two would fail: the check of the checks."""
    data = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde"

    def answer(index: int, heard: Heard) -> list[bytes | None]:
        heard.body += b"x"
        return [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nanswer 0"]

    spoken = conversations.run(speak([data], Backend(answer)))
    with pytest.raises(AssertionError, match="other requests"):
        conversations.check_heard(data, spoken)


async def test_the_same_over_sockets() -> None:
    """The kept streams once more over loopback: the transports in memory hide nothing."""
    heard: list[tuple[bytes, bytes, bytes]] = []
    garbage: list[str] = []

    async def backend(peer: Peer) -> None:
        reader = h11.Connection(h11.SERVER)
        method = target = body = b""
        while True:
            try:
                event = reader.next_event()
            except h11.RemoteProtocolError as error:
                garbage.append(str(error))
                return
            if event is h11.NEED_DATA:
                data = await peer.reader.read(65536)
                if not data:
                    return
                reader.receive_data(data)
            elif isinstance(event, h11.Request):
                method, target, body = bytes(event.method), bytes(event.target), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                heard.append((method, target, body))
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                rest, reader = reader.trailing_data[0], h11.Connection(h11.SERVER)
                if rest:  # nothing would mean the end to h11
                    reader.receive_data(rest)
            else:
                return

    chance = random.Random(0)
    paths = [path for path in corpus("client_streams") if path.read_bytes().isascii()]
    async with rig(backend) as setup:
        for path in chance.sample(paths, 25):
            data = path.read_bytes()[1:] + b"GET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            expected = conversations.requests_of(data)
            heard.clear()
            peer = await setup.connect()
            for piece in cut(data, [chance.randrange(len(data)) for _ in range(3)]):
                peer.send(piece)
                await asyncio.sleep(0.001)
            whole = [one.said for one in expected.requests if one.whole]
            if expected.goes_on:
                # Who ends his half before he has been answered has left.
                await until(lambda: len(heard) >= len(whole))  # noqa: B023
                peer.writer.write_eof()
            await peer.gone()
            assert heard == whole, path.name
    assert not garbage
