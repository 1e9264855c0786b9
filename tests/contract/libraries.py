"""One call, made with a Python library as its users make it; what came of it, in one form for all libraries.

The libraries are imported where they are used: every worker of a parallel run collects these tests, which takes
seconds with them, and one worker runs them.
"""

import asyncio
import functools
import importlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.contract.lists import Call

if TYPE_CHECKING:
    import openai

LIMIT_S = 60.0
"""Longest time for one call, on a machine that is busy with others. Clients themselves wait for minutes."""
KEY = "sk-none"


@dataclass(slots=True)
class Outcome:
    """What a library gave to its caller."""

    status: int | None = None
    """None where the library does not tell."""
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case; empty where the library does not tell."""
    body: bytes = b""
    """The raw answer; of an SDK its result as JSON. Empty for streams."""
    events: list[str] = field(default_factory=list)
    """Of a stream: data of its events, its lines, or what the SDK made of them, as JSON."""
    comments: int = 0
    """Comments of the stream, where the library shows them."""
    error: str = ""
    """Class of the exception that the library raised."""
    message: str = ""
    """Its text."""
    requests: int = 1
    """HTTP requests that the library made for this one call."""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not self.error and self.status in (None, 101, 200)

    def json(self) -> Any:
        return json.loads(self.body)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Made once: to read all certificates takes longer than most calls."""
    return ssl.create_default_context()


_importing = threading.Lock()


def _import_libraries() -> None:
    """One thread at a time: openai looks at ``httpx`` while another thread may be half-way through importing it."""
    with _importing:
        for name in ("aiohttp", "httpx", "httpx2", "ollama", "openai", "requests"):
            importlib.import_module(name)


Began = Callable[[], None]
"""Called when the head of an answer is there."""


def perform(base: str, call: Call, path: str, began: Began = lambda: None) -> Outcome:
    """Make a call with its library.

    Args:
        base: URL of the server with the prefix of the endpoint, as it stands in the client's settings.
        call: What to call.
        path: Its path with everything learned filled in.
        began: Told about the head of a stream.
    """
    _import_libraries()
    outcome = Outcome()
    start = time.monotonic()
    _BY_LIBRARY[call.library](base, call, path, began, outcome)
    outcome.seconds = outcome.seconds or time.monotonic() - start  # Node tells its own, without its start
    return outcome


def events_of(lines: Iterable[bytes], outcome: Outcome) -> None:
    """Sort the lines of an event stream."""
    for line in lines:
        line = line.rstrip(b"\r\n")
        if line.startswith(b":"):
            outcome.comments += 1
        elif line.startswith(b"data: "):
            outcome.events.append(line[6:].decode())
        elif line:
            outcome.events.append(line.decode())


# -- plain HTTP --------------------------------------------------------------------------------------------------------


def _with_requests(base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
    import requests

    files = {"file": ("a.wav", b"\0" * call.file_bytes)} if call.file_bytes else None
    data = {"model": "m"} if files else None
    try:
        with requests.Session() as session, session.request(
            call.method, base + path, json=call.body, data=data, files=files, stream=bool(call.stream), timeout=LIMIT_S
        ) as answer:  # fmt: skip
            outcome.status = answer.status_code
            outcome.headers = {name.lower(): value for name, value in answer.headers.items()}
            began()
            if call.stream and answer.ok:
                # A small chunk size: its default waits for 512 bytes before it shows a line.
                events_of(answer.iter_lines(chunk_size=1), outcome)
            else:
                outcome.body = answer.content
    except requests.RequestException as error:
        outcome.error, outcome.message = type(error).__name__, str(error)


def _with_aiohttp(base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
    asyncio.run(_aiohttp(base, call, path, began, outcome))


async def _aiohttp(base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
    import aiohttp

    data = None
    if call.file_bytes:
        data = aiohttp.FormData({"model": "m"})
        data.add_field("file", b"\0" * call.file_bytes, filename="a.wav")
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S), trust_env=True) as session:
            if call.stream == "socket":
                async with session.ws_connect(base + path) as socket:
                    outcome.status = 101
                    outcome.body = (await socket.receive_str()).encode()
                return
            async with session.request(call.method, base + path, json=call.body, data=data) as answer:
                outcome.status = answer.status
                outcome.headers = {name.lower(): value for name, value in answer.headers.items()}
                began()
                if call.stream == "lines" and answer.ok:
                    outcome.events = [line.decode().strip() async for line in answer.content]
                elif call.stream and answer.ok:
                    events_of([line async for line in answer.content], outcome)
                else:
                    outcome.body = await answer.read()
    except aiohttp.WSServerHandshakeError as error:
        outcome.status, outcome.error, outcome.message = error.status, type(error).__name__, error.message
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome.error, outcome.message = type(error).__name__, str(error)


# -- SDKs --------------------------------------------------------------------------------------------------------------


def counting_client(outcome: Outcome) -> Any:
    """The HTTP client that openai would make, which counts the requests."""

    import openai

    def count(_request: object) -> None:
        outcome.requests += 1

    outcome.requests = 0
    return openai.DefaultHttpxClient(verify=_tls(), event_hooks={"request": [count]})


def openai_client(base: str, outcome: Outcome, *, retries: bool) -> "openai.OpenAI":
    """With its own number of retries, or none."""
    import openai

    client = openai.OpenAI(base_url=f"{base}/v1", api_key=KEY, http_client=counting_client(outcome), timeout=LIMIT_S)
    return client if retries else client.with_options(max_retries=0)


def _with_openai(base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
    import httpx2
    import openai

    with openai_client(base, outcome, retries=call.wakes) as client:
        methods: dict[str, Callable[..., Any]] = {
            "/v1/models": client.models.list,
            "/v1/chat/completions": client.chat.completions.create,
            "/v1/completions": client.completions.create,
            "/v1/embeddings": client.embeddings.create,
        }
        try:
            answer = methods[path](**(call.body or {}))
            began()
            if call.stream:
                for event in answer:
                    outcome.events.append(event.to_json(indent=None))
            else:
                outcome.body = answer.to_json(indent=None).encode()
        except openai.APIError as error:
            outcome.error, outcome.message = type(error).__name__, error.message
            if isinstance(error, openai.APIStatusError):
                outcome.status = error.status_code
                outcome.headers = {name.lower(): value for name, value in error.response.headers.items()}
                outcome.body = error.response.content
        except httpx2.HTTPError as error:  # let through while a stream is read
            outcome.error, outcome.message = type(error).__name__, str(error)


def _with_ollama(base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
    import httpx
    import ollama

    client = ollama.Client(host=base, timeout=LIMIT_S, verify=_tls())
    streams = {"stream": True} if call.stream else {}
    methods: dict[str, Callable[..., Any]] = {
        "/api/tags": client.list,
        "/api/ps": client.ps,
        "/api/show": client.show,
        "/api/chat": client.chat,
        "/api/generate": client.generate,
        "/api/embed": client.embed,
        "/api/pull": client.pull,
    }
    try:
        answer = methods[path](**(call.body or {}), **streams)
        if call.stream:
            for part in answer:
                began()
                outcome.events.append(part.model_dump_json(exclude_none=True))
        else:
            outcome.body = answer.model_dump_json(exclude_none=True).encode()
    except ollama.ResponseError as error:
        outcome.status, outcome.error, outcome.message = error.status_code, type(error).__name__, error.error
    except (ConnectionError, httpx.HTTPError) as error:
        outcome.error, outcome.message = type(error).__name__, str(error)
    finally:
        client._client.close()


def _with_node(base: str, call: Call, path: str, began: Began, outcome: Outcome) -> None:
    from tests.contract.node import node  # needs Node, which others need not have

    node().perform(base, call, path, began, outcome)


_BY_LIBRARY: dict[str, Callable[[str, Call, str, Began, Outcome], None]] = {
    "aiohttp": _with_aiohttp,
    "requests": _with_requests,
    "openai": _with_openai,
    "ollama": _with_ollama,
    "fetch": _with_node,
    "openai-npm": _with_node,
}
