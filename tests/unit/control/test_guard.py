"""Who may do what on the control plane."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from juggler.control.guard import COOKIE, Guard, Keys, cookie_name
from juggler.errors import TooManyGuesses

KEY = "correct-horse-battery"


async def answer(
    method: str = "GET",
    path: str = "/api/v1/status",
    fields: Sequence[tuple[str, str]] = (("host", "127.0.0.1:8020"),),
    *,
    keys: Keys | None = None,
    names: Sequence[str] = (),
    client: str = "10.0.0.7",
) -> tuple[int, dict[str, str], bool]:
    """Status, fields, and whether the request came through to the application."""
    reached = False
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal reached
        reached = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        raise AssertionError("the guard reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": (client, 4711),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields],
    }
    await Guard(app, names, keys or Keys(None))(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, reached


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8020", True),
        ("[::1]:8020", True),
        ("localhost:8020", True),
        ("LOCALHOST", True),
        ("juggler.localhost:8020", True),
        ("192.168.1.20:8020", True),
        ("box.lan:8020", True),
        ("box.lan.:8020", True),
        ("", True),
        ("evil.example", False),
        ("evil.example:8020", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("localhost.evil.example:8020", False),
        ("notlocalhost", False),
        ("box.lan.evil.example", False),
        ("0x7f000001.evil", False),
    ],
)
async def test_only_own_names_are_answered(host: str, allowed: bool) -> None:
    """A page whose name was pointed at us (DNS rebinding) sees nothing, whatever it asks."""
    for method in ("GET", "POST"):
        status, _, reached = await answer(method, fields=[("host", host)], names=["box.lan"])
        assert (status, reached) == ((200, True) if allowed else (403, False))


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ([], True),
        ([("origin", "http://127.0.0.1:8020")], True),
        ([("origin", "http://127.0.0.1:8021")], False),
        ([("origin", "http://127.0.0.1")], False),
        ([("origin", "https://evil.example")], False),
        ([("origin", "null")], False),
        ([("sec-fetch-site", "same-origin")], True),
        ([("sec-fetch-site", "none")], True),
        ([("sec-fetch-site", "same-site")], False),
        ([("sec-fetch-site", "cross-site")], False),
        ([("origin", "http://127.0.0.1:8020"), ("sec-fetch-site", "cross-site")], False),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_changes_come_from_our_own_page_or_from_programs(
    method: str, fields: list[tuple[str, str]], allowed: bool
) -> None:
    status, _, reached = await answer(method, fields=[("host", "127.0.0.1:8020"), *fields])
    assert (status, reached) == ((200, True) if allowed else (403, False))


async def test_reading_needs_no_origin() -> None:
    """A link from elsewhere may open the page; what it reads stays with the browser (no CORS)."""
    status, headers, _ = await answer(fields=[("host", "127.0.0.1"), ("sec-fetch-site", "cross-site")])
    assert status == 200
    assert "access-control-allow-origin" not in headers


async def test_every_answer_carries_the_policy() -> None:
    for fields in ([("host", "127.0.0.1")], [("host", "evil.example")]):
        _, headers, _ = await answer(fields=fields)
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["date"].endswith("GMT")


@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/events", "/api/v2/x", "/metrics", "/openapi.json"])
async def test_a_key_is_needed_for_what_tells_or_changes_something(path: str) -> None:
    keys = Keys(KEY)
    for fields in ([], [("cookie", f"{COOKIE}=0000")], [("cookie", "\x00;;=")], [("authorization", "Basic eDp5")]):
        status, headers, reached = await answer("GET", path, [("host", "127.0.0.1"), *fields], keys=keys)
        assert (status, reached) == (401, False)
        assert headers["www-authenticate"].startswith("Bearer")
    for fields in ([("authorization", f"Bearer {KEY}")], [("cookie", f"a=b; {COOKIE}={keys.session()}")]):
        status, _, reached = await answer("GET", path, [("host", "127.0.0.1"), *fields], keys=keys)
        assert (status, reached) == (200, True)


@pytest.mark.parametrize("path", ["/", "/app/main.js", "/livez", "/readyz", "/api/v1/login", "/api/v1/logout"])
async def test_the_page_its_login_and_the_probes_need_none(path: str) -> None:
    assert (await answer("GET", path, keys=Keys(KEY)))[0] == 200


async def test_a_session_of_another_run_is_none() -> None:
    assert not Keys(KEY).is_session(Keys(KEY).session())


async def test_guessing_is_slow_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong keys take their time, a few at once; meanwhile not even the right one tells itself from them."""
    monkeypatch.setattr("juggler.control.guard._WRONG_KEY_PAUSE_S", 30)
    keys = Keys(KEY)
    fields = [("host", "127.0.0.1"), ("authorization", "Bearer wrong-wrong-wrong")]
    slow = [asyncio.ensure_future(answer(fields=fields, keys=keys)) for _ in range(4)]
    await asyncio.sleep(0)
    assert (await answer(fields=fields, keys=keys))[0] == 429
    right = [("host", "127.0.0.1"), ("authorization", f"Bearer {KEY}")]
    assert (await answer(fields=right, keys=keys))[0] == 429, "who guesses learns no faster than the pauses let"
    assert (await answer(fields=right, keys=keys, client="10.0.0.8"))[0] == 200, "nobody else is kept out"
    cookie = ("cookie", f"{COOKIE}={keys.session()}")
    assert (await answer(fields=[("host", "127.0.0.1"), cookie], keys=keys))[0] == 200, "nor who has logged in"
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    task = asyncio.ensure_future(answer(fields=fields, keys=keys))
    await asyncio.sleep(0)
    assert not task.done(), "the four that gave up have made room"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await answer(fields=right, keys=keys))[0] == 200


async def test_a_whole_ipv6_network_is_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A customer has 2**64 addresses to guess from."""
    monkeypatch.setattr("juggler.control.guard._WRONG_KEY_PAUSE_S", 30)
    keys = Keys(KEY)
    slow = [asyncio.ensure_future(keys.check("wrong", f"2001:db8::{number}")) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyGuesses):
        await keys.check(KEY, "2001:db8::ffff")
    await keys.check(KEY, "2001:db8:1::1")
    await keys.check(KEY, "fe80::1%eth0")
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_two_jugglers_on_one_host_have_cookies_of_their_own() -> None:
    """Browsers send a cookie to every port of its host: one must not take the place of the other."""
    one, other = Keys(KEY), Keys(KEY)
    cookies = f"{COOKIE}_8020={one.session()}; {COOKIE}_8030={other.session()}"
    for keys, host in ((one, "127.0.0.1:8020"), (other, "127.0.0.1:8030")):
        assert (await answer(fields=[("host", host), ("cookie", cookies)], keys=keys))[0] == 200
    assert cookie_name("[::1]") == cookie_name("box.lan") == COOKIE
    assert cookie_name("[::1]:8020") == cookie_name("box.lan:8020") == f"{COOKIE}_8020"
