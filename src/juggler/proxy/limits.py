"""The data plane's bounds, in one place, each with its reason."""

from dataclasses import dataclass

from juggler.units import KIB, MIB, MINUTES, SECONDS


@dataclass(frozen=True, slots=True)
class Limits:
    """Per listener. Sizes in bytes, times in seconds; there is no limit on how long an exchange may take.

    Image and long text generations stay silent for minutes (backends.md section 1.3), so only what a person
    never waits for has a deadline: slow heads, idle connections, clean-up.
    """

    request_line_bytes: int = 16 * KIB
    """Longer: 414. nginx takes 8 KiB, browsers send up to 2 MiB; web UIs put a few KiB of state in a query."""
    head_bytes: int = 64 * KIB
    """Request line and fields; longer: 431."""
    response_head_bytes: int = 256 * KIB
    """From a backend; longer: 502. Generous: the backend is trusted more than the client."""
    connections: int = 4096
    """Open at once per listener; one more is told 503 and closed, unless an idle one can make room (``proxy.crowd``).
    Each needs 5 to 10 KiB here and a descriptor, and two with a request in work."""
    connections_per_client: int = 1024
    """From one address other than this machine's; one more is told 429 and closed. 0: no bound. A quarter of all, and
    more than an endpoint's queue takes: programs that ask in parallel open a connection per request."""
    held_body_bytes: int = 1 * MIB
    """Body read while the request is held; then reading pauses. One read (256 KiB) may go over it."""
    retry_body_bytes: int = 1 * MIB
    """Body kept for a retry on a fresh connection; a longer one is not retried."""
    pipelined_bytes: int = 64 * KIB
    """Read ahead of the request being answered; then reading pauses."""
    write_buffer_bytes: int = 256 * KIB
    """High-water mark towards either side: the other side's reading pauses above it."""

    head_timeout_s: float = 30 * SECONDS
    """From the first byte of a head to its end; then 408."""
    idle_timeout_s: float = 2 * MINUTES
    """Without any byte between requests, and for a new connection."""
    body_timeout_s: float = 2 * MINUTES
    """Between two pieces of a request body that a backend waits for; then 408. Nobody's thinking time is in there, and
    a client that stops half-way would keep its model in memory for ever."""
    response_timeout_s: float | None = None
    """Between two pieces of an answer, also before its first; then 504, or the connection is cut. Off: see above."""
    discard_timeout_s: float = 5 * SECONDS
    """For the rest of a body nobody wants, before the connection is closed; it costs no memory, so only time counts."""
    flush_timeout_s: float = 30 * SECONDS
    """For the client to take the last bytes of an answer after which we close."""
    half_close_timeout_s: float = 10 * SECONDS
    """Between two bytes of a tunnel one side of which has ended."""
    answer_half_closed: bool = False
    """Whether a client that ends its half behind a whole request still waits for the answer (``proxy.client``). Off: it
    has left, for a client that closes its socket looks the same until something is sent to it."""
    expect_timeout_s: float = 1 * SECONDS
    """Silence of the backend after which we answer ``Expect: 100-continue`` ourselves; curl waits as long."""

    page_after_s: float | None = 1.5 * SECONDS
    """Waiting after which a browser that opens a page gets one of ours meanwhile (``page_waits``); None: never. Shorter
    loads show nothing of it, and a longer silence looks broken."""
    comment_after_s: float | None = 10 * SECONDS
    """Waiting after which a client that asked for events gets the head of its answer and comments (``proxy.sse``);
    None: never. Many clients and middle boxes give up after 30 to 60 s of silence."""
    comment_every_s: float = 10 * SECONDS
    """Between two signs of life: comments, or 102 Processing."""
    send_processing: bool = False
    """Whether other waiting requests get ``102 Processing``. Off: it resets time-outs of single reads only, and some
    clients and middle boxes take an unexpected 1xx for the answer (clients.md section 5)."""
    stream_look_bytes: int = 1 * MIB
    """Longest request body that is searched for ``"stream": true``; one of this length takes 5 ms."""
    failure_bytes: int = 64 * KIB
    """Read of a backend's answer that has to be told as an error event."""
    failure_timeout_s: float = 5 * SECONDS
    """For that answer to end."""

    sweep_interval_s: float = 1 * SECONDS
    """How often deadlines are looked at; all times above are met this much late at most."""
