"""Request targets, taken apart without changing a byte of them (RFC 9112 section 3.2)."""

from dataclasses import dataclass

from juggler.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Target:
    """Path and query of a request target, raw."""

    path: bytes
    """Begins with ``/``, or is ``*``."""
    query: bytes
    """With its leading ``?``; empty if the target had none."""


def parse_target(target: bytes) -> Target:
    """Path and query of a target in origin, absolute or asterisk form.

    An absolute form (``http://host/path``, as proxies get it) gives its path; an empty path is ``/``.

    Raises:
        BadRequest: Any other form.
    """
    if target.startswith(b"/"):
        path, mark, query = target.partition(b"?")
        return Target(path, mark + query)
    if target == b"*":
        return Target(target, b"")
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https") or not rest:
        raise BadRequest(f"{target[:80].decode('latin-1')!r} is no request target that an HTTP server serves")
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    path, mark, query = rest[end:].partition(b"?")
    return Target(path or b"/", mark + query)
