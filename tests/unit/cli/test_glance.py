"""What commands read of the configuration to find the juggler."""

from pathlib import Path

import pytest

from juggler.cli.glance import NOTHING, Glance, glance


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
        ("[]", NOTHING),
        ("{", NOTHING),
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
    for name in ("missing.json", ".", "latin.json"):
        assert glance(tmp_path / name) == NOTHING
