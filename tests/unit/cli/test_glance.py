"""What commands read of the configuration to find the juggler."""

from dataclasses import replace
from pathlib import Path

import pytest

from juggler.cli.glance import NOTHING, UNREADABLE, Glance, glance
from juggler.cli.remote import NotReachable, Remote


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("{}", Glance("http://127.0.0.1:8020", None, ())),
        ('{"control": {"port": 9}, /* rest */}', Glance("http://127.0.0.1:9", None, ())),
        ('{"control": {"host": "::", "port": 9}}', Glance("http://[::1]:9", None, ())),
        ('{"control": {"host": "192.0.2.1", "key": "k"}}', Glance("http://192.0.2.1:8020", "k", ())),
        ('{"control": {"key": "a\\nb"}}', Glance("http://127.0.0.1:8020", None, ())),
        ('{"control": {"key": 5}}', Glance("http://127.0.0.1:8020", None, ())),
        ('{"control": {"port": "x"}}', Glance(None, None, ())),
        ('{"control": false}', Glance(None, None, ())),
        (
            '{"control": false, "servers": [{"name": "S", "endpoints": [{"name": "a"}, 3, {"name": "b"}]}, 4]}',
            Glance(None, None, ("S/a", "S/b")),
        ),
        ('{"servers": {"a": 1}}', Glance("http://127.0.0.1:8020", None, ())),
        ("[]", UNREADABLE),
        ("{", UNREADABLE),
        ("\ufeff{}", Glance("http://127.0.0.1:8020", None, ())),
    ],
)
def test_what_is_written(tmp_path: Path, text: str, seen: Glance) -> None:
    """Nothing is checked, and nothing raises: ``juggler check`` is for that."""
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    assert glance(path) == seen


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("control: {host: localhost, port: 7}\nservers:\n- name: S\n  endpoints:\n  - name: a\n")
    assert glance(path) == Glance("http://127.0.0.1:7", None, ("S/a",))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a directory, not UTF-8."""
    (tmp_path / "latin.json").write_bytes(b'{"control": "\xe9"}')
    assert glance(tmp_path / "missing.json") == NOTHING
    for name in (".", "latin.json"):
        assert glance(tmp_path / name) == UNREADABLE


def test_an_unreadable_file_is_named_where_nobody_answers(tmp_path: Path) -> None:
    """Its ``control`` would have told the address; what was tried instead is a guess."""
    path = tmp_path / "config.json"
    path.write_text("{")
    remote = Remote.find(None, None, path)
    assert (remote.url, remote.guessed_for) == ("http://127.0.0.1:8020", path)
    with pytest.raises(NotReachable) as caught:
        replace(remote, url="http://127.0.0.1:1").call("GET", "/api/v1/status", "instances")
    assert f"{path} cannot be read" in (caught.value.hint or "")
    assert Remote.find("http://127.0.0.1:1", None, path).guessed_for is None
