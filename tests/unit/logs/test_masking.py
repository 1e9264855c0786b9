"""No key is seen, and what is no key stays readable."""

import time

import pytest

from juggler.backends.secrets import MASK
from juggler.logs.masking import Masker, inherited_secrets

HF = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"
SK = "sk-" + "proj-4nTq7ZzK0aLw_9-xYc2"
JWT = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0" + ".abc-DEF_123"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("llama-server --api-key hunter2x -m a.gguf", "llama-server --api-key *** -m a.gguf"),
        ("llama-server --api-key=hunter2x,second -c 1", "llama-server --api-key=*** -c 1"),
        ("argv: ['main.py', '--api-key', 'hunter2x']", "argv: ['main.py', '--api-key', ***]"),
        ('"--adminpassword" "a b c" --port 1', '"--adminpassword" *** --port 1'),
        ("-hft x1y2z3 -m a", "-hft *** -m a"),
        ("--ssl-key-file key.pem --api-key-file k.txt", "--ssl-key-file key.pem --api-key-file k.txt"),
        ("--cache-type-k q8_0 --keyfile x", "--cache-type-k q8_0 --keyfile x"),
        (
            "Namespace(admin=True, adminpassword='x y', api_key=None)",
            "Namespace(admin=True, adminpassword=***, api_key=None)",
        ),
        ("Namespace(api_key=['k1', 'k2'], hf_token='t')", "Namespace(api_key=***, hf_token=***)"),
        ('{"api_key": "a\\"b", "n": 1}', '{"api_key": ***, "n": 1}'),
        ('{"apiKey":"ab,c"}', '{"apiKey":***}'),
        ("password: opensesame", "password: ***"),
        ("client_secret = q.w.e", "client_secret = ***"),
        ("export HF_TOKEN=abc CIVITAI_KEY='x y' LANG=C", "export HF_TOKEN=*** CIVITAI_KEY=*** LANG=C"),
        ("\x1b[36mapi_key\x1b[0m=\x1b[35mabcdef\x1b[0m ok", "\x1b[36mapi_key\x1b[0m=\x1b[35m***\x1b[0m ok"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': 'Basic ***'}"),
        ("Authorization: Negotiate YIIBhgYGKwYBBQUC", "Authorization: Negotiate ***"),
        ('Authorization: Digest username="bob", response="6629fae49393a053"', "Authorization: ***"),
        (
            "[(b'authorization', b'Bearer hunterhunter'), (b'x', b'y')]",
            "[(b'authorization', b'Bearer ***'), (b'x', b'y')]",
        ),
        ("Cookie: juggler_session=0123456789abcdef; b=c", "Cookie: ***"),
        ("{'set-cookie': 'session=abc123def456; Path=/', 'a': 1}", "{'set-cookie': '***', 'a': 1}"),
        ("sent bearer 0123456789abcdef to it", "sent bearer *** to it"),
        ("X-API-Key: abc", "X-API-Key: ***"),
        ("GET https://me:pw@host:1/a?b=1", "GET https://***@host:1/a?b=1"),
        ("https://bob:p@ss@host/x and redis://:pa/ss@host", "https://***@host/x and redis://***@host"),
        ("postgres://u:p?w@host/db, https://me@x.org:pw@host", "postgres://***@host/db, https://***@host"),
        ("https://token@host:8080/x", "https://***@host:8080/x"),
        ("https://user:" + "ab1." * 90 + "@host/x", "https://***@host/x"),
        ("https://host/a?pw=abc&client_secret=d#x", "https://host/a?pw=***&client_secret=***#x"),
        ("https://host/a?token=abc&x=1 and ?key=z", "https://host/a?token=***&x=1 and ?key=***"),
        ("https://s3/a?X-Amz-Signature=00ff&y", "https://s3/a?X-Amz-Signature=***&y"),
        (f"token {HF} is bad, {SK} too", "token *** is bad, *** too"),
        (f"got {JWT} ok", "got *** ok"),
        (f"\x1b[32m{HF}\x1b[0m", "\x1b[32m***\x1b[0m"),
        ('unclosed api_key="abc def', "unclosed api_key=***"),
    ],
)
def test_what_looks_like_a_key(text: str, shown: str) -> None:
    assert Masker().mask(text) == shown
    assert Masker().mask(shown) == shown  # what is masked already stays


@pytest.mark.parametrize(
    "text",
    [
        "print_info: EOS token        = 2 '</s>'",
        "llama_model_loader: - kv  17: llama.attention.key_length u32 = 128",
        "llama_model_loader: - kv  24: tokenizer.ggml.eos_token_id u32 = 2",
        "prompt eval time = 12.3 ms / 40 tokens (0.31 ms per token, 3251 tokens per second)",
        "slot launch_slot_: id  0 | task 12 | n_past = 3, n_tokens = 12, progress = 1.0",
        "max_tokens: 100, tokens=5, token: 7",
        "error: the --api-key option must be given once",
        "  --api-key KEY          API key to use for authentication (default: none)",
        "api_key: None, password = null, secret=false",
        "WARNING: no authorization: required for remote access",
        "loading /models/task-sk-small.gguf, sha256=ab12",
        "Authorization failed, authentication is off",
        "GET /v1/chat?keyword=a&tokens=5 HTTP/1.1",
        "http://127.0.0.1:8080 and mail me@example.org",
        "http://127.0.0.1:8080/users/@me and http://[::1]:8080/@me and https://host/@scope/x@1.2",
        "cookie: none, cookies = 3, Cookies: a=b",
        "passed 3 of 4; bypass = 1; compass=2",
        "k_cache: 1, hf_repo = ggml-org/models, risk-averse-and-very-long-name",
    ],
)
def test_what_is_no_key(text: str) -> None:
    """Ordinary lines of model servers."""
    assert Masker().mask(text) == text


def test_known_words_in_every_form() -> None:
    """As the operator wrote them, and as programs print them."""
    masker = Masker(["pass'w\\o", "two words", "first\nsecond-line", "abc"])
    for form in ("pass'w\\o", "pass'w\\\\o", "pass%27w%5Co", "'two words'", "two%20words", "second-line"):
        assert masker.mask(f"<{form}>").strip("'") in (f"<{MASK}>", f"<'{MASK}'>"), form
    assert masker.mask("abcd") == "abcd"  # three letters hide nothing


def test_longer_words_first() -> None:
    """A word inside another leaves no rest of it."""
    assert Masker(["open", "opensesame"]).mask("opensesame open") == "*** ***"


@pytest.mark.parametrize(
    ("text", "shown"), [("key is hun", "key is ***"), ("key is hu", "key is hu"), ("hunter2", "***")]
)
def test_a_line_that_goes_on(text: str, shown: str) -> None:
    """What was printed so far of a known word."""
    assert Masker(["hunter2"]).mask(text, cut=True) == shown


def test_inherited() -> None:
    """Long values under telling names; a word as common as ``true`` would mask half the log."""
    environ = {"HF_TOKEN": "hf_0123456789", "GIT_AUTH": "true", "HOME": "/home/somebody", "X_KEY_FILE": "/etc/some/key"}
    assert inherited_secrets(environ) == ("hf_0123456789",)


@pytest.mark.parametrize(
    "unit",
    [
        "a_b-",
        "key ",
        "--key ",
        "token=",
        "x://",
        "?key=",
        'key="',
        "password:\\",
        "A_",
        "\x1b[0m",
        "eyJ",
        "@://",
        "cookie:a",
    ],
)
def test_no_line_takes_long(unit: str) -> None:
    """Patterns that look back over the line again and again would let a backend stop the loop."""
    began = time.process_time()
    Masker(["a" * 40]).mask((unit * 8192)[:8192], cut=True)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("line", ["eyJ" * 2730, "@ " + "://" * 2730, "eyJ" * 200 + "." + "a" * 7000])
def test_no_token_takes_long(line: str) -> None:
    """What may be one is not looked at from each of its letters to the end of the line."""
    began = time.process_time()
    Masker().mask(line)
    assert time.process_time() - began < 0.08
