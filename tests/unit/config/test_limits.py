"""What the configuration says about limits reaches the data plane."""

from dataclasses import replace

from juggler.config.load import load_text
from juggler.config.resolve import resolve
from juggler.proxy.limits import Limits
from juggler.units import KIB

SERVER = '{"name": "%s", "port": %d, %s "endpoints": [{"name": "E", "backend": "demo"}]}'


def _limits(general: str, *own: str) -> list[Limits]:
    servers = ", ".join(SERVER % (f"S{number}", 8000 + number, text) for number, text in enumerate(own))
    loaded = load_text(f'{{{general} "backends": {{"demo": {{}}}}, "servers": [{servers}]}}')
    return [server.limits for server in resolve(loaded).servers]


def test_defaults_are_the_data_planes() -> None:
    """What is documented as default is what is in force without a word."""
    assert _limits("", "") == [Limits()]


def test_own_words_count_before_general_ones() -> None:
    """Key by key; a null counts as left out."""
    general = '"limits": {"connections": 10, "idle_timeout": "5s", "response_timeout": "1h"},'
    own = '"limits": {"connections": 20, "head_bytes": "8k", "idle_timeout": null, "response_timeout": 0},'
    assert _limits(general, own, "") == [
        replace(Limits(), connections=20, head_bytes=8 * KIB, idle_timeout_s=5.0),
        replace(Limits(), connections=10, idle_timeout_s=5.0, response_timeout_s=3600.0),
    ]


def test_every_limit_has_its_place() -> None:
    """None of the keys is forgotten on the way."""
    own = (
        '"limits": {"connections": 1, "connections_per_client": 2, "request_line_bytes": 3, "head_bytes": 4,'
        ' "head_timeout": 5, "idle_timeout": 6, "body_timeout": 7, "response_timeout": 8},'
    )
    (limits,) = _limits("", own)
    assert limits == replace(
        Limits(),
        connections=1,
        connections_per_client=2,
        request_line_bytes=3,
        head_bytes=4,
        head_timeout_s=5.0,
        idle_timeout_s=6.0,
        body_timeout_s=7.0,
        response_timeout_s=8.0,
    )
