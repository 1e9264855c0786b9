"""What a new configuration has loaded before anyone asks: what comes to the list, and nothing for its name alone."""

from pathlib import Path

import pytest
from tests.unit.reload.test_many_reloads import ask, endpoint, eventually, running, server

from juggler.ids import EndpointId, InstanceId
from juggler.warmup import Warmup, WarmupEntry

A, B, C = (EndpointId(f"S/{name}") for name in "abc")
ONE, TWO = InstanceId("one"), InstanceId("two")


def after(warmup: Warmup) -> list[tuple[str, str]]:
    return [(one.endpoint, one.state) for one in warmup.entries]


def warmed_up(*states: tuple[EndpointId, str]) -> Warmup:
    warmup = Warmup(())
    warmup.entries = [WarmupEntry(endpoint, state) for endpoint, state in states]
    return warmup


@pytest.mark.parametrize("what", ["server", "endpoint"])
async def test_another_name_loads_nothing(what: str, tmp_path: Path) -> None:
    """The model that is in use stays, where both do not fit."""
    a, b = endpoint("a", "a", memory="20GiB"), endpoint("b", "b", memory="20GiB")
    async with running(tmp_path) as rig:
        await rig.reload(rig.document(server("S", rig.main, a, b), warmup=[{"server": "S", "endpoint": "a"}]))
        await eventually(lambda: after(rig.app.warmup) == [("S/a", "done")], "it is loaded")
        assert await ask(rig.main, "/b/x") == 200
        name, one = ("T", "a") if what == "server" else ("S", "a2")
        renamed = server(name, rig.main, {**a, "name": one}, b)
        await rig.reload(rig.document(renamed, warmup=[{"server": name, "endpoint": one}]))
        assert after(rig.app.warmup) == [(f"{name}/{one}", "done")]
        assert await ask(rig.main, "/b/x") == 200
        assert [one.generation for one in rig.app.engine.scheduler.state.instances.values()] == [1, 1]


def test_what_comes_to_the_list_is_loaded() -> None:
    warmup = warmed_up((A, "done"))
    warmup.change([A, B], {A: ONE, B: TWO}, {A: ONE, B: TWO}, ())
    assert after(warmup) == [(A, "done"), (B, "pending")]


def test_a_new_process_is_loaded_again() -> None:
    warmup = warmed_up((A, "done"), (B, "failed"))
    warmup.change([A, B], {A: ONE, B: TWO}, {A: ONE, B: TWO}, {ONE})
    assert after(warmup) == [(A, "pending"), (B, "failed")]


def test_a_name_that_another_model_takes() -> None:
    """The list means another model by the same name, which was not in it."""
    warmup = warmed_up((A, "done"))
    warmup.change([A], {A: ONE, B: TWO}, {B: ONE, A: TWO}, ())
    assert after(warmup) == [(A, "pending")]


def test_names_that_are_swapped() -> None:
    warmup = warmed_up((A, "done"), (B, "failed"))
    warmup.change([A, B], {A: ONE, B: TWO}, {B: ONE, A: TWO}, ())
    assert after(warmup) == [(A, "failed"), (B, "done")]


@pytest.mark.parametrize(("state", "second"), [("done", "done"), ("loading", "pending")])
def test_two_names_of_one_model(state: str, second: str) -> None:
    """One that is being loaded goes on by its new name; nobody would end the loading of the other."""
    warmup = warmed_up((A, state))
    loading = warmup.entries[0]
    warmup.change([B, C], {A: ONE}, {B: ONE, C: ONE}, ())
    assert after(warmup) == [(B, state), (C, second)]
    assert warmup.entries[0] is loading
