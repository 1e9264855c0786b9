"""What is known of a llama.cpp server while it does not run."""

import json

import pytest

from juggler.backends.llamacpp import LlamaCppBackend
from juggler.routing.stand_in import Question, StandIn
from tests.unit.backends.fake_caller import settings


def stand_in(*parameters: str, env: dict[str, str] | None = None, attach_to: str | None = None) -> StandIn | None:
    return LlamaCppBackend(settings("llamacpp", *parameters, env=env, attach_to=attach_to)).stand_in()


@pytest.mark.parametrize(
    ("parameters", "env"),
    [
        (("-m", "/m.gguf", "--alias", "gemma"), {}),
        (("-hf", "o/r", "-a", "other", "-a", "gemma"), {}),
        (("--model", "/m.gguf"), {"LLAMA_ARG_ALIAS": "gemma"}),
    ],
)
async def test_its_name_is_known_where_it_was_given(parameters: tuple[str, ...], env: dict[str, str]) -> None:
    """In OpenAI's shape, and for lists alone."""
    one = stand_in(*parameters, env=env)
    assert one is not None
    assert one.knows(b"GET", b"/v1/models")
    assert one.knows(b"HEAD", b"/models")
    for method, path in ((b"POST", b"/v1/models"), (b"GET", b"/props"), (b"GET", b"/x/v1/models")):
        assert not one.knows(method, path)
    answer = await one.answer(Question(b"GET", b"/v1/models"))
    assert answer is not None
    document = json.loads(answer.body)
    created = document["data"][0].pop("created")
    assert created > 1_700_000_000
    assert document == {"object": "list", "data": [{"id": "gemma", "object": "model", "owned_by": "llamacpp"}]}


@pytest.mark.parametrize(
    "parameters",
    [("-m", "/m.gguf"), ("-m", "/m.gguf", "-a", "one,two"), ("-a", "gemma"), ("-m", "/m.gguf", "-a")],
)
def test_a_name_is_not_guessed(parameters: tuple[str, ...]) -> None:
    """From the file, from a list of names, or for a router of many models."""
    assert stand_in(*parameters) is None


def test_an_attached_server_has_its_own_name() -> None:
    """Its command line is not ours."""
    assert stand_in("-m", "/m.gguf", "-a", "gemma", attach_to="http://h:1") is None


def test_below_its_own_prefix() -> None:
    """``--api-prefix`` moves all routes."""
    one = stand_in("-m", "/m.gguf", "-a", "gemma", "--api-prefix", "/x")
    assert one is not None
    assert one.knows(b"GET", b"/x/v1/models")
    assert not one.knows(b"GET", b"/v1/models")
