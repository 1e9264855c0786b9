"""Who sent a request, as far as it can be told: for learning when the same client comes back.

A session named by a header, else the key it authenticates with, each together with its address; else the address
alone (scheduling.md section 8). Only a salted digest of what the client sent is kept: it cannot be turned back, and
means nothing to another run of the juggler.
"""

import hashlib
import os
from collections.abc import Iterable

SESSION_HEADERS = frozenset((b"x-session-id", b"x-conversation-id", b"session_id", b"x-openwebui-chat-id"))
"""Open WebUI sends its chat's id where ``ENABLE_FORWARD_USER_INFO_HEADERS`` is set; agents send the others."""

KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))

_INTERESTING = frozenset(len(name) for name in SESSION_HEADERS | KEY_HEADERS)
_SALT = os.urandom(16)


def client_of(address: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """A name for the client, the same for its next request; at most 80 characters."""
    session = key = b""
    for name, value in headers:
        if len(name) in _INTERESTING:
            lower = name.lower()
            if lower in SESSION_HEADERS:
                session = session or value
            elif lower in KEY_HEADERS:
                key = key or value
    told = session or key
    if not told:
        return address[:60]
    digest = hashlib.blake2b(told, digest_size=6, key=_SALT).hexdigest()
    return f"{address[:60]} {digest}"
