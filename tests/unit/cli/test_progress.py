"""What an order tells while it waits; on a terminal, see tests/e2e/test_terminal.py."""

import pytest

from juggler.cli.progress import Progress, progress_text
from juggler.cli.remote import Remote
from tests.unit.cli.fake_api import FakeApi, instance, status

ENDPOINTS = [{"endpoint": "S/a", "name": "a", "instance": "S/a"}]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"load_began_at": 995.0, "load_expected_s": 12.0}, "S/a: loading for 5.0 s of about 12 s"),
        ({"load_began_at": 995.0}, "S/a: loading for 5.0 s"),
        ({"waiting": 1, "waits_for": "b is in use"}, "S/a: b is in use"),
        ({"state": "stopping"}, "S/a: stopping"),
    ],
)
def test_what_is_told(values: dict[str, object], told: str) -> None:
    whole = status(instance("b"), instance("a", **values), endpoints=ENDPOINTS)
    assert progress_text(whole, "a") == progress_text(whole, "S/a") == told
    assert progress_text(whole, "nope") == ""


def test_nothing_where_there_is_no_terminal(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Remote(api.url), "a"):
        pass
    assert capsys.readouterr() == ("", "")
    assert api.asked == []
