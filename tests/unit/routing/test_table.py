"""Routing is pure: raw bytes in, a route or a refusal out."""

import pytest

from juggler.errors import BadRequest, BlockedRoute, RoutingError
from juggler.ids import EndpointId
from juggler.routing.apis import Api
from juggler.routing.stand_in import Question, StandInAnswer
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.target import parse_target
from juggler.routing.traffic import Placeholder, TrafficClass, TrafficRule, TrafficTable, parse_match

TRAFFIC = TrafficTable(
    [TrafficRule("POST /slots/*", TrafficClass.BLOCKED), TrafficRule("* /ws", TrafficClass.HELD_OPEN)]
)


def table(*entries: tuple[str, str, bool]) -> RoutingTable:
    """Entries are (name, prefix, strip)."""
    return RoutingTable("S", [Entry(EndpointId(name), name, prefix, strip, TRAFFIC) for name, prefix, strip in entries])


SEED = table(("vision", "/vision", True), ("deep", "/a/b", True), ("kept", "/sdapi", False), ("default", "", False))


@pytest.mark.parametrize(
    ("target", "endpoint", "upstream"),
    [
        (b"/vision", "vision", b"/"),
        (b"/vision?x=1", "vision", b"/?x=1"),
        (b"/vision/", "vision", b"/"),
        (b"/vision/v1/chat?a=%20&b", "vision", b"/v1/chat?a=%20&b"),
        (b"/vision2", "default", b"/vision2"),
        (b"/Vision", "default", b"/Vision"),
        (b"/vision%2Fx", "default", b"/vision%2Fx"),
        (b"/vision//../%zz", "vision", b"//../%zz"),
        (b"/a/b/c", "deep", b"/c"),
        (b"/a/bc", "default", b"/a/bc"),
        (b"/sdapi/v1/x", "kept", b"/sdapi/v1/x"),
        (b"http://host:1/vision/x?y", "vision", b"/x?y"),
        (b"http://host", "default", b"/"),
        (b"http://host?q", "default", b"/?q"),
        (b"*", "default", b"*"),
        (b"/", "default", b"/"),
    ],
)
def test_targets_reach_their_endpoint_with_raw_bytes_kept(target: bytes, endpoint: str, upstream: bytes) -> None:
    """First match on a segment boundary; only the prefix is taken off."""
    route = SEED.match(b"GET", target)
    assert (route.endpoint, route.target) == (endpoint, upstream)


def test_the_first_entry_that_matches_wins_even_if_a_later_one_is_longer() -> None:
    """Order is the operator's, not the length of the prefix."""
    assert table(("all", "", False), ("x", "/x", False)).match(b"GET", b"/x").endpoint == "all"
    assert table(("x", "/x", False), ("xy", "/x/y", False)).match(b"GET", b"/x/y").endpoint == "x"
    assert table(("xy", "/x/y", False), ("x", "/x", False)).match(b"GET", b"/x/y/z").endpoint == "xy"


def test_prefixes_outside_ascii_match_in_both_forms() -> None:
    """Clients percent-encode what operators write plainly."""
    spaced = table(("e", "/größe x", True))
    for path in ("/größe x/y".encode(), b"/gr%C3%B6%C3%9Fe%20x/y"):
        assert spaced.match(b"GET", path).target == b"/y"


def test_an_unknown_path_lists_the_endpoints() -> None:
    """The 404 tells what there is."""
    with pytest.raises(RoutingError) as caught:
        table(("v", "/v", True)).match(b"GET", b"/w")
    assert caught.value.status == 404
    assert caught.value.details["endpoints"] == [{"name": "v", "path_prefix": "/v"}]


@pytest.mark.parametrize("target", [b"ftp://x/", b"x", b"a:1", b"http://"])
def test_other_forms_of_targets_are_bad_requests(target: bytes) -> None:
    """CONNECT's authority form and nonsense are refused."""
    with pytest.raises(BadRequest):
        parse_target(target)


def test_control_routes_are_blocked_after_stripping() -> None:
    """The class is decided on the path that the backend would see."""
    with pytest.raises(BlockedRoute) as caught:
        SEED.match(b"POST", b"/vision/slots/0?action=erase")
    assert caught.value.status == 403
    assert SEED.match(b"GET", b"/vision/ws").traffic is TrafficClass.HELD_OPEN


@pytest.mark.parametrize(
    ("method", "path", "traffic"),
    [
        (b"GET", b"/any", TrafficClass.LIGHT),
        (b"HEAD", b"/any", TrafficClass.LIGHT),
        (b"OPTIONS", b"/slots/0", TrafficClass.LIGHT),
        (b"POST", b"/any", TrafficClass.WORK),
        (b"BREW", b"/any", TrafficClass.WORK),
        (b"PUT", b"/ws", TrafficClass.HELD_OPEN),
    ],
)
def test_general_traffic_rules(method: bytes, path: bytes, traffic: TrafficClass) -> None:
    """Unknown paths: what changes something is work, what only looks is light, preflights never wake."""
    assert TRAFFIC.classify(method, path) is traffic


@pytest.mark.parametrize("match", ["GET /", "* /", "GET|HEAD|OPTIONS /"])
def test_only_asking_for_the_page_starts_it(match: str) -> None:
    """HEAD and OPTIONS on the root document of a web UI are light, however its rule is written."""
    ui = TrafficTable([TrafficRule(match, TrafficClass.START)])
    assert ui.classify(b"GET", b"/") is TrafficClass.START
    assert ui.classify(b"HEAD", b"/") is TrafficClass.LIGHT
    assert ui.classify(b"OPTIONS", b"/") is TrafficClass.LIGHT


@pytest.mark.parametrize(
    ("method", "target", "cacheable"),
    [
        (b"GET", b"/v/models", True),
        (b"HEAD", b"/v/models", True),
        (b"OPTIONS", b"/v/models", False),
        (b"GET", b"/v/progress", False),
        (b"POST", b"/v/check", False),
        (b"POST", b"/v/work", False),
        (b"GET", b"/v/", False),
        (b"HEAD", b"/v/", True),
        (b"GET", b"/v/ws", False),
    ],
)
def test_what_an_earlier_reply_may_answer(method: bytes, target: bytes, cacheable: bool) -> None:
    """Light GET and HEAD that are not about this very moment; not the page that has its backend loaded."""
    rules = [
        TrafficRule("GET /progress", TrafficClass.LIGHT, volatile=True),
        TrafficRule("POST /check", TrafficClass.LIGHT),
        TrafficRule("GET /", TrafficClass.START),
        TrafficRule("* /ws", TrafficClass.HELD_OPEN),
    ]
    routes = RoutingTable("S", [Entry(EndpointId("v"), "v", "/v", True, TrafficTable(rules))])
    assert routes.match(method, target).cacheable is cacheable


@pytest.mark.parametrize(
    ("target", "bare"),
    [
        (b"/vision", True),
        (b"/vision?x", True),
        (b"/vision/", False),
        (b"/vision/x", False),
        (b"/sdapi", False),
        (b"/", False),
    ],
)
def test_bare_prefixes_are_told_apart(target: bytes, bare: bool) -> None:
    """Only a stripped prefix without its slash; the backend gets ``/`` either way."""
    assert SEED.match(b"GET", target).bare is bare


def test_what_an_entry_says_of_its_routes() -> None:
    """The shape of errors, and what stands in for an answer; the operator's own rules do not take that away."""
    there = Placeholder(b"here", "text/plain")
    traffic = TrafficTable(placeholders={b"/": there}).extended_by([TrafficRule("GET /x", TrafficClass.WORK)])
    routes = RoutingTable("S", [Entry(EndpointId("v"), "v", "/v", True, traffic, Api.OLLAMA)])
    found = routes.match(b"HEAD", b"/v/?x")
    assert (found.api, found.placeholder, found.cacheable) == (Api.OLLAMA, there, True)
    assert routes.match(b"GET", b"/v/y").placeholder is None
    assert not routes.match(b"POST", b"/v/").cacheable


def test_the_operators_rules_come_first() -> None:
    """An override opens what the type's table blocks."""
    opened = TRAFFIC.extended_by([TrafficRule("POST|PUT /slots/*", TrafficClass.WORK)])
    assert opened.classify(b"POST", b"/slots/1") is TrafficClass.WORK
    assert TRAFFIC.extended_by([]) is TRAFFIC


@pytest.mark.parametrize("match", ["GET", "/x", "GET x", ""])
def test_malformed_patterns_are_explained(match: str) -> None:
    """A pattern needs a method and a path."""
    with pytest.raises(ValueError, match="is not a traffic pattern"):
        parse_match(match)


class Nobody:
    """A stand-in for one route."""

    def knows(self, method: bytes, path: bytes) -> bool:
        return (method, path) == (b"GET", b"/known")

    async def answer(self, question: Question) -> StandInAnswer | None:
        return None


def test_what_a_body_says_comes_with_the_route() -> None:
    """A question may be answered from earlier, but not by another method; who else may answer is asked by its path."""
    nobody = Nobody()
    traffic = TrafficTable(
        [
            TrafficRule("* /ask", TrafficClass.LIGHT, question=True),
            TrafficRule("POST /work", TrafficClass.WORK, light_if=bool),
            TrafficRule("DELETE *", TrafficClass.LIGHT, changes=True),
        ]
    )
    entry = Entry(EndpointId("e"), "e", "/x", True, traffic, None, nobody)
    match = RoutingTable("S", [entry]).match
    assert match(b"POST", b"/x/ask").cacheable
    assert match(b"GET", b"/x/ask").cacheable
    assert not match(b"PUT", b"/x/ask").cacheable
    assert not match(b"POST", b"/x/other").cacheable
    assert match(b"GET", b"/x/known?a").stand_in is nobody
    assert match(b"GET", b"/x/unknown").stand_in is None
    work = match(b"POST", b"/x/work")
    assert work.light_if is bool
    assert work.as_light().traffic is TrafficClass.LIGHT
    assert work.as_light().target == work.target
    assert match(b"DELETE", b"/x/y").changes


def test_the_operators_rule_is_the_last_word_on_bodies() -> None:
    """Who says that a route is work, or light, says so of all its bodies."""
    traffic = TrafficTable([TrafficRule("POST /work", TrafficClass.WORK, light_if=bool)])
    assert (
        traffic.extended_by([TrafficRule("POST /work", TrafficClass.WORK)]).decide(b"POST", b"/work").light_if is None
    )
