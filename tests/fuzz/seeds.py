"""Writes the seeds of the corpus: ``python -m tests.fuzz.seeds``. What fuzzers found lies beside them.

Seeds are what the data plane was first probed with (malformed requests, chunks, answers, among them all known ways to
smuggle), and one good example of each kind.
"""

import json

from tests.fuzz.strategies import ODD_BYTES
from tests.fuzz.targets import CORPUS
from tests.protocol.test_errors import BAD_CHUNKS, MALFORMED, SLOPPY, TRUNCATED
from tests.unit.survey import gguf_files

_CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
_NEXT = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
_GOOD_REQUESTS = {
    "get": b"GET /a?b=c HTTP/1.1\r\nHost: h:1\r\nAccept: */*\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    "chunks": _CHUNKED + b'3;a="b"\r\nabc\r\n0\r\nX-T: 1\r\n\r\n',
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 kept": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/1.0 kept and closed": b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
    "absolute": b"GET http://h/a HTTP/1.1\r\nHost: other\r\n\r\n",
    "absolute, odd host": b'GET http://a"b/ HTTP/1.1\r\nHost: h\r\n\r\n',
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "raw UTF-8": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n",
    "empty lines before": b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "listed": b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x-a, content-length, host\r\nX-A: 1\r\nContent-Length: 0\r\n"
    b"\r\n",
    "expect": b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
    "upgrade": b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "forwarded": b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: a\r\nX-Forwarded-Prefix: /p\r\nOrigin: http://h\r\n\r\n",
}
_SMUGGLING = {
    "length hides request": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(_SMUGGLED) + _SMUGGLED,
    "chunk hides request": _CHUNKED + b"%x\r\n" % len(_SMUGGLED) + _SMUGGLED + b"\r\n0\r\n\r\n",
    "get with body": b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(_SMUGGLED) + _SMUGGLED,
    "trailer with request": _CHUNKED + b"0\r\n" + _SMUGGLED + b"\r\n",
    "vertical tab in coding": _CHUNKED.replace(b"chunked", b"\x0bchunked") + b"0\r\n\r\n" + _SMUGGLED,
    "long size": _CHUNKED + b"1" + b"0" * 16 + b"\r\n",
    "bare CR ends extension": _CHUNKED + b"1;\rA\r\nX\r\n0\r\n\r\n",
    "blank behind size": _CHUNKED + b"1 \r\nX\r\n0\r\n\r\n",
}
_ANSWERS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "until close": b"HTTP/1.1 200 OK\r\n\r\nok",
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 with length": b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "switched": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nraw",
    "two framings": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 kept and closed": b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 chunks": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "surplus": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake",
    "location": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/a\r\nSet-Cookie: a=b; Path=/\r\n"
    b"Content-Length: 0\r\n\r\n",
    "listed": b"HTTP/1.1 200 OK\r\nConnection: content-type, x-a\r\nContent-Type: text/plain\r\nX-A: b\r\n"
    b"Content-Length: 2\r\n\r\nok",
    "control in value": b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 2\r\n\r\nok",
    "folded length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 2\r\n\r\nok",
    "space before length": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
}
_EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n",
    b'HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\n\r\n{"error": {"message": "m", "type": "t", "n": 1}}',
    b'HTTP/1.1 422 No\r\n\r\n{"detail": [{"msg": "m", "loc": ["a", 1]}]}',
    b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\n\r\n<html>\xff</html>",
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"error": "e"}',
    b"HTTP/1.1 400 No\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b",
    b'HTTP/1.1 400 No\r\n\r\n{"error": NaN, "message": {"a": [Infinity, "\\ud800"]}}',
    b'HTTP/1.1 400 No\r\n\r\n{"error": {"message": 5, "type": 6}}',
)
_WANTS = (
    b'POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 16\r\n\r\n{"stream": true}',
    b'POST /v1/messages HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"stream": true}\r\n0\r\n\r\n',
    b"GET /queue/data HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n",
    b'POST /v1/responses HTTP/1.1\r\nHost: h\r\nContent-Length: 25\r\n\r\n{"a": {"stream": true }  }',
    b"GET /queue/data HTTP/1.1\r\nHost: h\r\nAccept: text/event-str eam\r\n\r\n",
    b"POST /api/extra/generate/stream HTTP/1.1\r\nHost: h\r\n\r\n",
    b'POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 36\r\n\r\n{"stream": 1, "a": {"stream": true}}',
)
_CONFIGS = {
    "plain": b'{"servers": [{"port": 8080}], "backends": {"a": {"type": "llamacpp"}}}',
    "comments": b'// a\n{ # b\n "a": 1, /* c */ "b": [1, 2,],\n}\n',
    "quotes": b"{'a': True, b: None}",
    "escapes": b'{"a": "\\u00e4\\ud83d\\ude00\\ud800", "p": "C:\\models\\new.gguf"}',
    "numbers": b"[0, -0, 1.5e3, 1E400, 01, +1, .5, 1., 0x10, NaN]",
    "twice": b'{"a": 1, "a": 2, "_a": 1, "_a": 2}',
    "comma alone": b"[,]",
    "deep": b"[" * 70 + b"]" * 70,
    "unclosed": b'{"a": [1, {"b": "c',
    "blanks": b'\xc2\xa0{"a"\xe2\x80\xa8: 1}',
}


def write() -> None:
    """Write every seed into its folder."""
    _write("request_heads", {**_GOOD_REQUESTS, **{name: data for name, (data, _) in MALFORMED.items()}})
    _write("response_heads", {**_ANSWERS, **{f"sloppy {name}": data for name, data in SLOPPY.items()}})
    _write("chunked", {f"bad {name}": data for name, data in BAD_CHUNKS.items()})
    bodies = {**_GOOD_REQUESTS, **_SMUGGLING}
    chunked = {name: data.partition(b"\r\n\r\n")[2] for name, data in bodies.items() if b"chunked" in data}
    _write("chunked", {**chunked, "blank at the end": b"5 \r", "odd end of a lone chunk": b"3\r\nabcXY"})
    streams = {
        **_GOOD_REQUESTS,
        **_SMUGGLING,
        **{name: data for name, (data, _) in MALFORMED.items()},
        **{f"chunk {name}": _CHUNKED + data for name, data in BAD_CHUNKS.items()},
    }
    _write("client_streams", {name: b"\x0a" + _NEXT + data + _NEXT for name, data in streams.items()})
    answers = {**_ANSWERS, **SLOPPY, **{f"truncated {name}": data for name, data in TRUNCATED.items()}}
    for asker in range(4):
        _write("backend_streams", {f"{name} {asker}": bytes((8 + asker,)) + data for name, data in answers.items()})
    for index, data in enumerate(_EVENTS):
        _write("event_streams", {f"{index} {first:02x}": bytes((first,)) + data for first in (0, 0x41, 0x22)})
    _write("wants_events", {str(index): data for index, data in enumerate(_WANTS)})
    tensors = {"token_embd.weight": 0, "blk.0.ffn_up_exps.weight": 64, "output.weight": 96}
    _write(
        "gguf",
        {
            "llama": gguf_files.head(gguf_files.LLAMA),
            "experts": gguf_files.head({"general.architecture": "a", "a.block_count": 1}, tensors=tensors),
            "lists": gguf_files.head({"n": [1, 2, 3], "t": ["a", "bc"], "f": 0.5, "b": True}, version=2),
            "empty": gguf_files.head({}, tensors={}),
        },
    )
    _write("config", _CONFIGS)


def dictionary() -> str:
    """``ODD_BYTES`` in the form that libFuzzer reads."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in ODD_BYTES)


def _write(target: str, seeds: dict[str, bytes]) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        if len(data) > 8192:
            continue  # too long for fuzzing: tests/protocol has these
        plain = "".join(character if character.isalnum() else "-" for character in name.lower())
        (folder / f"seed-{plain}").write_bytes(data)


if __name__ == "__main__":
    write()
    print(json.dumps({folder.name: len(list(folder.iterdir())) for folder in sorted(CORPUS.iterdir())}))
