"""Addresses as clients write them. Pure."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import quote

from juggler.config.resolve import ResolvedEndpoint, ResolvedServer


def urls_of(server: ResolvedServer, endpoint: ResolvedEndpoint, addresses: Iterable[tuple[str, int]]) -> list[str]:
    """The URLs of an endpoint, one for each address of its server; of a wildcard the loopback address."""
    scheme = "https" if server.tls is not None else "http"
    urls = []
    for host, port in addresses:
        shown = host
        try:
            if ipaddress.ip_address(host).is_unspecified:
                shown = "::1" if ":" in host else "127.0.0.1"
        except ValueError:
            pass
        urls.append(f"{scheme}://{shown_address(shown, port)}{quote(endpoint.prefix, safe='/%')}")
    return urls


def shown_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
