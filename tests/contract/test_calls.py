"""Call lists of real clients, replayed with their libraries in every state of a juggled backend."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.libraries import Outcome
from tests.contract.lists import LISTS, Call, CallList
from tests.contract.node import missing
from tests.contract.replayed import Record, State, of_answer, replayed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # the first test of a module makes all its calls

Case = tuple[CallList, int]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Of all lists whose libraries are here."""
    return replayed(Path(tmp_path_factory.mktemp("calls")), [one for one in LISTS if not missing(one.libraries)])


def outcome_of(record: Record, case: Case, state: State) -> tuple[Call, Outcome]:
    one, number = case
    why = missing(one.libraries)
    if why:
        pytest.skip(why)
    return one.calls[number], record.outcomes[one.slug, state, number]


def cases(*classes: str) -> pytest.MarkDecorator:
    """All calls of these classes."""
    chosen = [
        pytest.param((one, number), id=f"{one.slug}: {call.name}")
        for one in LISTS
        for number, call in enumerate(one.calls)
        if call.traffic in classes
    ]
    return pytest.mark.parametrize("case", chosen)


def message_of(backend: str, path: str, body: dict[str, Any]) -> object:
    """The text of an error, where the clients of this API look for it."""
    if backend == "sdwebui" or path.startswith("/sdapi/"):
        assert body["detail"] == body["errors"]
        return body["detail"]
    if backend == "comfyui":
        assert body["node_errors"] == {}
        return body["error"]["message"]
    if backend == "koboldcpp" and path.startswith(("/api/v1/", "/api/extra/")):
        return body["detail"]["msg"]
    return body["error"] if path.startswith("/api/") else body["error"]["message"]


def refusal_is_bearable(case: Case, outcome: Outcome) -> None:
    """A 503 that says when to come back, in the words and the shape that the library shows to its user."""
    one, number = case
    call = one.calls[number]
    assert outcome.seconds < one.within_s
    assert outcome.status == 503
    assert outcome.error in ("", "InternalServerError", "ResponseError", "WSServerHandshakeError")
    if outcome.error and call.stream != "socket":
        assert "is not loaded" in outcome.message or "is loading" in outcome.message
    if outcome.headers:
        assert int(outcome.headers["retry-after"]) >= 1
        assert outcome.headers["content-type"] == "application/json"
        message = message_of(one.backend, call.path, json.loads(outcome.body))
        assert isinstance(message, str)
        assert one.slug in message


def is_answered_without(outcome: Outcome) -> None:
    """A good answer of somebody who has not asked the backend, and says so."""
    assert outcome.good, (outcome.status, outcome.error, outcome.message)
    if outcome.headers:
        assert outcome.headers["x-juggler"] in ("files", "placeholder")


@cases("light", "held-open")
def test_down_a_light_call_wakes_nothing(record: Record, case: Case) -> None:
    """The answer is one that the client can bear, and comes at once."""
    call, outcome = outcome_of(record, case, "down")
    assert record.starts[case[0].slug, "down"] == 0
    if call.must_answer:
        is_answered_without(outcome)
    else:
        refusal_is_bearable(case, outcome)


def test_down_the_models_are_those_that_the_backend_will_name(record: Record) -> None:
    """The list that is read from the disk has the names of the list that the program tells later, and its fields."""
    for one in LISTS:
        for number, call in enumerate(one.calls):
            if one.backend != "ollama" or call.path != "/api/tags" or missing(one.libraries):
                continue
            down, ready = (
                {model["model"]: set(model) for model in record.outcomes[one.slug, state, number].json()["models"]}
                for state in ("down", "ready")
            )
            assert down == ready


@cases("work", "start")
def test_loading_work_waits_and_succeeds(record: Record, case: Case) -> None:
    """It gets what it gets from a loaded backend; event streams were begun, with comments that disturb nobody."""
    call, outcome = outcome_of(record, case, "loading")
    one, number = case
    ready = record.outcomes[one.slug, "ready", number]
    assert outcome.good, (outcome.status, outcome.error, outcome.message)
    assert record.starts[one.slug, "loading"] == 1
    assert outcome.requests == 1
    told, later = of_answer(outcome, call, one), of_answer(ready, call, one)
    if call.stream == "events":
        assert record.began_before_load[one.slug, "loading", number]
        if call.library not in ("openai", "openai-npm"):
            assert outcome.comments
            assert outcome.headers["content-type"] == "text/event-stream"
        del told["headers"], later["headers"]
    assert told == later


@cases("light", "held-open")
def test_loading_a_light_call_is_answered(record: Record, case: Case) -> None:
    """It does not wait for the load."""
    call, outcome = outcome_of(record, case, "loading")
    if call.must_answer:
        is_answered_without(outcome)
    else:
        refusal_is_bearable(case, outcome)


@cases("work", "start", "light", "held-open")
def test_ready_everything_passes_unchanged(record: Record, case: Case) -> None:
    """With and without the juggler the library shows the same; nothing was started again."""
    call, outcome = outcome_of(record, case, "ready")
    one, number = case
    direct = record.outcomes[one.slug, "direct", number]
    assert of_answer(outcome, call, one) == of_answer(direct, call, one)
    assert outcome.good or outcome.status == 404  # a stand-in need not have every route
    assert not outcome.comments
    assert "x-juggler" not in outcome.headers
    assert record.starts[one.slug, "ready"] == 1


@cases("light", "held-open")
def test_away_a_light_call_gets_the_last_reply(record: Record, case: Case) -> None:
    """What was asked for before is still there; nobody is woken.

    What is of the moment is refused, or told if it is known: nothing is loaded.
    """
    call, outcome = outcome_of(record, case, "away")
    one, number = case
    ready = record.outcomes[one.slug, "ready", number]
    assert record.starts[one.slug, "away"] == 1
    if call.must_answer and call.moment:
        is_answered_without(outcome)
    elif call.must_answer or (call.remembered and ready.good):
        assert outcome.good
        assert outcome.body == ready.body
        if outcome.headers:
            assert outcome.headers["x-juggler"] == "cached"
    else:
        refusal_is_bearable(case, outcome)


def test_down_a_poll_is_not_repeated(record: Record) -> None:
    """Nothing loads, so nothing will have changed in ten seconds: three requests of an SDK take twenty for nothing."""
    client = next(one for one in LISTS if one.client == "any program with openai for Python")
    _, outcome = outcome_of(record, (client, 0), "down")
    assert outcome.headers["x-should-retry"] == "false"


@cases("blocked")
def test_blocked_calls_are_refused_in_every_state(record: Record, case: Case) -> None:
    """A plain 403."""
    states: tuple[State, ...] = ("down", "loading", "ready", "away")
    for state in states:
        _, outcome = outcome_of(record, case, state)
        assert outcome.status == 403
