"""Browsers whose page has to wait: one request goes on through all questions of the page, and ends with them.

In virtual time.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from juggler import page_waits
from juggler.errors import EndpointRemoved, QueueTimeout, StartFailed
from juggler.ids import EndpointId
from juggler.page_waits import PageWaits
from juggler.proxy.contract import ExchangeResult, Lease, LocalResponse, RequestInfo, Route
from juggler.proxy.upstream import UpstreamPool
from juggler.proxy.wishes import Wishes
from juggler.renames import Renames
from juggler.routing.traffic import TrafficClass
from juggler.scheduler.explain import Outlook
from juggler.testing.virtual_time import run_virtual

SOON_S = 0.01
ROUTE = Route(EndpointId("s/ui"), "ui", b"/", TrafficClass.START)
HTML = (b"Accept: text/html,*/*;q=0.8\r\n", b"accept", b"text/html,*/*;q=0.8")


@dataclass
class FakeLease:
    upstream: UpstreamPool
    released: list[ExchangeResult] = field(default_factory=list)

    def switched(self) -> None: ...

    def release(self, result: ExchangeResult) -> None:
        self.released.append(result)


class FakeEngine:
    """Lets in, or fails, when it is told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[FakeLease]] = []
        self.left = 0
        self.ready = False
        self.removed = False
        self.renames = Renames()
        self.endpoints: list[EndpointId] = []

    async def acquire(self, route: Route, request: RequestInfo) -> Lease:
        self.endpoints.append(route.endpoint)
        answer: asyncio.Future[FakeLease] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            self.left += 1
            raise

    def answers(self, endpoint: EndpointId) -> bool:
        if self.removed:
            raise EndpointRemoved("It is no longer served.")
        return self.ready

    def outlook(self, endpoint: EndpointId) -> Outlook:
        if self.removed:
            raise EndpointRemoved("It is no longer served.")
        return Outlook("'other' is on the way out", 7.0)

    def now(self) -> float:
        return asyncio.get_running_loop().time()


def lease() -> FakeLease:
    return FakeLease(UpstreamPool("127.0.0.1", 1))


def ask(client: str = "10.0.0.1", method: bytes = b"GET", wishes: Wishes | None = None) -> RequestInfo:
    return RequestInfo(method, b"/ui/", client, (HTML,), wishes or Wishes())


def page_of(answer: Lease | LocalResponse) -> str:
    assert isinstance(answer, LocalResponse)
    assert answer.status == 503
    return answer.body.decode()


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test in virtual time."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        run_virtual(test(**fixtures))

    return run


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later questions are held no longer than first ones, unless a test wants that."""
    monkeypatch.setattr(page_waits, "HELD_S", SOON_S)


@virtually
async def test_one_request_goes_on_through_all_questions() -> None:
    """Its place in the queue is kept, and the question that is open when its turn comes gets the lease."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    for _ in range(3):
        told = page_of(await pages.acquire(ROUTE, ask()))
        assert "ui</bdi> is being loaded" in told
        assert "is on the way out" in told
        assert "About 7.0 s more" in told
    assert len(engine.asked) == 1
    last = asyncio.create_task(pages.acquire(ROUTE, ask()), name="last")
    await settled()
    granted = lease()
    engine.asked[0].set_result(granted)
    assert await last is granted
    assert (granted.released, engine.left) == ([], 0)
    assert not pages._kept


@virtually
async def test_a_turn_that_comes_between_two_questions_is_held() -> None:
    """The model must not be taken away before its page was seen."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    granted = lease()
    engine.asked[0].set_result(granted)
    await settled()
    assert not granted.released
    engine.ready = True
    assert pages.keeps(ROUTE.endpoint)
    assert pages.concern(ROUTE, ask())
    assert await pages.acquire(ROUTE, ask()) is granted
    assert not granted.released
    assert not pages.keeps(ROUTE.endpoint)


@pytest.mark.parametrize("traffic", [TrafficClass.START, TrafficClass.WORK])
@virtually
async def test_a_backend_that_is_up_before_its_turn_comes(traffic: TrafficClass) -> None:
    """Its slots may be in use for long: a root document needs none, work keeps its place."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    route = Route(EndpointId("s/ui"), "ui", b"/", traffic)
    page_of(await pages.acquire(route, ask()))
    engine.ready = True
    assert pages.concern(route, ask())
    again = asyncio.create_task(pages.acquire(route, ask()), name="again")
    await settled()
    granted = lease()
    if traffic is TrafficClass.START:
        assert (len(engine.asked), engine.left) == (2, 1)
        engine.asked[1].set_result(granted)
    else:
        assert len(engine.asked) == 1
        page_of(await again)
        engine.asked[0].set_result(granted)
        again = asyncio.create_task(pages.acquire(route, ask()), name="and again")
    assert await again is granted
    assert not pages.keeps(route.endpoint)
    assert not pages.concern(route, ask())


@virtually
async def test_another_client_once_the_backend_is_up() -> None:
    """It is let in as if nobody had waited, and takes nobody's place."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    engine.ready = True
    assert pages.concern(ROUTE, ask("b"))
    other = asyncio.create_task(pages.acquire(ROUTE, ask("b")), name="other")
    await asyncio.sleep(3 * SOON_S)
    assert not other.done()  # no page in place of a moment's wait
    granted = lease()
    engine.asked[1].set_result(granted)
    assert await other is granted
    assert pages.keeps(ROUTE.endpoint)
    pages.close()
    await settled()
    assert engine.left == 1


@virtually
async def test_a_failure_between_two_questions_is_told() -> None:
    """Once; what is asked then is a new try."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    engine.asked[0].set_exception(StartFailed("It crashed."))
    await settled()
    with pytest.raises(StartFailed, match="crashed"):
        await pages.acquire(ROUTE, ask())
    page_of(await pages.acquire(ROUTE, ask()))
    assert len(engine.asked) == 2
    pages.close()
    await settled()


@virtually
async def test_a_failure_is_no_news_once_the_backend_is_up() -> None:
    """Somebody else had it loaded: the page is there, whatever became of this one's wait."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    engine.asked[0].set_exception(QueueTimeout("It waited too long."))
    await settled()
    engine.ready = True
    again = asyncio.create_task(pages.acquire(ROUTE, ask()), name="again")
    await settled()
    granted = lease()
    engine.asked[1].set_result(granted)
    assert await again is granted
    assert not pages.keeps(ROUTE.endpoint)


@virtually
async def test_later_questions_are_held_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser shows our page meanwhile, and its own comes in the moment it is there."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    monkeypatch.setattr(page_waits, "HELD_S", 60.0)
    held = asyncio.create_task(pages.acquire(ROUTE, ask()), name="held")
    await asyncio.sleep(3 * SOON_S)
    assert not held.done()
    granted = lease()
    engine.asked[0].set_result(granted)
    assert await held is granted


@pytest.mark.parametrize("came", ["nothing", "lease", "failure"])
@virtually
async def test_a_page_that_was_closed(came: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks again: the request leaves after a while, and gives back what came."""
    monkeypatch.setattr(page_waits, "KEPT_S", SOON_S)
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    granted = lease()
    if came == "lease":
        engine.asked[0].set_result(granted)
    elif came == "failure":
        engine.asked[0].set_exception(StartFailed("It crashed."))
    await asyncio.sleep(3 * SOON_S)
    await settled()
    assert not pages._kept
    assert engine.left == (came == "nothing")
    assert [one.client_gone for one in granted.released] == [True] * (came == "lease")


async def hang_up(waiting: "asyncio.Task[Lease | LocalResponse]") -> None:
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("granted_too", [False, True])
@virtually
async def test_a_client_that_leaves_while_it_waits(granted_too: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request soon follows it, also when its turn came in the same moment."""
    monkeypatch.setattr(page_waits, "LEFT_S", SOON_S)
    engine = FakeEngine()
    pages = PageWaits(engine, 60.0)
    waiting = asyncio.create_task(pages.acquire(ROUTE, ask()), name="waiting")
    await settled()
    granted = lease()
    if granted_too:
        engine.asked[0].set_result(granted)
    await hang_up(waiting)
    await asyncio.sleep(3 * SOON_S)
    await settled()
    assert (engine.left, len(granted.released)) == ((0, 1) if granted_too else (1, 0))
    assert not pages._kept


@virtually
async def test_a_page_that_is_loaded_again_keeps_its_place() -> None:
    """A browser hangs up on the question that is held, and asks anew in the next moment."""
    engine = FakeEngine()
    pages = PageWaits(engine, 60.0)
    await hang_up(await asked(pages))
    again = await asked(pages)
    assert (len(engine.asked), engine.left) == (1, 0)
    granted = lease()
    engine.asked[0].set_result(granted)
    assert await again is granted
    assert not pages._kept


async def asked(pages: PageWaits) -> "asyncio.Task[Lease | LocalResponse]":
    question = asyncio.create_task(pages.acquire(ROUTE, ask()), name="question")
    await settled()
    return question


@virtually
async def test_a_client_that_is_cut_by_a_shutdown() -> None:
    """Nothing outlives the juggler's end, in whatever order they end."""
    engine = FakeEngine()
    pages = PageWaits(engine, 60.0)
    waiting = await asked(pages)
    pages.close()
    await hang_up(waiting)
    await settled()
    assert engine.left == 1
    assert not pages._kept


@pytest.mark.parametrize("when", ["between two questions", "during a question"])
@virtually
async def test_an_endpoint_that_is_removed(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is told so; what was kept for him is not forgotten, but ends as everything does."""
    monkeypatch.setattr(page_waits, "KEPT_S", SOON_S)
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    if when == "during a question":
        question = await asked(pages)
        engine.removed = True
    else:
        page_of(await pages.acquire(ROUTE, ask()))
        engine.removed = True
        question = await asked(pages)
    with pytest.raises(EndpointRemoved):
        await question
    await asyncio.sleep(3 * SOON_S)
    await settled()
    assert (len(engine.asked), engine.left) == (1, 1)
    assert not pages._kept


@virtually
async def test_clients_and_tabs_are_told_apart() -> None:
    """Two tabs wait twice, and nobody takes another's place."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    for _ in range(2):
        await asyncio.gather(pages.acquire(ROUTE, ask()), pages.acquire(ROUTE, ask()), pages.acquire(ROUTE, ask("b")))
    assert len(engine.asked) == 3
    pages.close()
    await settled()
    assert engine.left == 3


@virtually
async def test_closing_keeps_nothing() -> None:
    """Neither what was kept nor what comes later holds up a juggler that goes down."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    granted = lease()
    engine.asked[0].set_result(granted)
    await settled()
    pages.close()
    await settled()
    assert len(granted.released) == 1
    page_of(await pages.acquire(ROUTE, ask()))
    await settled()
    assert engine.left == 1
    assert not pages._kept


@virtually
async def test_tabs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client cannot have any number of requests kept."""
    monkeypatch.setattr(page_waits, "KEPT_MOST", 2)
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    await asyncio.gather(*(pages.acquire(ROUTE, ask()) for _ in range(5)))
    await settled()
    assert (len(engine.asked), engine.left) == (5, 3)
    pages.close()
    await settled()


@virtually
async def test_whom_it_concerns() -> None:
    """Browsers that open a page whose backend has to load; nobody else."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    work = Route(EndpointId("s/ui"), "ui", b"/", TrafficClass.WORK)
    light = Route(EndpointId("s/ui"), "ui", b"/", TrafficClass.LIGHT)
    assert pages.concern(ROUTE, ask())
    assert pages.concern(work, ask())
    assert not pages.concern(light, ask())
    assert not pages.concern(work, ask(method=b"POST"))
    assert not pages.concern(ROUTE, ask(wishes=Wishes(max_wait_s=0.0)))
    assert not pages.concern(ROUTE, RequestInfo(b"GET", b"/", "c"))
    engine.ready = True
    assert not pages.concern(ROUTE, ask())


UI, OTHER = ROUTE.endpoint, EndpointId("t/ui")


@virtually
async def test_servers_that_swap_their_names() -> None:
    """What is kept goes on under the new name; who asks at the other server has no part in it."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    page_of(await pages.acquire(ROUTE, ask()))
    engine.renames.add({UI: OTHER, OTHER: UI})
    assert (pages.keeps(UI), pages.keeps(OTHER)) == (False, True)
    page_of(await pages.acquire(ROUTE, ask()))
    assert len(engine.asked) == 2
    granted = lease()
    engine.asked[0].set_result(granted)
    await settled()
    engine.ready = True
    assert await pages.acquire(replace(ROUTE, endpoint=OTHER), ask()) is granted
    pages.close()


@virtually
async def test_servers_that_swap_their_names_before_the_request_itself_begins() -> None:
    """It is a task, and a new configuration may come first."""
    engine = FakeEngine()
    pages = PageWaits(engine, SOON_S)
    question = asyncio.create_task(pages.acquire(ROUTE, ask()), name="question")
    asyncio.get_running_loop().call_soon(engine.renames.add, {UI: OTHER, OTHER: UI})  # after that, before its task
    page_of(await question)
    assert engine.endpoints == [OTHER]
    pages.close()
    await settled()


@virtually
async def test_a_server_that_is_renamed_during_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next question, which comes under the new name, goes on with it; in the end all of it is forgotten."""
    monkeypatch.setattr(page_waits, "LEFT_S", SOON_S)
    engine = FakeEngine()
    pages = PageWaits(engine, 60.0)
    question = await asked(pages)
    engine.renames.add({UI: OTHER})
    await hang_up(question)
    assert (pages.keeps(UI), pages.keeps(OTHER)) == (False, True)
    engine.renames.add({OTHER: UI})
    await asyncio.sleep(3 * SOON_S)
    assert not pages._kept
    assert engine.left == 1
