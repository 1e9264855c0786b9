"""Certificates of this test session: made in memory, believed by nobody else."""

import datetime
import functools
import ssl
from pathlib import Path
from typing import NamedTuple

import trustme


class Pair(NamedTuple):
    """PEM files."""

    cert: Path
    key: Path


@functools.cache
def authority() -> trustme.CA:
    """The one that ``trusting`` clients believe."""
    return trustme.CA()


@functools.cache
def stranger() -> trustme.CA:
    """One that nobody believes."""
    return trustme.CA()


def make_pair(
    directory: Path,
    *names: str,
    name: str = "server",
    by: trustme.CA | None = None,
    not_after: datetime.datetime | None = None,
) -> Pair:
    """A certificate for ``names`` (localhost and both loopbacks by default) and its key, as files; written over."""
    begin = not_after - datetime.timedelta(days=9) if not_after is not None else None
    names = names or ("localhost", "127.0.0.1", "::1")
    made = (by or authority()).issue_cert(*names, not_before=begin, not_after=not_after)
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    pair.cert.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    pair.key.write_bytes(made.private_key_pem.bytes())
    return pair


def write_authority(directory: Path) -> str:
    """The authority's own certificate as a file."""
    path = directory / "ca.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return str(path)


def trusting(highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context()
    context.maximum_version = highest
    authority().configure_trust(context)
    return context
