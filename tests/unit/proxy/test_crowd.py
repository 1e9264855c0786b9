"""Who may connect, who makes room, and who is refused."""

import gc
import logging
import weakref

import pytest

from juggler.errors import TooManyConnections, TooManyOfOneClient
from juggler.proxy.crowd import Crowd, client_of
from juggler.proxy.limits import Limits


class Stub:
    """A connection that was quiet for a while, or has a request in work."""

    def __init__(self, address: bytes = b"127.0.0.1", *, quiet_s: float = 0.0, idle: bool = True) -> None:
        self.address = address
        self.idle = idle
        self.was_cut = False
        self._quiet_s = quiet_s

    def quiet_s(self, now: float) -> float:
        return self._quiet_s

    def cut(self, code: str | None) -> None:
        self.was_cut = True


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (b"127.0.0.1", b""),
        (b"127.3.2.1", b""),
        (b"::1", b""),
        (b"::ffff:127.0.0.1", b""),
        (b"192.0.2.7", b"192.0.2.7"),
        (b"::ffff:192.0.2.7", b"192.0.2.7"),
        (b"2001:db8:1:2:3:4:5:6", bytes.fromhex("20010db800010002")),
        (b"2001:db8:1:2::9", bytes.fromhex("20010db800010002")),
        (b"fe80::1%eth0", bytes.fromhex("fe80000000000000")),
        (b"unknown", b"unknown"),
        (b"a:b", b"a:b"),
    ],
)
def test_who_an_address_is(address: bytes, client: bytes) -> None:
    """This machine is nobody, a mapped address is the one it maps, and of IPv6 the network counts."""
    assert client_of(address) == client


async def test_one_client_has_a_bound() -> None:
    """Only that client is refused, and room comes back when one of its connections goes."""
    crowd = Crowd(Limits(connections_per_client=2))
    own = [Stub(b"192.0.2.1", quiet_s=100.0) for _ in range(2)]
    assert [crowd.come(one) for one in own] == [None, None]
    refused = Stub(b"192.0.2.1")
    error = crowd.come(refused)
    assert isinstance(error, TooManyOfOneClient)
    assert (error.status, error.retry_after_s) == (429, 1)
    assert "192.0.2.1 has 2 connections" in error.message
    assert crowd.come(Stub(b"192.0.2.2")) is None
    crowd.go(refused)
    crowd.go(own[0])
    assert crowd.come(Stub(b"192.0.2.1")) is None
    assert isinstance(crowd.come(Stub(b"192.0.2.1")), TooManyOfOneClient)


@pytest.mark.parametrize(("bound", "address"), [(0, b"192.0.2.1"), (2, b"127.0.0.1"), (2, b"::1")])
async def test_who_has_none(bound: int, address: bytes) -> None:
    """Nobody where there is no bound, and nobody on this machine."""
    crowd = Crowd(Limits(connections_per_client=bound))
    assert all(crowd.come(Stub(address)) is None for _ in range(50))


async def test_counts_do_not_grow_with_the_clients_that_were_here() -> None:
    """Nothing is kept of a client without connections."""
    crowd = Crowd(Limits())
    for number in range(1000):
        one = Stub(b"192.0.2.%d" % number)
        assert crowd.come(one) is None
        crowd.go(one)
    assert not crowd._counts
    assert not crowd._clients


@pytest.mark.parametrize(
    ("quiet_s", "idle", "makes_room"), [(0.0, True, False), (0.9, True, False), (1.0, True, True), (2.0, False, False)]
)
async def test_who_makes_room(quiet_s: float, idle: bool, makes_room: bool) -> None:
    """Who does nothing for a while does; who is at work, has just come, or is in the middle of a head does not."""
    crowd = Crowd(Limits(connections=2))
    old = [Stub(quiet_s=quiet_s, idle=idle) for _ in range(2)]
    for one in old:
        assert crowd.come(one) is None
    error = crowd.come(Stub())
    assert [one.was_cut for one in old] == [makes_room, False]
    assert isinstance(error, TooManyConnections) is not makes_room
    if error is not None:
        assert (error.status, error.retry_after_s, error.code) == (503, 1, "too_many_connections")


async def test_nobody_is_remembered_who_has_gone() -> None:
    """Looking for room does not keep connections in memory that have ended."""
    crowd = Crowd(Limits(connections=3))
    members = [Stub(quiet_s=0.0) for _ in range(3)]
    for one in members:
        crowd.come(one)
    crowd.come(Stub())
    gone = [weakref.ref(one) for one in members]
    while members:
        crowd.go(members.pop())
    del one
    gc.collect()
    assert [one() for one in gone] == [None] * 3


async def test_everybody_is_looked_at_in_turn() -> None:
    """Of many, somebody quiet is found after a few tries, wherever he stands."""
    crowd = Crowd(Limits(connections=200))
    members = [Stub(quiet_s=0.0) for _ in range(200)]
    for one in members:
        crowd.come(one)
    members[150]._quiet_s = 9.0
    refusals = 0
    while crowd.come(Stub()) is not None:
        refusals += 1
    assert refusals == 150 // 32
    assert members[150].was_cut


async def test_slow_heads_make_room_after_a_while() -> None:
    """A flood of heads that never end does not shut others out."""
    crowd = Crowd(Limits(connections=100))
    for _ in range(100):
        assert crowd.come(Stub(quiet_s=5.0, idle=False)) is None
    assert all(crowd.come(Stub(quiet_s=5.0, idle=False)) is None for _ in range(300))
    assert len(crowd._clients) == 100


async def test_a_full_house_is_not_searched_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """With thousands at work, a refusal costs a few looks; refusals are bounded, and the log tells of them once."""
    crowd = Crowd(Limits(connections=5000))
    looks = 0

    class Busy(Stub):
        def quiet_s(self, now: float) -> float:
            nonlocal looks
            looks += 1
            return 0.0

    for _ in range(5000):
        assert crowd.come(Busy()) is None
    late = [Stub() for _ in range(100)]
    with caplog.at_level(logging.WARNING, "juggler.proxy"):
        assert all(crowd.come(one) is not None for one in late)
    assert looks <= 100 * 32
    assert [one.was_cut for one in late] == [False] * 64 + [True] * 36
    assert len(caplog.records) == 1
    for one in late:
        crowd.go(one)
    assert crowd._refused == 0
