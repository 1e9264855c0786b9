"""The status API's answers as bytes."""

import json

from juggler.control.api import _json


def test_text_that_is_no_unicode() -> None:
    """Names of files and of foreign processes may hold any bytes; one of them must not hide the whole status."""
    answer = _json(200, {"foreign_users": "caf\udce9 (pid 1)", "plain": "für"})
    read = json.loads(answer.body)
    assert read["plain"] == "für"
    assert read["foreign_users"].startswith("caf")
    assert answer.body.endswith(b"\n")
