"""Heads, bodies and streams for hypothesis: valid ones, odd ones, and damaged ones."""

from itertools import pairwise

from hypothesis import strategies as st

ODD_BYTES = (
    *(b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b"\r\n ", b"\n\t", b"\r\n\r\n", b"\n\n"),
    *(
        b"\x0b",
        b"\x0c",
        b"\x7f",
        b"\x80",
        b"\xff",
        b"0",
        b"x",
        b"+",
        b"-",
        b"0x",
        b"_",
        b"%00",
        b"\xc3\xa4",
        b"/",
        b"*",
    ),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Host: h\r\n", b"Connection: close\r\n", b"chunked", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n"),
)
"""What is put into valid messages to damage them; also the dictionary of the coverage-guided fuzzer."""

_TOKENS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=6).map(str.encode)
_TEXTS = st.text('abcXYZ019 \t,;:=/"\xe4\xff', max_size=10).map(lambda text: text.encode("latin-1"))
_CASE = st.sampled_from((bytes.lower, bytes.upper, bytes.title, bytes.swapcase))


def _name(name: bytes) -> st.SearchStrategy[bytes]:
    return _CASE.map(lambda change: change(name))


def _field(name: bytes, *values: bytes) -> st.SearchStrategy[bytes]:
    blanks = st.sampled_from((b" ", b"", b"\t", b"  "))
    return st.builds(
        lambda name, before, value, after: name + b":" + before + value + after + b"\r\n",
        _name(name),
        blanks,
        st.sampled_from(values),
        st.sampled_from((b"", b"", b"", b" ", b"\t ")),
    )


_LENGTHS = _field(
    b"content-length", *(b"0", b"3", b"3", b"5", b"007", b"+3", b"-1", b"3, 3", b"3,4", b"0x3", b"3 3", b"")
)
_BIG_LENGTHS = _field(b"content-length", b"9" * 18, b"9" * 19, b"1" + b"0" * 20, "\u0663".encode())
_CODINGS = _field(
    b"transfer-encoding",
    *(b"chunked", b"chunked", b"Chunked", b"CHUNKED", b"xchunked", b"gzip, chunked", b"chunked, chunked"),
    *(b"identity", b"", b'"chunked"', b"chunked;q=1", b"chunked,", b",chunked", b"\x0bchunked", b"chunked\x00"),
)
_CONNECTIONS = _field(
    b"connection",
    *(b"close", b"keep-alive", b"Close, X", b"upgrade", b"x-a,, host", b"content-length", b"transfer-encoding, te"),
    *(b"keep-alive, close", b"closed", b"x;close", b"", b"content-type, x-a", b"authorization, cookie"),
)
_HOSTS = _field(b"host", *(b"h", b"h", b"h:1", b"[::1]:80", b"", b"a, b", b"a/b", b"a@b", b"h h", b"\xe4"))
_OTHERS = st.one_of(
    st.builds(lambda name, value: name + b": " + value + b"\r\n", _TOKENS, _TEXTS),
    _field(b"expect", b"100-continue", b"100-Continue", b"cake", b""),
    _field(b"upgrade", b"websocket", b"h2c", b""),
    _field(b"te", b"trailers", b"gzip, trailers;q=1", b"deflate"),
    _field(b"keep-alive", b"timeout=5", b"timeout=x"),
    _field(b"x-forwarded-for", b"1.2.3.4", b"\xff"),
    _field(b"x-forwarded-prefix", b"/a", b"/a\xff", b"a"),
    _field(b"origin", b"http://h", b"null"),
    _field(b"proxy-connection", b"keep-alive"),
    _field(b"content-type", b"text/plain", b""),
    _field(b"x-a", b"b"),
    _field(b"trailer", b"X-T"),
)
_FRAMING = st.one_of(_LENGTHS, _CODINGS, _LENGTHS, _CODINGS, _BIG_LENGTHS)
_FIELDS = st.lists(st.one_of(_OTHERS, _CONNECTIONS, _OTHERS, _FRAMING, _HOSTS), max_size=4)

_METHODS = st.one_of(
    st.sampled_from((b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"CONNECT", b"PRI", b"get")), _TOKENS
)
_TARGETS = st.one_of(
    st.text('abc019%/?&=.~[]|{}"#\\', max_size=12).map(lambda text: b"/" + text.encode()),
    st.sampled_from(
        (
            b"*",
            b"http://h/a",
            b"HTTP://h",
            b"h:80",
            b"a",
            b"//x",
            b"/\xc3\xa4",
            b"/a b",
            b"",
            b"ws+x://h/",
            b"://",
            b"/\x7f",
        )
    ),
)
_VERSIONS = st.sampled_from(
    (*(b"HTTP/1.1",) * 6, b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1")
)
_STARTS = st.builds(
    lambda before, method, target, version: before + method + b" " + target + b" " + version + b"\r\n",
    st.sampled_from((b"",) * 9 + (b"\r\n", b"\r\n\r\n", b"\n", b" ")),
    _METHODS,
    _TARGETS,
    _VERSIONS,
)
_HOST = st.sampled_from((b"Host: h\r\n",) * 8 + (b"host:h:1\r\n", b""))

_FINE_FRAMING = st.sampled_from(
    (b"Content-Length: 3\r\n", b"content-length: 0\r\n", *(b"Transfer-Encoding: chunked\r\n",) * 2, b"Trailer: X-T\r\n")
)
_FINE_FIELDS = st.lists(
    st.one_of(
        _FINE_FRAMING,
        st.sampled_from((b"Content-Type: a/b\r\n", b"Authorization: c\r\n", b"Cookie: d=e\r\n", b"X-A: f\r\n")),
        st.sampled_from((b"content-type, x-a", b"authorization", b"cookie, close", b"content-length", b"trailer")).map(
            lambda listed: b"Connection: " + listed + b"\r\n"
        ),
    ),
    min_size=2,
    max_size=5,
)
"""What can be wrong with them is what they say together."""
_FINE_STARTS = st.builds(
    lambda method, target, minor, host: b"%b %b HTTP/1.%d\r\nHost: %b\r\n" % (method, target, minor, host),
    st.sampled_from((b"GET", b"POST")),
    st.sampled_from((b"/", b"/", b"http://other:1/", b'http://a"b/')),
    st.sampled_from((1, 1, 1, 0)),
    st.sampled_from((b"h", b"[::1]:80")),
)

fine_request_heads = st.builds(lambda start, fields: start + b"".join(fields) + b"\r\n", _FINE_STARTS, _FINE_FIELDS)
"""Heads each line of which is in order."""

odd_request_heads = st.builds(
    lambda start, host, fields: start + host + b"".join(fields) + b"\r\n", _STARTS, _HOST, _FIELDS
)
"""Grammar with every kind of oddity in it."""

_EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from((b"", b"", *ODD_BYTES))), min_size=1, max_size=3
)


def damaged(strategy: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The same with a few places changed, or not."""
    return st.one_of(strategy, st.builds(_edit, strategy, _EDITS))


def _edit(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, put in edits:
        place %= len(data) + 1
        data = data[:place] + put + data[place + removed :]
    return data


_STATUS_LINES = st.builds(
    lambda before, version, status: before + version + b" " + status + b"\r\n",
    st.sampled_from((b"",) * 9 + (b"\r\n", b"\n", b" ")),
    _VERSIONS,
    st.sampled_from(
        (
            *(
                b"200 OK",
                b"200 OK",
                b"200",
                b"200 ",
                b"204 No Content",
                b"304 Not Modified",
                b"404 N\xc3\xb6",
                b"999 x",
            ),
            *(
                b"100 Continue",
                b"103 Early Hints",
                b"101 Switching",
                b"099 x",
                b"20 x",
                b"2000 x",
                b"500 a\tb",
                b"200 a\x01",
            ),
        )
    ),
)
_SLOPPY = st.sampled_from(
    (b"X y: a\r\n", b"X : a\r\n", b" X: a\r\n", b"X: a\n", b"X: a\x01\r\n", b"X: a\x0bb\r\n", b"X\r\n", b": a\r\n")
)
odd_response_heads = st.builds(
    lambda start, fields: start + b"".join(fields) + b"\r\n",
    st.one_of(_STATUS_LINES, st.sampled_from((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 No Content\r\n"))),
    st.one_of(st.lists(st.one_of(_OTHERS, _CONNECTIONS, _FRAMING, _FRAMING, _SLOPPY), max_size=4), _FINE_FIELDS),
)

_SIZES = st.sampled_from((b"%x", b"%X", b"0%x", b"000000%x", b"%x", b"%x", b"%x"))
_EXTENSIONS = st.sampled_from(
    (b"",) * 6 + (b";a", b";a=b", b' ;a="b;c"', b"\t;", b";a=\xff", b" ", b";\x01", b";a\rb", b",a")
)
_CHUNKS = st.lists(
    st.builds(
        lambda size, extension, data: (size % len(data)) + extension + b"\r\n" + data + b"\r\n",
        _SIZES,
        _EXTENSIONS,
        st.binary(min_size=1, max_size=20),
    ),
    max_size=4,
)
_TRAILERS = st.sampled_from(
    (b"",) * 5
    + (b"X: y\r\n", b"A:\r\nB: c d\r\n", b"Content-Length: 5\r\n", b"X: a\r\n b\r\n", b"X : a\r\n", b"X: a\n", b"X\r\n")
)
chunked_bodies = st.builds(
    lambda chunks, size, extension, trailer: b"".join(chunks) + size + extension + b"\r\n" + trailer + b"\r\n",
    _CHUNKS,
    st.sampled_from((b"0", b"0", b"00", b"000000000000000", b"0000000000000000")),
    _EXTENSIONS,
    _TRAILERS,
)
"""With oddities in sizes, extensions and trailers."""

_PLAIN_CHUNKS = st.lists(st.binary(min_size=1, max_size=12), max_size=3).map(
    lambda chunks: b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
)
_BODIES = st.one_of(
    st.binary(max_size=8), st.sampled_from((b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n"))
)
_GOOD_START = st.builds(
    lambda method, target, minor: b"%b %b HTTP/1.%d\r\nHost: h\r\n" % (method, target, minor),
    st.sampled_from((b"GET", b"POST", b"PUT", b"HEAD", b"FOO", b"OPTIONS")),
    st.sampled_from((b"/", b"/a?b", b"http://h/c", b"/%2F")),
    st.sampled_from((1, 1, 1, 1, 0)),
)
_GOOD_FIELD = st.sampled_from(
    (b"X: y\r\n", b"Connection: keep-alive\r\n", b"Connection: close\r\n", b"Connection: x\r\n", b"Accept: */*\r\n")
)


def _with_length(start: bytes, fields: list[bytes], body: bytes, end: bytes) -> bytes:
    return start + b"".join(fields) + b"Content-Length: %d\r\n\r\n" % len(body) + body + end


good_requests = st.one_of(
    st.builds(
        _with_length, _GOOD_START, st.lists(_GOOD_FIELD, max_size=1), _BODIES, st.sampled_from((b"", b"", b"\r\n"))
    ),
    st.builds(lambda start, field: start + field + b"\r\n", _GOOD_START, st.sampled_from((b"", b"X: y\r\n"))),
    st.builds(
        lambda start, body: start.replace(b"HTTP/1.0", b"HTTP/1.1") + b"Transfer-Encoding: chunked\r\n\r\n" + body,
        _GOOD_START,
        _PLAIN_CHUNKS,
    ),
)
"""Whole requests with their bodies."""

_PARTS = st.one_of(
    good_requests,
    good_requests,
    good_requests,
    damaged(good_requests),
    st.builds(lambda head, body: head + body, odd_request_heads, st.one_of(_BODIES, chunked_bodies)),
)
_GOOD_STREAMS = st.builds(
    lambda requests, last: b"".join(requests) + last,
    st.lists(good_requests, min_size=1, max_size=4),
    st.one_of(st.just(b""), _PARTS),
)
client_streams = st.one_of(
    _GOOD_STREAMS, damaged(_GOOD_STREAMS), damaged(st.lists(_PARTS, min_size=1, max_size=4).map(b"".join))
)
"""Pipelined requests of one connection."""

_GOOD_ANSWERS = st.one_of(
    st.builds(
        lambda status, body: b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        st.sampled_from((b"200 OK", b"404", b"500 Oh no")),
        st.binary(max_size=12),
    ),
    st.builds(
        lambda minor, body: b"HTTP/1.%d 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" % minor + body,
        st.sampled_from((1, 1, 1, 0)),
        _PLAIN_CHUNKS,
    ),
    st.sampled_from(
        (
            b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
        )
    ),
)
_SOME_GOOD_ANSWERS = st.lists(_GOOD_ANSWERS, min_size=1, max_size=3).map(b"".join)
backend_streams = st.one_of(
    damaged(_SOME_GOOD_ANSWERS),
    st.builds(lambda data, left: data[: max(1, len(data) - left)], _SOME_GOOD_ANSWERS, st.integers(1, 30)),
    damaged(st.builds(lambda head, body: head + body, odd_response_heads, st.one_of(chunked_bodies, _GOOD_ANSWERS))),
)
"""What a backend sends on one connection after one request."""

cuts = st.lists(st.integers(0, 300), max_size=6)
"""Where a stream is cut, modulo its length."""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The pieces; empty ones are left out."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(ends)]
