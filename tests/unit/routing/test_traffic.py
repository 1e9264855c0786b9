"""Classes of traffic under every spelling of a path."""

import pytest

from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable, as_backends_read

TABLE = TrafficTable([TrafficRule("POST /api/admin/*", TrafficClass.BLOCKED), TrafficRule("GET /", TrafficClass.START)])


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b"/a/b", b"/a/b"),
        (b"/%61/%2Fb", b"/a/b"),
        (b"//a///b/", b"/a/b/"),
        (b"/a/./b/../c", b"/a/c"),
        (b"/../../a", b"/a"),
        (b"/a/%2e%2e/b", b"/b"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"/100%", b"/100%"),
        (b"*", b"*"),
    ],
)
def test_paths_as_backends_read_them(raw: bytes, read: bytes) -> None:
    assert as_backends_read(raw) == read


@pytest.mark.parametrize(
    "path", [b"/api/admin/x", b"/api/%61dmin/x", b"//api//admin/x", b"/y/../api/admin/x", b"/api/admin%2Fx"]
)
def test_a_closed_route_is_closed_under_every_name(path: bytes) -> None:
    assert TABLE.classify(b"POST", path) is TrafficClass.BLOCKED


def test_verdicts_are_remembered_within_bounds() -> None:
    """Also for hostile clients that never use a path twice."""
    for number in range(5000):
        assert TABLE.classify(b"GET", b"/%d" % number) is TrafficClass.LIGHT
    assert TABLE.classify(b"GET", b"/" + b"x" * 10_000) is TrafficClass.LIGHT
    assert len(TABLE._known) <= 1024
    assert all(len(path) <= 200 for _, path in TABLE._known)
    assert TABLE.classify(b"GET", b"/") is TrafficClass.START
