"""What is said of a llama.cpp that does not run is what it says once it does."""

import json
from pathlib import Path

import pytest

from juggler.backends.llamacpp import LlamaCppBackend
from juggler.demo.models import write_model
from juggler.routing.stand_in import Question
from tests.real.engine_process import PROGRAM, needs_engine, started
from tests.unit.backends.fake_caller import settings

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_engine]


async def test_its_model_has_the_name_that_was_told(tmp_path: Path) -> None:
    """So a client that chose it before the start finds it afterwards."""
    model = write_model(tmp_path / "tiny.gguf", seed=1, size_bytes=600_000)
    given = ("-m", str(model), "-c", "128", "--alias", "gemma")
    backend = LlamaCppBackend(settings("llamacpp", *given, binary=PROGRAM, kv_cache_saving=False))
    stand_in = backend.stand_in()
    assert stand_in is not None
    told = await stand_in.answer(Question(b"GET", b"/v1/models"))
    assert told is not None
    [before] = json.loads(told.body)["data"]
    async with started(backend, tmp_path) as (caller, _):
        for path in ("/v1/models", "/models"):
            document = (await caller.call("GET", path)).json_object()
            data = document["data"]
            assert isinstance(data, list)
            assert document["object"] == "list"
            assert {key: data[0][key] for key in before if key != "created"} == {
                key: value for key, value in before.items() if key != "created"
            }
