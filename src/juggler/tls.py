"""TLS contexts for both sides: what a listener proves itself with, and which attached servers are believed.

TLS 1.2 and newer, HTTP/1.1 alone in ALPN. Everything here that reads files blocks; the event loop leaves it to a
thread.
"""

import asyncio
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from juggler.units import SECONDS

HANDSHAKE_LIMIT_S = 3 * SECONDS
"""For connect and handshake with an attached server: two round trips, and a signature by a busy machine."""

_ALPN = ["http/1.1"]

_UNTRUSTED = frozenset((18, 19, 20, 21))
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME = frozenset((62, 64))
"""``SSLCertVerificationError.verify_code``: OpenSSL's X509_V_ERR_*, x509_vfy.h."""

_NOT_TLS = frozenset(("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE"))


class Trouble(NamedTuple):
    """Why there is no connection, half a sentence, and what to do about it."""

    why: str
    hint: str | None = None


# --- listeners -----------------------------------------------------------------------------------------------------


class BadPair(Exception):
    """A certificate and its key that no listener can use; the operator's to replace.

    Args:
        part: Which of the two files is to blame.
        message: One sentence without its end.
    """

    def __init__(self, part: Literal["cert", "key"], message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.part: Literal["cert", "key"] = part
        self.message = message
        self.hint = hint


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A context for accepted connections.

    Args:
        cert: PEM file with the certificate, and after it those between it and a root.
        key: PEM file with its private key, without pass phrase. May be the same file.

    Raises:
        BadPair: A file cannot be read or used, or they do not belong together.
    """
    _look_into("cert", cert, "CERTIFICATE-----", "certificate")
    _look_into("key", key, "PRIVATE KEY-----", "private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_ALPN)
    try:
        # Without a function OpenSSL would ask for the pass phrase on the terminal.
        context.load_cert_chain(cert, key, password=_no_pass_phrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"the key {key} does not belong to the certificate {cert}"
            hint = "the server's own certificate comes first in its file, before those of its authorities"
            raise BadPair("key", message, hint) from error
        raise BadPair(*_unusable(cert, key, error)) from error
    except OSError as error:  # removed or replaced since it was looked into
        raise BadPair("cert", f"{cert} and {key} cannot be read: {error.strerror or error}") from error
    return context


def _no_pass_phrase() -> NoReturn:
    raise ssl.SSLError("the key is encrypted")


def _look_into(part: Literal["cert", "key"], path: Path, mark: str, what: str) -> None:
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise BadPair(part, f"{path} cannot be read: {error.strerror or error}") from error
    if mark not in text:
        hint = f"openssl {'x509' if part == 'cert' else 'pkey'} -in {path} -inform DER converts one in binary form"
        raise BadPair(part, f"{path} holds no {what} in PEM form", hint)
    if part == "key" and "ENCRYPTED" in text:
        hint = f"openssl pkey -in {path} takes it off; protect the file by its mode instead"
        raise BadPair(part, f"the key {path} is locked by a pass phrase, which nobody can enter at a start", hint)


def _unusable(cert: Path, key: Path, error: ssl.SSLError) -> tuple[Literal["cert", "key"], str]:
    """Which of two files OpenSSL stumbled over, and what it says."""
    reason = (error.reason or "not readable as PEM").replace("_", " ").lower()
    try:
        # Read as authorities, certificates need no key: what is left is the key's fault.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except (ssl.SSLError, OSError):
        return "cert", f"the certificate {cert} cannot be used: {reason}"
    part: Literal["cert", "key"] = "key" if error.reason is None or "KEY" not in error.reason else "cert"
    named = f"the key {key}" if part == "key" else f"the certificate {cert}"
    return part, f"{named} cannot be used: {reason}"


def out_of_date(cert: Path, context: ssl.SSLContext) -> str | None:
    """Half a sentence about a certificate that clients will refuse for its dates; None for a good one.

    Asked of OpenSSL itself, by a handshake in memory with a client that believes this certificate.

    Args:
        context: From ``server_context`` for this certificate.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client.load_verify_locations(cert)
        ends = (
            client.wrap_bio(inward, outward, server_side=False),
            context.wrap_bio(outward, inward, server_side=True),
        )
        for _ in range(3):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLCertVerificationError as error:
        return {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}.get(error.verify_code)
    except (ssl.SSLError, OSError):
        pass  # whatever it is, it is not the dates
    return None


# --- attached servers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How to talk to an attached server behind ``https://``. Plain data."""

    name: str
    """Host of the URL: told to the server (SNI), and looked for in its certificate."""
    authority: str
    """Host of the URL, with its port where that is not 443: for the Host field."""
    ca: str | None = None
    """PEM file of the authorities that are believed instead of the system's."""
    verify: bool = True


_contexts: dict[tuple[str | None, bool], tuple[object, ssl.SSLContext]] = {}
"""Made once and for all servers: the system's authorities take 30 ms to read. With the state of the file."""


async def client_context(server: ServerTls, *, look: bool = False) -> ssl.SSLContext:
    """The context for connections to a server; made in a thread when it is first asked for.

    Args:
        look: Notice that the file ``ca`` has changed. Costs a look at it, in a thread.

    Raises:
        OSError: ``ca`` cannot be read; ``ssl.SSLError`` where it holds no certificates.
    """
    known = _contexts.get((server.ca, server.verify))
    if known is not None and not (look and server.ca is not None):
        return known[1]
    return await asyncio.to_thread(_client_context, server)


def _client_context(server: ServerTls) -> ssl.SSLContext:
    key = (server.ca, server.verify)
    state = file_state(server.ca) if server.ca is not None and server.verify else None
    known = _contexts.get(key)
    if known is None or known[0] != state:
        known = _contexts[key] = (state, trusting_context(server.ca, verify=server.verify))
    return known[1]


def trusting_context(ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """A context for connections of ours.

    Raises:
        OSError: ``ca`` cannot be read; ``ssl.SSLError`` where it holds no certificates.
    """
    if not verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        if ca is not None:
            with Path(ca).open("rb"):
                pass  # OpenSSL's own error does not name the file
        context = ssl.create_default_context(cafile=ca)
        if ca is not None:
            # The file may hold the server's own certificate, which need not be signed by itself; and authorities made
            # by hand lack fields that Python 3.13 began to ask for.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    return context


def explain(error: OSError, server: ServerTls) -> Trouble:
    """Whose fault it is that there is no TLS connection to an attached server, and what helps."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, server)
    if not isinstance(error, ssl.SSLError):
        if server.ca is not None and error.filename == server.ca:
            return Trouble(f"{server.ca} cannot be read: {error.strerror}", "correct `tls.ca` of the backend")
        return Trouble(error.strerror or str(error) or "it closed the connection during the TLS handshake")
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return Trouble("what answers there does not speak TLS", 'does `attach_to` want "http://"?')
    if reason in ("NO_CERTIFICATE_OR_CRL_FOUND", "") and server.ca is not None:
        return Trouble(f"{server.ca} holds no certificate in PEM form", "correct `tls.ca` of the backend")
    if "CERTIFICATE_REQUIRED" in reason:
        return Trouble("it wants a certificate of its clients, and the juggler has none to show")
    if "EOF" in reason:
        return Trouble("it closed the connection during the TLS handshake")
    return Trouble(f"the TLS handshake failed: {reason.replace('_', ' ').lower() or error}")


def _explain_certificate(error: ssl.SSLCertVerificationError, server: ServerTls) -> Trouble:
    code = error.verify_code
    if code in _OTHER_NAME:
        hint = "use a name that it holds in `attach_to`, or have one made for this name"
        return Trouble(f"its certificate is for another name than {server.name}", hint)
    if code == _EXPIRED:
        return Trouble("its certificate has expired", "renew it on that server; or is this machine's clock wrong?")
    if code == _NOT_YET_VALID:
        return Trouble("its certificate is not valid yet", "is this machine's clock wrong, or that server's?")
    if code in _UNTRUSTED:
        signed = "is signed by itself alone" if code == 18 else "is signed by an authority that is not trusted here"
        where = f"in {server.ca}" if server.ca is not None else "in a file, and name it as `tls.ca` of the backend"
        hint = f"put the certificate of its authority, or its own, {where}"
        return Trouble(f"its certificate {signed}", hint)
    return Trouble(f"its certificate cannot be verified: {error.verify_message}")


def file_state(path: str | Path) -> object:
    """Something that changes when the file does; None if it cannot be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116  # takes both forms, and follows links as the load does
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)  # the last: chmod
