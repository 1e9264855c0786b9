"""The running juggler as commands see it: its address, the admin key, and calls of its API."""

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import click

from juggler import __version__
from juggler.cli.glance import glance
from juggler.errors import JugglerError

STATUS_TIMEOUT_S = 5.0
ORDER_TIMEOUT_S = 3600.0
"""A load waits its turn behind other requests, however long those take; Ctrl-C ends only the waiting."""

DEFAULT_CONFIG = "config.json"
DEFAULT_CONTROL_URL = "http://127.0.0.1:8020"

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

_NOT_DONE = 422
"""What was asked for could not be done; the document has the usual form, and says why."""


class NotReachable(JugglerError):
    """No juggler answers at the address: none runs, or its `control` listens elsewhere."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a juggler is."""

    url: str
    key: str | None = None
    """The admin key; needed where ``control.key`` is set."""
    guessed_for: Path | None = None
    """A configuration that would have told the address, if it could be read; ``url`` is the usual one then."""

    @classmethod
    def find(cls, url: str | None, key: str | None, config: Path) -> "Remote":
        """By what was named, else by the configuration, else where a juggler listens by default.

        The configuration's key goes to no other machine than the configuration names.

        Raises:
            click.UsageError: The key cannot be one.
        """
        if key is not None and not key.isprintable():
            raise click.UsageError("the key holds a control character")
        if url is not None and key is not None:
            return cls(url, key)
        seen = glance(config)
        if url is None:
            guessed_for = None if seen.readable else config
            return cls(seen.url or DEFAULT_CONTROL_URL, key or seen.key, guessed_for)
        return cls(url, key or (seen.key if url == seen.url or _is_here(url) else None))

    def call(self, method: str, path: str, needed: str, timeout_s: float = STATUS_TIMEOUT_S) -> dict[str, Any]:
        """One JSON call.

        Args:
            method: ``GET``, ``POST``, ``PUT`` or ``DELETE``.
            path: With its query.
            needed: A key that the answer has to have: other programs answer whatever they are asked.
            timeout_s: For each step of it.

        Raises:
            NotReachable: Nobody answers there, or another program does.
            JugglerError: The answer is an error.
            click.UsageError: The address is none.
        """
        connection = self._connection(timeout_s)
        try:
            connection.request(method, path, headers=self._headers())
            answer = connection.getresponse()
            document = json.loads(answer.read())
        except RecursionError as error:  # a thousand brackets
            raise self._not_reachable("another program does") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._not_reachable(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if not isinstance(document, dict):
            raise self._not_reachable("another program does")
        if answer.status == _NOT_DONE and needed in document:
            return document
        if answer.status >= 400 and answer.headers["X-Juggler"] == "error":
            told = document.get("error")
            detail = told if isinstance(told, dict) else {"message": told}
            hint = detail.get("hint")
            message = str(detail.get("message") or f"{self.url} answered {answer.status}")
            raise JugglerError(message, hint=str(hint) if hint else None, details=document)
        if answer.status >= 400 or needed not in document:
            raise self._not_reachable("another program does")
        return document

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"juggler/{__version__}"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key.encode().decode('latin-1')}"
        return headers

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self.url)
            if parts.hostname and parts.scheme == "http":
                return http.client.HTTPConnection(parts.hostname, _port(parts, 80), timeout=timeout_s)
            if parts.hostname and parts.scheme == "https":
                return http.client.HTTPSConnection(parts.hostname, _port(parts, 443), timeout=timeout_s)
        except (ValueError, http.client.InvalidURL):  # a port, an IPv6 address or a name that is none
            pass
        raise click.UsageError(f"{self.url!r} is not an http:// or https:// address")

    def _not_reachable(self, why: str) -> NotReachable:
        return NotReachable(
            f"no juggler answers at {self.url} ({why})",
            hint="start one with `juggler serve`, or name its address by --url"
            if self.guessed_for is None
            else f"{self.guessed_for} cannot be read, so its control address is not known: name it by --url "
            f"(`juggler check {self.guessed_for}` says what is wrong)",
        )


def _port(parts: SplitResult, usual: int) -> int:
    return usual if parts.port is None else parts.port


def _is_here(url: str) -> bool:
    try:
        return urlsplit(url).hostname in _LOOPBACK
    except ValueError:  # an address that is none: the call will say so
        return False


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="", errors="surrogateescape")
