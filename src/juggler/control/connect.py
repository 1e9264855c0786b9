"""Copy-ready settings for the clients people use, with addresses that reach this juggler.

What each client calls its setting, and what it does with a path in it, was tried, or read in the clients' sources
(November 2026).
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

from juggler.config.resolve import ResolvedEndpoint, ResolvedServer
from juggler.control.subject import Subject
from juggler.control.urls import urls_of

Item = dict[str, object]
Settings = list[tuple[str, str]]

CONTAINER_HOST = "host.docker.internal"
"""The name of the host inside a container of Docker or Podman."""
ANY_KEY = "none"
"""Clients want a key, the juggler asks for none: any text will do."""


class Reach(Enum):
    """From where a server's addresses can be reached."""

    HERE = "loopback only"
    ONE = "the addresses it names"
    EVERYWHERE = "every address of this machine"


class _Client(NamedTuple):
    """One way to use one kind of endpoint."""

    name: str
    types: frozenset[str]
    """Backend types whose API it speaks."""
    settings: Callable[[str, str], Settings]
    """Names and values, for the endpoint's URL without a slash at its end and its type."""
    keeps_path: bool = True
    """Whether a path in its address survives."""
    note: str | None = None
    in_container: bool = False
    """People mostly run it in a container, where a loopback address means the container itself."""


_CHAT = frozenset(("llamacpp", "koboldcpp", "ollama", "vllm"))
_OLLAMA = frozenset(("ollama",))
_A1111 = frozenset(("sdwebui", "demo"))
_COMFY = frozenset(("comfyui",))
_UNKNOWN = frozenset(("command",))
"""They may speak anything; most are OpenAI-compatible."""

_TEXT_COMPLETION = {"llamacpp": "llama.cpp", "koboldcpp": "KoboldCpp", "ollama": "Ollama", "vllm": "vLLM"}
"""What SillyTavern calls the types."""

_MODEL = "NAME is a model of the list that it offers."

_CLIENTS = (
    _Client(
        "Open WebUI (OpenAI)",
        _CHAT,
        lambda url, _: [("OPENAI_API_BASE_URL", f"{url}/v1"), ("OPENAI_API_KEY", ANY_KEY)],
        note="Or on its page: Admin Settings, Connections. It gives an answer 5 minutes in all: raise "
        "AIOHTTP_CLIENT_TIMEOUT if loading and answering take longer.",
        in_container=True,
    ),
    _Client("Open WebUI (Ollama)", _OLLAMA, lambda url, _: [("OLLAMA_BASE_URL", url)], in_container=True),
    _Client(
        "Open WebUI (images, A1111)",
        _A1111,
        lambda url, _: [
            ("ENABLE_IMAGE_GENERATION", "true"),
            ("IMAGE_GENERATION_ENGINE", "automatic1111"),
            ("AUTOMATIC1111_BASE_URL", url),
        ],
        in_container=True,
    ),
    _Client(
        "Open WebUI (images, ComfyUI)",
        _COMFY,
        lambda url, _: [
            ("ENABLE_IMAGE_GENERATION", "true"),
            ("IMAGE_GENERATION_ENGINE", "comfyui"),
            ("COMFYUI_BASE_URL", url),
        ],
        in_container=True,
    ),
    _Client(
        "SillyTavern (text completion)",
        _CHAT,
        lambda url, kind: [("API Type", _TEXT_COMPLETION[kind]), ("API URL", url)],
    ),
    _Client(
        "SillyTavern (chat completion)",
        _CHAT,
        lambda url, _: [
            ("Chat Completion Source", "Custom (OpenAI-compatible)"),
            ("Custom Endpoint (Base URL)", f"{url}/v1"),
        ],
    ),
    _Client(
        "SillyTavern (images, SD WebUI)",
        _A1111,
        lambda url, _: [("SD Web UI URL", url)],
        keeps_path=False,
    ),
    _Client("SillyTavern (images, ComfyUI)", _COMFY, lambda url, _: [("ComfyUI URL", url)]),
    _Client(
        "Continue",
        _CHAT,
        lambda url, _: [("provider", "openai"), ("apiBase", f"{url}/v1"), ("apiKey", ANY_KEY), ("model", "NAME")],
        note=_MODEL,
    ),
    _Client(
        "Continue (Ollama)",
        _OLLAMA,
        lambda url, _: [("provider", "ollama"), ("apiBase", url), ("model", "NAME")],
        note=_MODEL,
    ),
    _Client(
        "Cline, Roo Code",
        _CHAT,
        lambda url, _: [("API Provider", "OpenAI Compatible"), ("Base URL", f"{url}/v1"), ("API Key", ANY_KEY)],
    ),
    _Client("Cline, Roo Code (Ollama)", _OLLAMA, lambda url, _: [("API Provider", "Ollama"), ("Base URL", url)]),
    _Client(
        "LibreChat",
        _CHAT,
        lambda url, _: [("baseURL", f"{url}/v1"), ("apiKey", ANY_KEY), ("models.fetch", "true")],
        note='In librechat.yaml, as a custom endpoint. Its name must not begin with "ollama", or the path is cut '
        "off; without a key it asks for nothing. It waits 5 seconds for the list of models, which the juggler "
        "answers from memory while nothing is loaded.",
        in_container=True,
    ),
    _Client(
        "n8n",
        _CHAT,
        lambda url, _: [("Credential", "OpenAI"), ("Base URL", f"{url}/v1"), ("API Key", ANY_KEY)],
        in_container=True,
    ),
    _Client(
        "n8n (Ollama)",
        _OLLAMA,
        lambda url, _: [("Credential", "Ollama"), ("Base URL", url)],
        in_container=True,
    ),
    _Client(
        "aider",
        _CHAT,
        lambda url, _: [
            ("OPENAI_API_BASE", f"{url}/v1"),
            ("OPENAI_API_KEY", ANY_KEY),
            ("--model", "openai/NAME"),
        ],
        note=_MODEL,
    ),
    _Client(
        "OpenAI libraries",
        _CHAT | _UNKNOWN,
        lambda url, _: [("OPENAI_BASE_URL", f"{url}/v1"), ("OPENAI_API_KEY", ANY_KEY)],
    ),
    _Client("Ollama libraries", _OLLAMA, lambda url, _: [("OLLAMA_HOST", url)]),
    _Client("Browser", frozenset(("sdwebui", "koboldcpp", "llamacpp")), lambda url, _: [("Address", f"{url}/")]),
    _Client("Browser (ComfyUI)", _COMFY, lambda url, _: [("Address", f"{url}/")], keeps_path=False),
)


def connections(subject: Subject, seen_as: str | None) -> Item:
    """Settings for every client of every endpoint.

    Args:
        seen_as: The host name under which the reader reaches the control listener: a good one for its clients too.
    """
    clients: list[Item] = []
    warnings: list[str] = []
    outside = seen_as if seen_as and not _is_loopback(seen_as) else lan_address()
    for server in subject.config.servers:
        listener = subject.listeners.get(server.name)
        addresses = listener.addresses if listener is not None else [(server.host, server.port)]
        reach = reach_of([host for host, _ in addresses])
        if reach is Reach.HERE:
            warnings.append(
                f"{server.name} listens on {server.host} only: neither other machines nor containers reach it. "
                'Set its "host" to "0.0.0.0", or run the container in the host\'s network.'
            )
        # The address that reaches farthest comes first.
        ordered = sorted(addresses, key=lambda address: _is_loopback(address[0]))
        for endpoint in server.endpoints:
            url = urls_of(server, endpoint, ordered)[0]
            for client in _CLIENTS:
                if endpoint.type in client.types:
                    host = _host_for(client, outside) if reach is Reach.EVERYWHERE else None
                    clients.append(_settings(client, server, endpoint, with_host(url, host), reach))
    return {"clients": clients, "warnings": warnings}


def reach_of(hosts: Sequence[str]) -> Reach:
    """From where a server that listens on these hosts can be reached."""
    if any(_is_unspecified(host) for host in hosts):
        return Reach.EVERYWHERE
    return Reach.HERE if all(_is_loopback(host) for host in hosts) else Reach.ONE


def _settings(client: _Client, server: ResolvedServer, endpoint: ResolvedEndpoint, url: str, reach: Reach) -> Item:
    host = urlsplit(url).hostname
    notes = [client.note] if client.note is not None else []
    if client.in_container and reach is Reach.HERE:
        notes.append("From a container this address cannot be reached; see the warning.")
    elif host == CONTAINER_HOST:
        notes.append(
            f"On Linux, Docker knows {CONTAINER_HOST} with --add-host={CONTAINER_HOST}:host-gateway only. Not in a "
            "container? Then use 127.0.0.1 instead."
        )
    if server.tls is not None:
        notes.append(f"The certificate has to be one that the client believes, and to name {host}.")
    works = client.keeps_path or not endpoint.prefix
    if not works:
        notes.append(
            f"It drops the path {endpoint.prefix} of the address: give the endpoint a server (a port) of its own, "
            "without a path_prefix."
        )
    return {
        "endpoint": endpoint.id,
        "client": client.name,
        "settings": [{"name": name, "value": value} for name, value in client.settings(url.rstrip("/"), endpoint.type)],
        "works": works,
        "note": " ".join(notes) or None,
    }


def _host_for(client: _Client, outside: str | None) -> str | None:
    """The host to write into an address; None: the loopback address."""
    return CONTAINER_HOST if client.in_container else outside


def lan_address() -> str | None:
    """The address under which this machine reaches others, as a route to anywhere tells; None: there is none.

    No packet is sent: connecting a datagram socket only looks the route up.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def with_host(url: str, host: str | None) -> str:
    """The URL with another host; None: as it is."""
    if host is None:
        return url
    parts = urlsplit(url)
    shown = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{shown}:{parts.port}").geturl()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
