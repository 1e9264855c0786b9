"""What a new configuration changes, and what it leaves alone."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from juggler.config.load import load_text
from juggler.config.resolve import ResolvedConfig, resolve
from juggler.reload.plan import Change, ReloadPlan, plan

Document = dict[str, Any]


def document() -> Document:
    """Three models on two servers, two endpoints on one attached server."""
    return {
        "temp_dir": "/t",
        "state_dir": "/s",
        "memory": {"pools": {"gpu0": "24GiB"}},
        "backends": {
            "llm": {"type": "command", "binary": "/bin/llm", "default_parameters": ["--port", "{port}"]},
            "ui": {"type": "command", "attach_to": "http://localhost:7860", "unload": "POST /unload"},
        },
        "servers": [
            {
                "name": "S",
                "port": 8001,
                "endpoints": [
                    {"name": "a", "path_prefix": "/a", "backend": "llm", "parameters": ["-m", "a"], "memory": "8GiB"},
                    {"name": "b", "path_prefix": "/b", "backend": "llm", "parameters": ["-m", "b"]},
                ],
            },
            {
                "name": "T",
                "port": 8002,
                "endpoints": [
                    {"name": "one", "path_prefix": "/one", "backend": "ui"},
                    {"name": "two", "path_prefix": "/two", "backend": "ui"},
                ],
            },
        ],
    }


def config(text: Document) -> ResolvedConfig:
    return resolve(load_text(json.dumps(text)))


def planned(edit: Callable[[Document], object], base: Document | None = None) -> ReloadPlan:
    """The plan for an edit of the document."""
    before = base or document()
    after = copy.deepcopy(before)
    edit(after)
    return plan(config(before), config(after))


def no_process_changes(came: ReloadPlan) -> bool:
    return (came.changed, came.added, came.removed) == ((), (), ())


def first(text: Document) -> Document:
    endpoint: Document = text["servers"][0]["endpoints"][0]
    return endpoint


def test_the_same_file_changes_nothing() -> None:
    came = planned(lambda text: None)
    assert came.nothing
    assert came.kept == ("S/a", "S/b", "T/one")
    assert came.changes() == []
    assert came.summary == "nothing to change (models: keep 3; listeners: keep 2)"


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda text: first(text).update(parameters=["-m", "c"]), ("parameters",)),
        (lambda text: first(text).update(env={"X": "secret"}), ("env",)),
        (lambda text: first(text).update(kv_cache_saving=False), ("kv_cache_saving",)),
    ],
)
def test_what_takes_another_process(edit: Callable[[Document], object], what: tuple[str, ...]) -> None:
    came = planned(edit)
    assert came.changed == (Change("S/a", what),)
    assert came.kept == ("S/b", "T/one")
    assert "secret" not in json.dumps(came.as_data())


def test_a_backend_that_changes_restarts_all_that_use_it() -> None:
    came = planned(lambda text: text["backends"]["llm"].update(binary="/bin/other"))
    assert [one.name for one in came.changed] == ["S/a", "S/b"]
    assert came.summary == "models: keep 1, restart 2; listeners: keep 2"
    assert came.lines() == ["model S/a: restart (binary)", "model S/b: restart (binary)"]


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda text: first(text).update(concurrency=3), "concurrency"),
        (lambda text: first(text).update(queue_limit=3), "queue_limit"),
        (lambda text: first(text).update(pinned=True), "pinned"),
        (lambda text: first(text).update(idle_unload="5m"), "idle_unload_s"),
        (lambda text: first(text).update(memory="9GiB"), "memory"),
        (lambda text: text["backends"]["llm"].update(start_timeout="5m"), "start_timeout_s"),
        (lambda text: text["backends"]["llm"].update(stop_timeout="5m"), "stop_timeout_s"),
    ],
)
def test_what_changes_in_place(edit: Callable[[Document], object], what: str) -> None:
    came = planned(edit)
    assert not came.changed
    assert came.updated[0] == Change("S/a", (what,))
    assert came.kept == ("S/a", "S/b", "T/one")


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda text: first(text).update(priority="batch"), ("priority", "max_wait_s", "max_priority")),
        (lambda text: first(text).update(max_wait="5s"), ("max_wait_s",)),
        (lambda text: first(text).update(path_prefix="/x"), ("prefix",)),
    ],
)
def test_what_changes_of_an_endpoint(edit: Callable[[Document], object], what: tuple[str, ...]) -> None:
    came = planned(edit)
    assert came.endpoints == (Change("S/a", what),)
    assert not came.changed
    assert not came.updated
    assert not came.nothing


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda text: text.update(scheduler={"dial": "fair"}), "scheduler"),
        (lambda text: text.update(memory={"pools": {"gpu0": "20GiB"}}), "memory.pools"),
        (lambda text: text.update(warmup=[{"server": "S", "endpoint": "a"}]), "warmup"),
        (lambda text: text.update(reload="watch"), "reload"),
        (lambda text: text.update(waiting={"page_after": 0}), "waiting.page_after"),
    ],
)
def test_what_changes_at_the_top(edit: Callable[[Document], object], key: str) -> None:
    came = planned(edit)
    assert came.settings == (key,)
    assert came.kept == ("S/a", "S/b", "T/one")
    assert not came.nothing


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda text: text.update(temp_dir="/other"), "temp_dir"),
        (lambda text: text.update(state_dir="/other"), "state_dir"),
        (lambda text: text.update(control=False), "control"),
        (lambda text: text.update(history=False), "history"),
        (lambda text: text.update(memory={"pools": "exclusive"}), "memory.pools"),
        (lambda text: text.update(memory={"pools": {"gpu0": "24GiB", "gpu1": "8GiB"}}), "memory.pools"),
        (lambda text: text.update(memory={"pools": "auto"}), "memory.pools"),
    ],
)
def test_what_needs_a_restart_is_said_and_held_back(edit: Callable[[Document], object], key: str) -> None:
    """Nothing of it takes effect by half: all processes stay as they are."""
    came = planned(edit)
    assert came.restart_for == (key,)
    assert came.nothing
    assert came.kept == ("S/a", "S/b", "T/one")
    assert f"needs a restart: {key}" in came.summary
    assert came.lines() == [f"setting {key}: needs a restart of the juggler"]
    assert came.config == config(document())


def test_new_and_removed_models() -> None:
    def edit(text: Document) -> None:
        endpoints = text["servers"][0]["endpoints"]
        endpoints[1] = {"name": "c", "path_prefix": "/c", "backend": "llm", "parameters": ["-m", "c"]}

    came = planned(edit)
    assert (came.kept, came.added, came.removed) == (("S/a", "T/one"), ("S/c",), ("S/b",))
    assert (came.endpoints_added, came.endpoints_removed) == (("S/c",), ("S/b",))
    assert came.summary == "models: keep 2, new 1, remove 1; listeners: keep 2"


def test_an_endpoint_with_another_name_keeps_its_process() -> None:
    came = planned(lambda text: first(text).update(name="renamed"))
    assert came.kept == ("S/a", "S/b", "T/one")
    assert came.updated == (Change("S/a", ("name",)),)
    assert no_process_changes(came)
    assert came.config.servers[0].endpoints[0].instance == "S/a"


def test_an_endpoint_on_another_server_keeps_its_process() -> None:
    def edit(text: Document) -> None:
        text["servers"][1]["endpoints"].append(text["servers"][0]["endpoints"].pop(0))

    came = planned(edit)
    assert set(came.kept) == {"S/a", "S/b", "T/one"}
    assert no_process_changes(came)


def test_a_twin_does_not_take_the_process_of_another_endpoint() -> None:
    """Whoever is written first has no better claim to it than the endpoint that it serves."""

    def edit(text: Document) -> None:
        text["servers"][0]["endpoints"].insert(0, {**first(text), "name": "twin", "path_prefix": "/twin"})

    came = planned(edit)
    assert came.added == ("S/twin",)
    served = {one.name: one.instance for one in came.config.servers[0].endpoints}
    assert served == {"twin": "S/twin", "a": "S/a", "b": "S/b"}


def test_names_that_change_places_do_not_change_processes() -> None:
    def edit(text: Document) -> None:
        one, two = text["servers"][0]["endpoints"]
        one["name"], two["name"] = "b", "a"

    came = planned(edit)
    assert no_process_changes(came)
    served = {one.name: one.instance for one in came.config.servers[0].endpoints}
    assert served == {"b": "S/a", "a": "S/b"}


def test_the_rest_of_a_shared_server_stays_attached_when_its_first_endpoint_goes() -> None:
    came = planned(lambda text: text["servers"][1]["endpoints"].pop(0))
    assert came.kept == ("S/a", "S/b", "T/one")
    assert came.config.servers[1].endpoints[0].instance == "T/one"


def test_a_new_instance_does_not_take_the_id_of_one_that_stays() -> None:
    def edit(text: Document) -> None:
        text["servers"][1]["endpoints"][0].update(backend="llm", parameters=["-m", "x"])

    came = planned(edit)
    assert came.kept == ("S/a", "S/b", "T/one")
    assert came.added == ("T/one (2)",)
    served = {one.name: one.instance for one in came.config.servers[1].endpoints}
    assert served == {"one": "T/one (2)", "two": "T/one"}
    assert {one.settings.instance for one in came.config.instances} == {one.id for one in came.config.instances}


def test_planning_goes_on_from_what_a_plan_has_brought() -> None:
    """Ids of the running program are kept over any number of reloads."""
    text = document()
    first(text).update(name="renamed")
    came = plan(config(document()), config(text))
    again = plan(came.config, config(text))
    assert again.nothing
    back = plan(came.config, config(document()))
    assert back.kept == ("S/a", "S/b", "T/one")


def test_a_web_ui_that_knows_its_prefix_takes_another_process_for_another_prefix() -> None:
    base = document()
    base["backends"]["llm"] = {"type": "sdwebui", "binary": "/bin/webui.sh"}
    for one in base["servers"][0]["endpoints"]:
        one["strip_prefix"] = True
    assert planned(lambda text: first(text).update(path_prefix="/x"), base).changed == (Change("S/a", ("ui_prefix",)),)


# -- listeners ---------------------------------------------------------------------------------------------------


def test_listeners() -> None:
    def edit(text: Document) -> None:
        text["servers"][0]["port"] = 9001
        text["servers"][1] = {"name": "U", "port": 9002, "endpoints": []}

    doors = planned(edit).listeners
    assert (doors.kept, doors.added, doors.removed, doors.rebound) == ((), ("U",), ("T",), ("S",))


def test_a_server_with_another_name_keeps_its_connections() -> None:
    came = planned(lambda text: text["servers"][0].update(name="Other"))
    assert came.listeners.kept == (("T", "T"), ("S", "Other"))
    assert "listener S: rename (Other)" in came.lines()
    assert no_process_changes(came)


def test_servers_that_change_names_keep_their_connections() -> None:
    def edit(text: Document) -> None:
        one, two = text["servers"]
        one["name"], two["name"] = "T", "S"

    assert planned(edit).listeners.kept == (("S", "T"), ("T", "S"))


def test_https_where_there_was_none_is_another_listener() -> None:
    edit: Callable[[Document], object] = lambda text: text["servers"][0].update(tls={"cert": "/c", "key": "/k"})  # noqa: E731
    assert planned(edit).listeners.rebound == ("S",)


def test_other_limits_are_a_change_in_place() -> None:
    came = planned(lambda text: text["servers"][0].update(limits={"connections": 7}))
    assert came.servers == (Change("S", ("limits",)),)
    assert came.listeners.kept == (("S", "S"), ("T", "T"))


@pytest.mark.parametrize("pool", [None, "gpu1"])
def test_models_that_were_renamed_keep_their_memory_while_pools_wait(pool: str | None) -> None:
    """In this reload or in one before: they are known by other names than those in the file."""

    def rename(text: Document) -> None:
        text["servers"][0]["endpoints"][0]["name"] = "z"

    def more_pools(text: Document) -> None:
        text["memory"]["pools"]["gpu2"] = "24GiB"

    base = document()
    base["memory"]["pools"] = {"gpu0": "24GiB", "gpu1": "24GiB"}
    if pool is not None:
        base["servers"][0]["endpoints"][0]["pool"] = pool
    both, renamed = copy.deepcopy(base), copy.deepcopy(base)
    rename(renamed)
    rename(both)
    more_pools(both)
    memory = config(base).instances[0].memory
    assert memory is not None
    for came in (plan(config(base), config(both)), plan(plan(config(base), config(renamed)).config, config(both))):
        assert no_process_changes(came)
        assert came.restart_for == ("memory.pools",)
        assert (came.config.instances[0].memory, came.config.instances[0].pool) == (memory, pool)


def test_models_that_swap_their_names_do_not_swap_their_memory() -> None:
    base = document()
    base["servers"][0]["endpoints"][1]["memory"] = "2GiB"

    def edit(text: Document) -> None:
        one, other = text["servers"][0]["endpoints"][:2]
        one["name"], other["name"] = "b", "a"
        text["memory"]["pools"]["gpu1"] = "24GiB"

    came = planned(edit, base)
    assert no_process_changes(came)
    assert [one.memory for one in came.config.instances[:2]] == [one.memory for one in config(base).instances[:2]]
