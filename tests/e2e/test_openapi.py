"""The running API against its own description: whatever that allows is asked, and the answers have to conform."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from tests.e2e.support import Juggler, exclusive, running, web

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def juggler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Juggler]:
    """One that has something to tell: a finished request, a swap, a failure."""
    config = exclusive(a=web(), b=web(), bad=web("--fail", "no weights"))
    with running(tmp_path_factory.mktemp("openapi"), config) as one:
        for path in ("/a/x", "/b/x", "/bad/x"):
            one.ask("POST", path, {})
        yield one


def test_the_api_is_what_its_description_says(juggler: Juggler) -> None:
    """Whatever is allowed is asked of every operation; statuses, types and objects are as described."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{juggler.control_port}/openapi.json")
    asked = set()
    for found in schema.exclude(path="/api/v1/events").get_all_operations():  # that one never ends
        assert isinstance(found, Ok)
        operation = found.ok()
        asked.add(operation.label)

        @settings(
            max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy() | operation.as_strategy(GenerationMode.NEGATIVE))
        def conforms(case: Case[Any]) -> None:
            if case.path.startswith("/api/v1/logs/"):
                case.query.pop("wait_s", None)  # it would wait, as asked
            case.call_and_validate(timeout=20)

        conforms()
    assert "POST /api/v1/endpoints/{endpoint}/load" in asked
    assert juggler.process.poll() is None
    assert "made a mistake" not in juggler.text()


def test_every_route_is_described_and_no_other(juggler: Juggler) -> None:
    from juggler.control.openapi import document
    from juggler.control.routes import Routes

    described = {
        (method.upper(), path)
        for path, operations in document()["paths"].items()  # type: ignore[attr-defined]
        for method in operations
    }
    routes = Routes(None, None, None, None).all()  # type: ignore[arg-type]  # the table alone
    served = {
        (method, route.path.replace(":path", "").replace(":int", ""))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert served == described
    page = requests.get(f"http://127.0.0.1:{juggler.control_port}/openapi.json", timeout=10)
    assert page.json()["openapi"] == "3.1.0"
