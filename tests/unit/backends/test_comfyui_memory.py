"""Type ``comfyui``: having the memory freed, and seeing that it is; in virtual time, without a server."""

import asyncio
from collections.abc import Callable

import pytest

from juggler.backends.base import Response
from juggler.backends.comfyui_memory import (
    NOTHING_TO_FREE_S,
    ORDER_EVERY_S,
    RESIDUE_BYTES,
    UNLOAD_LIMIT_S,
    Memory,
    as_memory,
    free,
)
from juggler.errors import BackendError
from juggler.ids import InstanceId
from juggler.testing.virtual_time import run_virtual
from juggler.units import GIB
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer

INSTANCE = InstanceId("srv/end")
TOTAL = 24 * GIB


def device(kind: str = "cuda", *, held: int = 0, idle: int = 0, beside: int = 0) -> dict[str, object]:
    """One device: ``held`` by PyTorch, of that ``idle`` unused, and ``beside`` used by others."""
    free_bytes = TOTAL - held - beside
    return {"type": kind, "vram_free": free_bytes + idle, "torch_vram_total": held, "torch_vram_free": idle}


def stats(*devices: dict[str, object]) -> Response:
    return answer(200, {"system": {}, "devices": list(devices)})


class Server:
    """Answers as ComfyUI would whose worker obeys ``reacts_s`` after the order number ``reacts_to``."""

    def __init__(
        self,
        before: Response,
        after: Response,
        *,
        reacts_s: float = 0.2,
        reacts_to: int = 1,
        order_status: int = 200,
        remaining: Callable[[], int] = lambda: 0,
    ) -> None:
        self._before, self._after = before, after
        self._reacts_s, self._reacts_to = reacts_s, reacts_to
        self._reacts_at = float("inf")
        self.orders: list[bytes | None] = []
        self.caller = FakeCaller(
            {
                "GET /system_stats": self._stats,
                "POST /free": lambda body: self._order(body, order_status),
                "GET /prompt": lambda _: answer(200, {"exec_info": {"queue_remaining": remaining()}}),
            }
        )

    def _stats(self, _: bytes | None) -> Response:
        return self._after if asyncio.get_running_loop().time() >= self._reacts_at else self._before

    def _order(self, body: bytes | None, status: int) -> Response:
        self.orders.append(body)
        if len(self.orders) == self._reacts_to:
            self._reacts_at = asyncio.get_running_loop().time() + self._reacts_s
        return Response(status, {}, b"")


def freed(server: Server) -> tuple[bool, float]:
    """Whether it was, and after how many seconds."""

    async def scenario() -> tuple[bool, float]:
        result = await free(server.caller, INSTANCE)
        return result, asyncio.get_running_loop().time()

    return run_virtual(scenario())


def test_numbers_of_the_devices() -> None:
    """Free memory is that of the device: what PyTorch holds and does not use is not counted twice."""
    assert as_memory(stats(device(held=6 * GIB, idle=GIB))) == Memory(6 * GIB, 5 * GIB, 18 * GIB)
    both = stats(device(held=GIB), device(held=2 * GIB))
    assert as_memory(both) == Memory(3 * GIB, 3 * GIB, 2 * TOTAL - 3 * GIB)
    assert as_memory(stats(device("cpu"), device("mps"), device("privateuseone"))) is None
    assert as_memory(stats(device("cpu"), device("xpu", held=GIB))) == Memory(GIB, GIB, TOTAL - GIB)
    assert as_memory(answer(200, {"devices": [{"type": "cuda"}, "?"]})) == Memory(0, 0, 0)


@pytest.mark.parametrize(
    "response", [answer(200, text="<html>"), answer(200, {}), answer(500, text=""), answer(200, [])]
)
def test_numbers_of_something_else(response: Response) -> None:
    """Whatever is no answer of ComfyUI is an error, not an empty memory."""
    with pytest.raises(BackendError, match="system_stats"):
        as_memory(response)


def test_freed_when_it_shows() -> None:
    """200 is not enough (bug 18 of the prototype): it waits for the effect, and no longer. Both flags are set."""
    server = Server(stats(device(held=6 * GIB)), stats(device()), reacts_s=0.7)
    result, after_s = freed(server)
    assert result
    assert 0.7 <= after_s < 1.2
    assert server.orders == [b'{"unload_models": true, "free_memory": true}']


def test_an_order_that_was_not_seen_is_repeated() -> None:
    """The thread may look at the flags just before they are set, and then sleep."""
    server = Server(stats(device(held=6 * GIB)), stats(device()), reacts_to=3, reacts_s=0.1)
    result, after_s = freed(server)
    assert result
    assert len(server.orders) == 3
    assert 2 * ORDER_EVERY_S < after_s < 3 * ORDER_EVERY_S


def test_an_order_that_is_obeyed_is_not_repeated() -> None:
    """Moving a large model takes seconds; a second order in the meantime would drop the models of the next job."""
    server = Server(stats(device(held=20 * GIB)), stats(device()), reacts_s=6.5)
    moving = stats(device(held=20 * GIB, idle=GIB))
    whole = server.caller.answers["GET /system_stats"]
    assert callable(whole)
    server.caller.answers["GET /system_stats"] = lambda body: (
        moving if 0.3 < asyncio.get_running_loop().time() < 6.5 else whole(body)
    )
    result, after_s = freed(server)
    assert result
    assert 6.5 <= after_s < 7
    assert len(server.orders) == 1


def test_weights_beside_the_allocator() -> None:
    """With dynamic VRAM PyTorch holds next to nothing before and after: the device tells, and it must have settled."""
    before, after = stats(device(beside=20 * GIB)), stats(device())
    result, after_s = freed(Server(before, after, reacts_s=1.4))
    assert result
    assert 1.4 <= after_s < 1.8


def test_nothing_was_held() -> None:
    """Then nothing can show: it is believed after a few orders, not at once."""
    server = Server(stats(device()), stats(device()))
    result, after_s = freed(server)
    assert result
    assert NOTHING_TO_FREE_S <= after_s < NOTHING_TO_FREE_S + 0.5
    assert len(server.orders) == 2


@pytest.mark.parametrize(
    ("held", "kept", "expected"),
    [
        (6 * GIB, RESIDUE_BYTES, True),
        (6 * GIB, RESIDUE_BYTES + 1, False),
        (20 * GIB, 2 * GIB, True),
        (20 * GIB, 3 * GIB, False),
    ],
)
def test_what_custom_nodes_keep(held: int, kept: int, expected: bool) -> None:
    """A little may stay, or a small part; more means that it was not freed, and the server is stopped instead."""
    result, after_s = freed(Server(stats(device(held=held)), stats(device(held=kept))))
    assert result is expected
    assert expected or UNLOAD_LIMIT_S <= after_s < UNLOAD_LIMIT_S + 1


@pytest.mark.parametrize("kind", ["cpu", "mps", "privateuseone"])
def test_devices_without_numbers(kind: str) -> None:
    """Two accepted orders and an idle queue must do."""
    server = Server(stats(device(kind)), stats(device(kind)))
    result, after_s = freed(server)
    assert result
    assert NOTHING_TO_FREE_S <= after_s < NOTHING_TO_FREE_S + 0.5
    assert len(server.orders) == 2


def test_a_prompt_that_came_meanwhile() -> None:
    """As long as somebody else's prompts run it is not free, whatever the numbers say; then it is."""

    def remaining() -> int:
        return int(asyncio.get_running_loop().time() < 5)

    result, after_s = freed(Server(stats(device(held=6 * GIB)), stats(device()), remaining=remaining))
    assert result
    assert 5 <= after_s < 5.5
    endless, after_s = freed(Server(stats(device("cpu")), stats(device("cpu")), remaining=lambda: 1))
    assert not endless
    assert after_s < UNLOAD_LIMIT_S + 1


def test_refused_and_unreadable() -> None:
    """Whatever is no agreement ends the attempt at once."""
    good = stats(device(held=6 * GIB))
    for server in (Server(good, good, order_status=500), Server(good, answer(200, text="<html>"))):
        result, after_s = freed(server)
        assert not result
        assert after_s < 1


@pytest.mark.parametrize("silent", ["GET /system_stats", "POST /free", "GET /prompt"])
def test_silence_is_bounded(silent: str) -> None:
    """A call without an answer is made again until the time is over; an order nobody took frees nothing."""
    server = Server(stats(device()), stats(device()))
    timeout: Answer = TimeoutError("no answer within 4 s")
    server.caller.answers[silent] = timeout
    result, after_s = freed(server)
    assert not result
    assert UNLOAD_LIMIT_S <= after_s < UNLOAD_LIMIT_S + 1


def test_nobody_there() -> None:
    """A process that has gone is the supervisor's to notice."""
    with pytest.raises(ConnectionRefusedError):
        run_virtual(free(FakeCaller({}), INSTANCE))
