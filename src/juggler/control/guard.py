"""Who may do what on the control plane: an ASGI layer before all routes.

- ``Host`` has to be an address or a name of ours: a web page whose name points here (DNS rebinding) gets nothing.
- A change from a browser has to come from our own page: ``Origin`` is this very address, ``Sec-Fetch-Site`` does not
  say otherwise (W3C Fetch Metadata). Together with the cookie's ``SameSite=Strict`` that ends cross-site requests.
- Where a key is set, everything but the page itself, its login and the two probes needs it: as a Bearer token (RFC
  6750) or by the cookie that the login sets. Cookies do not know ports: the cookie's path keeps it from what listens
  on other ports of this host, and its name from another juggler there.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import secrets
from collections import Counter
from collections.abc import Iterable
from email.utils import formatdate
from http.cookies import CookieError, SimpleCookie
from typing import Any

from juggler.control.server import AsgiApp, Receive, Scope, Send
from juggler.errors import BadRequest, JugglerError, TooManyGuesses, WrongKey

COOKIE = "juggler_session"
"""Its name, with the port where the browser names one."""
COOKIE_PATH = "/api/v1"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_OPEN_PATHS = frozenset(("/livez", "/readyz", "/api/v1/login", "/api/v1/logout"))
_KEPT_PATHS = ("/api/", "/metrics", "/openapi.json")
"""Whatever begins so needs the key; all else is the page itself, which holds nothing of anybody."""
_WRONG_KEY_PAUSE_S = 0.5
_GUESSES_AT_ONCE = 4
"""Wrong keys of one client that are being answered slowly; what comes meanwhile is refused unseen, right or wrong."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = tuple(
    (name.encode(), value.encode())
    for name, value in (
        ("content-security-policy", _POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    )
)


class Keys:
    """The admin key and the sessions of browsers; sessions end with the process.

    Args:
        key: None: none is needed.
    """

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()
        self._secret = secrets.token_bytes(32)
        self._guesses: Counter[str] = Counter()
        """Under way, by whose they are."""

    @property
    def needed(self) -> bool:
        return self._key is not None

    def session(self) -> str:
        """What the cookie of a browser that knew the key holds."""
        return hmac.new(self._secret, self._key or b"", hashlib.sha256).hexdigest()

    def is_session(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self.session().encode())

    async def check(self, key: str, client: str = "") -> None:
        """Let a key pass, or take time over a wrong one.

        Args:
            client: The address that it comes from: guesses from one do not keep others out.

        Raises:
            WrongKey: It is not the key.
            TooManyGuesses: Several wrong ones from there are being looked at; this one was not.
        """
        if self._key is None:
            return
        client = _network(client)
        if self._guesses[client] >= _GUESSES_AT_ONCE:
            raise TooManyGuesses("too many wrong keys at once", hint="wait a second", retry_after_s=1)
        if hmac.compare_digest(key.encode("utf-8", "surrogatepass"), self._key):
            return
        self._guesses[client] += 1
        try:
            await asyncio.sleep(_WRONG_KEY_PAUSE_S)
        finally:
            self._guesses[client] -= 1
            if not self._guesses[client]:
                del self._guesses[client]
        raise WrongKey("that is not the admin key", hint="it is `control.key` in the configuration")


class Guard:
    """See the module.

    Args:
        app: What answers requests that may pass.
        names: Names, besides addresses and ``localhost``, under which clients reach this listener.
        keys: The admin key.
    """

    def __init__(self, app: AsgiApp, names: Iterable[str], keys: Keys) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                date = (b"date", formatdate(usegmt=True).encode())
                message["headers"] = [*message.get("headers", ()), date, *_HEADERS]
            await send(message)

        try:
            await self._check(scope)
        except JugglerError as error:
            await _answer(error, scope, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    async def _check(self, scope: Scope) -> None:
        fields: dict[bytes, bytes] = dict(scope["headers"])
        host = fields.get(b"host", b"").decode("latin-1")
        if not self._is_ours(host):
            raise BadRequest(
                "this address answers only to its own names",
                status=403,
                code="foreign_host",
                hint="use its address, or add the name to `control.names`",
            )
        if scope["method"] not in SAFE_METHODS:
            _check_origin(fields, host)
        path = scope["path"]
        if self._keys.needed and path.startswith(_KEPT_PATHS) and path not in _OPEN_PATHS:
            await self._check_key(fields, host, client_of(scope))

    def _is_ours(self, host: str) -> bool:
        if not host:
            return True  # HTTP/1.0: no browser speaks it
        name = host.rsplit("@", 1)[-1].lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        name = name.removesuffix(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # nobody can point an address elsewhere

    async def _check_key(self, fields: dict[bytes, bytes], host: str, client: str) -> None:
        scheme, _, given = fields.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            await self._keys.check(given.strip(), client)
            return
        cookie = SimpleCookie()
        try:
            cookie.load(fields.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            pass
        session = cookie.get(cookie_name(host))
        if session is None or not self._keys.is_session(session.value):
            raise WrongKey(
                "this needs the admin key",
                hint="log in on the page, or send `Authorization: Bearer KEY` (`juggler --key`, JUGGLER_KEY)",
            )


def client_of(scope: Scope) -> str:
    """The address that a request comes from; empty where that is not known."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def cookie_name(host: str) -> str:
    """The name of the cookie of who reaches us under this ``Host``."""
    port = host.rpartition(":")[2]
    return f"{COOKIE}_{port}" if ":" in host and port.isascii() and port.isdigit() else COOKIE


def _network(client: str) -> str:
    """The address, or the half of an IPv6 address that one customer has all of."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return client
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _check_origin(fields: dict[bytes, bytes], host: str) -> None:
    site = fields.get(b"sec-fetch-site", b"none")
    origin = fields.get(b"origin")
    foreign = site not in (b"same-origin", b"none")
    if origin is not None and origin.partition(b"://")[2].decode("latin-1").lower() != host.lower():
        foreign = True
    if foreign:
        raise BadRequest("changes are not taken from other sites", status=403, code="foreign_origin")


async def _answer(error: JugglerError, scope: Scope, send: Send) -> None:
    body = b"" if scope["method"] == "HEAD" else json.dumps(error_document(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"x-juggler", b"error"), (b"cache-control", b"no-store")]
    if isinstance(error, WrongKey):
        headers.append((b"www-authenticate", b'Bearer realm="juggler"'))
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_document(error: JugglerError) -> dict[str, object]:
    """An error as the API tells it."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
