"""A backend that cannot be reached although it counts as ready: the request is held again, and never sent twice."""

import asyncio

import pytest

from juggler.proxy.upstream import UpstreamPool
from tests.ports import free_port
from tests.protocol.support import OK, Peer, Rig, rig

POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"


def dead_pool() -> UpstreamPool:
    """Connections to a port that nobody has."""
    return UpstreamPool("127.0.0.1", free_port())


async def revive(setup: Rig, after: int) -> None:
    """From the n-th hold on the backend is there."""
    good = setup.gateway.pool
    setup.gateway.pool = dead_pool()
    while len(setup.gateway.asked) < after:
        await asyncio.sleep(0.001)
    setup.gateway.pool = good


@pytest.mark.parametrize("held", [1, 2, 3])
async def test_it_is_held_again_and_arrives_whole(held: int) -> None:
    """The body that was read meanwhile goes with it; each hold is released with what became of it."""
    bodies: list[bytes] = []

    async def handler(peer: Peer) -> None:
        await peer.head()
        bodies.append(await peer.body(5))
        peer.send(OK)

    async with rig(handler) as setup:
        reviving = asyncio.create_task(revive(setup, held))
        peer = await setup.ask(POST)
        await peer.exactly(OK)
        await reviving
        assert bodies == [b"hello"]
        assert len(setup.gateway.asked) == held + 1
        errors = [result.error for result in setup.gateway.results]
        assert errors == ["upstream_connect_failed"] * held + [None]


async def test_it_is_given_up_in_the_end() -> None:
    """Within about a second, with the error of the last try."""
    async with rig() as setup:
        setup.gateway.pool = dead_pool()
        status, _, body = await (await setup.ask(POST)).answer()
        assert status == 502
        assert b"upstream_connect_failed" in body
        assert len(setup.gateway.asked) == 4


async def test_what_may_have_been_acted_upon_is_not_repeated() -> None:
    """The backend took the request and died: one answer, 502, and one execution."""

    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.body(5)
        setup.gateway.pool = dead_pool()
        peer.reset()

    async with rig(handler) as setup:
        status, _, _ = await (await setup.ask(POST)).answer()
        assert status == 502
        assert setup.upstream.accepted == 1
        assert len(setup.gateway.asked) == 1


async def test_each_further_hold_gets_what_is_left_of_the_wait() -> None:
    """``X-Juggler-Max-Wait`` bounds the whole wait, not each of its parts."""
    async with rig() as setup:
        setup.gateway.pool = dead_pool()
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nX-Juggler-Max-Wait: 0.5s\r\nX-Juggler-Timing: 1\r\n\r\n")
        assert (await peer.answer())[0] == 502
        left = [asked.wishes.max_wait_s for asked in setup.gateway.asked]
        assert left[0] == 0.5
        assert all(one is not None for one in left)
        assert left == sorted(left, key=lambda one: -(one or 0.0))
        assert left[1] is not None
        assert left[1] < 0.5
        assert left[3] == 0.0
        assert all(asked.wishes.timing for asked in setup.gateway.asked)


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_request_that_may_have_ended_its_backend_is_not_given_to_the_next(stopped: bool) -> None:
    """The kept connection ends without an answer, and there is no fresh one: the process died, perhaps of this."""
    served: list[bytes] = []

    async def handler(peer: Peer) -> None:
        await peer.head()
        served.append(await peer.body(5))
        peer.send(OK)
        if len(served) == 1:
            await peer.head()  # of the second request, which is never answered
            await peer.body(5)
            good, setup.gateway.pool = setup.gateway.pool, dead_pool()
            if stopped:
                good.close()
            else:
                good.port = setup.gateway.pool.port
                peer.writer.close()
            setup.gateway.pool = UpstreamPool(good.host, port)

    async with rig(handler) as setup:
        port = setup.gateway.pool.port
        await (await setup.ask(POST)).exactly(OK)
        status, _, _ = await (await setup.ask(POST)).answer()
        assert status == 502
        assert served == [b"hello"]
