"""What an endpoint is called now, for whoever asked for it by an earlier name."""

from juggler.ids import EndpointId
from juggler.proxy.contract import Route
from juggler.renames import KEPT_MOST, Named, Renames, gone, last_name
from juggler.routing.traffic import TrafficClass

A, B, C = (EndpointId(f"{server}/x") for server in "abc")


def test_a_name_is_followed_from_its_own_moment() -> None:
    """The same name, asked for at two moments, may mean two endpoints."""
    renames = Renames()
    early = Named(renames, A)
    renames.add({A: B, B: A})
    late = Named(renames, A)
    assert (early.id, late.id) == (B, A)
    renames.add({A: C})
    assert (early.id, late.id) == (B, C)
    renames.add({B: A})
    assert (early.id, late.id) == (A, C)


def test_a_change_without_other_names_is_none() -> None:
    renames = Renames()
    renames.add({})
    assert renames.count == 0


def test_few_changes_are_remembered() -> None:
    """The latest, however many there were."""
    renames = Renames()
    named = Named(renames, A)
    for _ in range(3 * KEPT_MOST):
        renames.add({A: B, B: A})
    assert len(renames._latest) == KEPT_MOST
    fresh = Named(renames, A)
    renames.add({A: B, B: A})
    assert (named.id, fresh.id) == (A, B)


def test_an_endpoint_that_is_gone() -> None:
    """Whoever gets its name later is another one; people are told the name that it had."""
    renames = Renames()
    named, route = Named(renames, A), Route(A, "x", b"/", TrafficClass.WORK)
    renames.add({A: gone(A)})
    renames.add({A: B})
    assert named.id not in (A, B)
    assert (last_name(named.id), named.on(route)) == (A, route)
    assert last_name(A) == A


def test_a_route_gets_the_name_of_today() -> None:
    renames = Renames()
    route = Route(A, "x", b"/", TrafficClass.WORK)
    named = Named(renames, A)
    assert named.on(route) is route
    renames.add({A: B})
    assert named.on(route) == Route(B, "x", b"/", TrafficClass.WORK)
