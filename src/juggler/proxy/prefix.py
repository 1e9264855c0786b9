"""Addresses in answers, mapped to where the client finds them: under the prefix that was stripped. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from juggler.proxy.head import Field

_COOKIE_PATH = re.compile(rb"(;[ \t]*path[ \t]*=[ \t]*)(/[^;]*)", re.IGNORECASE)
_COOKIE_HAS_PATH = re.compile(rb";[ \t]*path[ \t]*=", re.IGNORECASE)
_BASE = re.compile(rb"http(s?)://([^/?#]+)", re.IGNORECASE)
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*:")
_OUTER_PREFIX = re.compile(rb"(?:/[A-Za-z0-9\-._~%!$&'()*+;=:@]+)+")
_LOOPBACK = frozenset((b"localhost", b"127.0.0.1", b"[::1]", b"0.0.0.0", b"[::]"))
_AFTER_PREFIX = (b"", b"/", b"?", b"#", b";")


@dataclass(frozen=True, slots=True)
class Mount:
    """Where the client finds what the backend calls ``/``."""

    authority: bytes
    """``host:port`` of the backend, as sent in Host: without port where https has its usual one."""
    prefix: bytes = b""
    """Stripped by us."""
    outer: bytes = b""
    """Stripped by proxies in front of us before; see ``outer_prefix``."""
    bare: bool = False
    """The client's path was the prefix without a slash, so it takes relative references one level too high."""


def outer_prefix(values: Iterable[bytes]) -> bytes:
    """What proxies in front of us have stripped, from their ``X-Forwarded-Prefix`` values in order of arrival.

    Each that strips adds its own (Traefik's StripPrefix), so they are put together. Values that are no path are taken
    for nothing: they end up in addresses that we send to clients.
    """
    parts = [part.strip(b" \t").rstrip(b"/") for value in values for part in value.split(b",")]
    prefix = b"".join(parts)
    return prefix if _OUTER_PREFIX.fullmatch(prefix) else b""


def forwarded_prefix(fields: Iterable[Field]) -> bytes:
    """``outer_prefix`` of a request's fields."""
    return outer_prefix(value for _, name, value in fields if name.lower() == b"x-forwarded-prefix")


def map_location(value: bytes, mount: Mount) -> bytes:
    """A Location of the backend as the client can reach it.

    Paths, and URLs on the backend's own address, get the stripped prefix back. The result is a path, which clients
    resolve against the address they used. Relative references already mean the right thing, except at a bare prefix.
    A backend that was told its prefix and already wrote it is left alone.
    """
    base = _BASE.match(value)
    if base is not None:
        usual = b":443" if base[1] else b":80"
        if not _is_backend(_with_port(base[2], usual), _with_port(mount.authority, usual)):
            return value
        path = value[base.end() :]
        return _prefixed(path if path.startswith(b"/") else b"/" + path, mount)
    if value.startswith(b"//") or _SCHEME.match(value):
        return value
    if value.startswith(b"/"):
        return _prefixed(value, mount)
    if mount.bare and value and value[:1] not in b"?#":
        return mount.outer + mount.prefix + b"/" + value
    return value


def map_cookie(value: bytes, mount: Mount) -> bytes:
    """A Set-Cookie value whose Path is what the client calls it.

    Without a Path the client takes the folder of its own request, which is below the prefix, unless that was bare.
    """
    full = mount.outer + mount.prefix
    if not full or value[:7].lower() == b"__host-":  # such a cookie is void with any path but "/"
        return value
    if _COOKIE_HAS_PATH.search(value) is None:
        return value + b"; Path=" + full if mount.bare else value
    return _COOKIE_PATH.sub(lambda match: match[1] + _cookie_path(match[2].rstrip(b" \t"), mount), value)


def _cookie_path(path: bytes, mount: Mount) -> bytes:
    # "/vision", unlike "/vision/", also covers requests to exactly that (RFC 6265 section 5.1.4).
    return mount.outer + mount.prefix if path == b"/" else _prefixed(path, mount)


def _prefixed(path: bytes, mount: Mount) -> bytes:
    full = mount.outer + mount.prefix
    if _is_below(path, full):
        return path
    if _is_below(path, mount.prefix):
        return mount.outer + path
    return full + path


def _is_below(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in _AFTER_PREFIX


def _with_port(authority: bytes, usual: bytes) -> bytes:
    return authority if authority.rpartition(b":")[2].isdigit() else authority + usual


def _is_backend(authority: bytes, own: bytes) -> bool:
    """Whether a URL's ``host:port`` is the backend's, also by another name of the loopback address."""
    authority = authority.lower()
    if authority == own.lower():
        return True
    host, _, port = authority.rpartition(b":")
    own_host, _, own_port = own.lower().rpartition(b":")
    return port == own_port and host in _LOOPBACK and own_host in _LOOPBACK
