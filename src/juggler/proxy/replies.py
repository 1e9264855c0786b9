"""Earlier replies of light requests, for the time when their backend cannot answer. Pure but for a clock.

Clients poll: lists of models, versions, options, the files of a web UI. None of that is worth a swap, and a 503 makes
many of them forget what they showed. So the last good answer to the same question stands in, and says so with ``Age``
and ``X-Juggler: cached`` (clients.md section 4.3). While the backend is up it is always asked.

A reply is kept for the same question only: endpoint, target, the body of a POST that only asks (ollama's
``/api/show``), and every field of the request that is not known to have no say in the answer. So credentials of any
kind, names that a login proxy adds, ``Accept-Encoding``, foreign origins and the address the client used all keep
their replies apart, also those nobody here has heard of; at worst a reply is not found. The keys hold a digest, not
the credentials.

Unlike a cache on the way (RFC 9111) this one speaks for the origin: ``no-cache`` and ages do not count, ``no-store``
and ``private`` do; but ``no-store`` does not where a program says so of everything (koboldcpp).

Where nothing was kept yet, a few routes have a placeholder (``routing.traffic``): it says ``X-Juggler: placeholder``.
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from juggler.ids import EndpointId
from juggler.proxy.body import RequestBody
from juggler.proxy.contract import Route
from juggler.proxy.head import Field, RequestHead, ResponseHead
from juggler.proxy.headers import ReturnHop, end_to_end_fields
from juggler.proxy.wishes import WISH_FIELDS
from juggler.units import MIB

REPLY_BYTES_MAX = 8 * MIB
"""Longer bodies are not kept: what clients poll is shorter, and pictures or large scripts would crowd it out."""

TOTAL_BYTES_MAX = 32 * MIB
"""Of all replies, their fields included; the least recently used go first. As much again of answers on their way."""

REPLIES_MAX = 4096
"""Bounds what many small replies take besides their bytes."""

QUESTION_BYTES_MAX = 16 * 1024
"""Longer bodies of requests are no questions whose answers are kept; a name takes a hundred bytes."""

_OVERHEAD_BYTES = 512
"""Counted for each reply: its key and objects."""

_NO_SAY = WISH_FIELDS | frozenset(
    (
        b"baggage",
        b"cache-control",
        b"cf-ray",
        b"connection",
        b"content-length",
        b"content-type",
        b"date",
        b"dnt",
        b"expect",
        b"forwarded",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"keep-alive",
        b"pragma",
        b"priority",
        b"proxy-connection",
        b"range",
        b"referer",
        b"request-id",
        b"save-data",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-user",
        b"sec-gpc",
        b"te",
        b"traceparent",
        b"tracestate",
        b"upgrade-insecure-requests",
        b"user-agent",
        b"via",
        b"x-amzn-trace-id",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-real-ip",
        b"x-request-id",
    )
)
"""Fields that neither say who asks nor choose the answer, unless the answer's Vary says so (then it is not kept).

They differ from poll to poll or from tool to tool. Addresses are among them: an address is no credential.
"""
_NO_SAY_PREFIXES = (b"sec-ch-", b"x-stainless-", b"x-b3-")
"""Client hints, the OpenAI SDKs' notes about themselves, tracing."""

_OWN_SITES = (b"same-origin", b"none")
_UNTOLD = (b"*", b"sec-fetch-site")
"""In Vary: the answer depends on something that keys do not tell apart (well enough)."""

_REFUSED = frozenset((401, 403, 404, 410))
"""Answers after which an earlier reply must not be shown again: not to this caller, or not at all."""

_ENDLESS_TYPES = (b"text/event-stream", b"multipart/x-mixed-replace")

ReplyKey = tuple[EndpointId, bytes]
"""Endpoint, and a digest of the target as the backend gets it, the request's fields that count, and its body."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole 200 answer, as a client got it."""

    fields: bytes
    """Lines of its end-to-end fields, without Content-Length and Age."""
    body: bytes
    """Without chunks; content coding as the backend sent it."""
    stored_at: float
    """Seconds on the clock of its ``Replies``."""
    age_before_s: int = 0
    """How old it was already, if a cache between the backend and us said so."""
    source: bytes = b"cached"
    """Told in ``X-Juggler``."""
    of_question: bool = False
    """It was the answer to a POST, not the state of a resource that clients look at again and again."""

    @property
    def size_bytes(self) -> int:
        return len(self.fields) + len(self.body) + _OVERHEAD_BYTES

    def message(
        self, now: float, *, head_only: bool = False, close: bool = False, added: Sequence[tuple[str, str]] = ()
    ) -> bytes:
        """The whole HTTP answer.

        Args:
            now: Seconds on the same clock as ``stored_at``.
            head_only: The request was HEAD: same head, no body.
            close: The connection closes after this answer.
            added: Further fields, name and value, of this one answer.
        """
        head = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\nAge: %d\r\nX-Juggler: %b\r\n%b%b\r\n" % (
            self.fields,
            len(self.body),
            self.age_before_s + max(0, int(now - self.stored_at)),
            self.source,
            b"Connection: close\r\n" if close else b"",
            b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in added),
        )
        return head if head_only else head + self.body


class Replies:
    """A bounded store of replies; the least recently used ones make room.

    Args:
        total_bytes: For all replies together.
        reply_bytes: For the body of one.
        count: How many at most.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        total_bytes: int = TOTAL_BYTES_MAX,
        reply_bytes: int = REPLY_BYTES_MAX,
        count: int = REPLIES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reply_bytes = reply_bytes
        self.clock = clock
        self.size_bytes = 0
        self.copying_bytes = 0
        """Of answers that are on their way and may become replies."""
        self.turnovers = 0
        """How often replies were forgotten because another backend answers from then on."""
        self._total_bytes = total_bytes
        self._count = count
        self._replies: OrderedDict[ReplyKey, Reply] = OrderedDict()
        # Nobody who sees a digest shall be able to try credentials on it.
        self._secret = os.urandom(16)

    def __len__(self) -> int:
        return len(self._replies)

    def key(self, route: Route, head: RequestHead, question: bytes = b"") -> ReplyKey:
        """What a reply must have been the answer to.

        Args:
            route: Where the request goes.
            head: Its head.
            question: Its body, byte for byte: what else means the same is for the backend to know.
        """
        counting: list[bytes] = []
        for _, name, value in head.fields:
            lowered = name.lower()
            if lowered in _NO_SAY or lowered.startswith(_NO_SAY_PREFIXES):
                continue
            if lowered != b"sec-fetch-site" or value.lower() not in _OWN_SITES:
                counting.append(b"%b:%b" % (lowered, value))
        counting.sort()
        if head.method == b"POST":
            counting += [b"", question]  # no field is empty or holds a line end
        digest = hashlib.blake2b(b"\n".join([route.target, *counting]), key=self._secret, digest_size=16)
        return route.endpoint, digest.digest()

    def find(self, route: Route, head: RequestHead, body: RequestBody | None = None) -> Reply | None:
        """The last good reply to the same question, if the request is one that it may answer.

        Where there is none, what such a program answers whatever it holds, if that is known (``Route.placeholder``).
        """
        question = _question(route, head, body)
        if question is None:
            return None
        key = self.key(route, head, question)
        reply = self._replies.get(key)
        if reply is not None:
            self._replies.move_to_end(key)
        elif route.placeholder is not None:
            fields = f"Content-Type: {route.placeholder.content_type}\r\n".encode("latin-1")
            reply = Reply(fields, route.placeholder.body, self.clock(), source=b"placeholder")
        return reply

    def store(self, key: ReplyKey, reply: Reply) -> None:
        """Keep a reply in place of an earlier one; one that is too large by itself is not kept."""
        self.forget(key)
        if len(reply.body) > self.reply_bytes or reply.size_bytes > self._total_bytes:
            return
        self._replies[key] = reply
        self.size_bytes += reply.size_bytes
        while self.size_bytes > self._total_bytes or len(self._replies) > self._count:
            _, oldest = self._replies.popitem(last=False)
            self.size_bytes -= oldest.size_bytes

    def forget_endpoints(self, endpoints: Collection[EndpointId]) -> None:
        """Drop all replies of endpoints whose backend is another one from now on; answers on their way are not kept."""
        self.turnovers += 1
        for key in [key for key in self._replies if key[0] in endpoints]:
            self.forget(key)

    def copy_more(self, size: int) -> bool:
        """Whether so many bytes more may be copied; they are counted."""
        if self.copying_bytes + size > self._total_bytes:
            return False
        self.copying_bytes += size
        return True

    def forget(self, key: ReplyKey) -> None:
        """Drop a reply, if there is one."""
        reply = self._replies.pop(key, None)
        if reply is not None:
            self.size_bytes -= reply.size_bytes

    def forget_questions(self) -> None:
        """Drop the replies to all POSTs, of every endpoint: several may lead to the server that has changed."""
        for key in [key for key, reply in self._replies.items() if reply.of_question]:
            self.forget(key)

    def recorder(self, route: Route, head: RequestHead, body: RequestBody | None = None) -> "Recorder | None":
        """For an exchange about to begin: what keeps its answer if that may be kept, or heeds what it changes."""
        if route.changes:
            return Recorder(self, route, head)
        if head.method == b"HEAD" or not _may_be_asked(route, head):
            return None
        if head.method == b"POST":
            if body is None:
                return None
            body.keep_copy()
        return Recorder(self, route, head, body)


class Recorder:
    """Takes a copy of one answer as it passes."""

    __slots__ = ("_answer", "_body", "_copied", "_head", "_pieces", "_replies", "_room", "_route", "_turnovers")

    def __init__(self, replies: Replies, route: Route, head: RequestHead, body: RequestBody | None = None) -> None:
        self._replies = replies
        self._body = body
        self._route = route
        self._head = head
        self._answer: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._copied = 0  # bytes in them
        self._room = replies.reply_bytes
        self._turnovers = replies.turnovers

    def begin(self, answer: ResponseHead) -> bool:
        """The answer's head has come. False: it is not kept, and nothing more is to be told."""
        if self._route.changes:
            if answer.status < 300:
                self._replies.forget_questions()
            return False
        if answer.status != 200 or not _may_be_kept(answer.fields, self._route.no_store_everywhere):
            key = self._key()
            if key is not None and (answer.status == 200 or answer.status in _REFUSED):
                self._replies.forget(key)
            return False
        # An answer that ends with its connection cannot be told from one that was cut off.
        framed = answer.chunked or (answer.content_length is not None and answer.content_length <= self._room)
        if not framed or _has_field(self._head.fields, b"range"):
            return False
        self._answer = answer
        return True

    def take(self, payload: bytes) -> bool:
        """A piece of the body, without chunks. False: it has become too long, and nothing more is to be told.

        So it has where too much is being copied at the same time: slow readers may be many.
        """
        self._room -= len(payload)
        if self._room < 0 or not self._replies.copy_more(len(payload)):
            self.drop()
            return False
        self._copied += len(payload)
        self._pieces.append(payload)
        return True

    def drop(self) -> None:
        """Nothing of it is needed any more. Idempotent."""
        self._replies.copying_bytes -= self._copied
        self._copied = 0
        self._pieces.clear()

    def finish(self, hop: ReturnHop) -> None:
        """The answer was whole.

        Args:
            hop: How its head was mapped back for the client.
        """
        answer = self._answer
        assert answer is not None
        reply = Reply(
            end_to_end_fields(answer, hop),
            b"".join(self._pieces),
            self._replies.clock(),
            _age_s(answer.fields),
            of_question=self._head.method == b"POST",
        )
        self.drop()
        if self._turnovers != self._replies.turnovers:
            return  # the endpoint may be another backend's by now
        key = self._key()
        if key is not None:  # it was not answered before it was asked
            self._replies.store(key, reply)

    def _key(self) -> ReplyKey | None:
        question = _question(self._route, self._head, self._body)
        return self._replies.key(self._route, self._head, question) if question is not None else None


def _may_be_asked(route: Route, head: RequestHead) -> bool:
    """Whether target and fields, of a POST the body too, are all there is to the request."""
    most = QUESTION_BYTES_MAX if head.method == b"POST" else 0
    return route.cacheable and head.upgrade is None and not head.chunked and (head.content_length or 0) <= most


def _question(route: Route, head: RequestHead, body: RequestBody | None) -> bytes | None:
    """The body of a request that a reply may answer, empty for a GET; None: no reply may."""
    if not _may_be_asked(route, head):
        return None
    if head.method != b"POST":
        return b""
    return body.whole if body is not None else None


def _has_field(fields: Iterable[Field], wanted: bytes) -> bool:
    return any(name.lower() == wanted for _, name, _ in fields)


def _may_be_kept(fields: Iterable[Field], no_store_everywhere: bool) -> bool:
    """Whether nothing in an answer's fields forbids to show it again."""
    forbidding = {b"private"} if no_store_everywhere else {b"no-store", b"private"}
    for _, name, value in fields:
        lowered = name.lower()
        if lowered == b"set-cookie":
            return False
        if lowered == b"cache-control":
            if not forbidding.isdisjoint(_words(value)):
                return False
        elif lowered == b"vary":
            if any(word in _UNTOLD or word in _NO_SAY or word.startswith(_NO_SAY_PREFIXES) for word in _words(value)):
                return False
        elif lowered == b"content-type" and value.lower().startswith(_ENDLESS_TYPES):
            return False
    return True


def _words(value: bytes) -> set[bytes]:
    """Members of a list, in lower case, without what follows ``=``."""
    return {word.partition(b"=")[0].strip(b" \t").lower() for word in value.split(b",")}


def _age_s(fields: Iterable[Field]) -> int:
    value = next((value for _, name, value in fields if name.lower() == b"age"), b"")
    return int(value) if value.isdigit() and len(value) <= 9 else 0
