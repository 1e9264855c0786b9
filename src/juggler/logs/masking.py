"""Passwords and keys are masked before a line is stored, so that no reader of a log can ever see them.

Two nets. The very words that the configuration and the environment hold under telling names (``backends.secrets``),
in each form in which programs print them. And what looks like a key wherever it comes from: options, assignments,
headers, addresses, and the shapes of well-known tokens. The second is a guess, made for logs of model servers:
"EOS token = 2" and "attention.key_length = 128" stay as they are.

A line without any telling word, which is nearly every line, costs a dozen searches for a fixed text.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from juggler.backends.secrets import MASK, SHORTEST, secrets_of

SHORTEST_INHERITED = 8
"""Shorter values of the environment we were started in are left alone: ``GIT_AUTH=true`` hides no secret."""

SHORTEST_BEGUN = 3
"""So much of a known word at the end of a line that was cut may be its beginning."""

Span = tuple[int, int]

_HINTS = ("key", "token", "secret", "pass", "auth", "hft", "credential")
_NAME_END = re.compile(r"(?:key|token|secret|pass(?:word|wd|phrase)?|auth|hft|credentials?)(?![a-z0-9_-])")
"""Where the name of an option or a variable may end that holds a secret. Lower case, as all that is searched."""

_NAME_LENGTH_MAX = 64
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_ASSIGNED = (
    *("secret", "password", "passwd", "passphrase", "credential", "credentials"),
    *("apikey", "accesskey", "secretkey", "privatekey", "authkey", "masterkey", "adminkey", "accountkey"),
    *("encryptionkey", "signingkey", "licensekey", "hftoken", "hubtoken", "apitoken", "authtoken", "accesstoken"),
    *("refreshtoken", "bearertoken", "sessiontoken", "bottoken", "githubtoken", "huggingfacetoken", "civitaitoken"),
    "secrettoken",
)
"""Ends of variables' names, without ``_`` and ``-``; a mere ``key`` or ``token`` is something else in these logs."""

_COLOUR = r"(?:\x1b\[[0-9;:]*m)*"
_QUOTED = r""""(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?"""
_OPTION_VALUE = re.compile(rf"(?:['\"]?,?[ \t]+|\s*=\s*){_COLOUR}(?!--)({_QUOTED}|[^\s\"'\x1b]+)")
_ASSIGNED_VALUE = re.compile(
    rf"['\"]?{_COLOUR}\s*(?:=>?|:(?!//))\s*{_COLOUR}"
    rf"({_QUOTED}|\[[^\]\x1b]+\]?|(?:[^\s\"'&;,)\]}}>\x1b]|,(?=[^\s\"']))+)"
)
_VARIABLE_VALUE = re.compile(rf"=({_QUOTED}|[^\s\"'\x1b]+)")
_HEADER = re.compile(
    r"authorization['\"]?\s*[:=,]\s*(?:b?['\"])?((?:(?:bearer|basic|token|apikey|negotiate|ntlm)\s+)?)"
    r"((?:digest|hawk|oauth|aws4-hmac-sha256)\s[^\x1b]+|[^\s\"',;)\]}\x1b]+)"
)
"""Schemes of many parts are masked to the end of the line."""
_COOKIE = re.compile(r"cookie['\"]?\s*[:,]\s*(?:b?['\"])?()([\w!#$%&*+.^`|~-]{1,128}=[^\"'\x1b]+)")
_BEARER = re.compile(r"bearer\s+()((?=[^\s]*\d)[a-z0-9._~+/=-]{8,})")
_USERINFO = re.compile(
    r"://()(?![@\[])([^\s/\"'<>?#:\x1b]*(?::(?!\d{1,5}[/?#])[^\s\"'<>\x1b]{1,128})?|[^\s/@\"'<>?#\x1b]+)(?=@)"
)
"""To the last ``@``: passwords have ``@`` and ``/`` in them too. A port and a path behind it are none. Tokens that are
longer than passwords have neither."""
_QUERY = re.compile(
    r"[?&](?:api[-_]?key|key|token|access[-_]token|auth|secret|password|passwd|pwd?|sig|signature|"
    r"client[-_]secret|refresh[-_]token|id[-_]token|"
    r"x-amz-(?:signature|credential|security-token))=()([^\s&\"'<>#\x1b]+)"
)
_TOKEN = re.compile(
    r"(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|nvapi-[\w-]{20,}|"
    r"AIza[\w-]{30,}|eyJ[\w-]{8,600}\.[\w-]{8,}\.[\w-]*)"
)
_BEFORE_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|(?P<colour>\x1b\[[0-9;:]*m))\Z")
_NO_VALUES = frozenset(
    (
        *("none", "null", "true", "false", "on", "off", "str", "required", "enabled", "disabled", "missing", "failed"),
        *("not", "is", "was", "has", "must", "can", "may", "will", "to", "or", "and", "for", "with", "without"),
        *("option", "options", "flag", "argument", "parameter", "header"),
    )
)
"""Words that follow such names in help texts, messages and printed settings."""

_PLACEHOLDER = re.compile(r"<?[A-Z][A-Z_]{1,15}>?")
"""``--api-key KEY``"""


class Masker:
    """Replaces secrets in lines by ``***``.

    Args:
        secrets: Words that must not be seen.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        words = {form for word in secrets for form in _forms(word)}
        self._words = tuple(sorted((one for one in words if len(one) >= SHORTEST), key=len, reverse=True))

    def mask(self, text: str, *, cut: bool = False) -> str:
        """The line without secrets.

        Args:
            cut: The line goes on, and what is missing may be the rest of a secret.
        """
        for word in self._words:
            if word in text:
                text = text.replace(word, MASK)
        if cut:
            text = self._without_beginning(text)
        return without_keys(text)

    def _without_beginning(self, text: str) -> str:
        for word in self._words:
            for length in range(min(len(word) - 1, len(text)), SHORTEST_BEGUN - 1, -1):
                if text.endswith(word[:length]):
                    return text[:-length] + MASK
        return text


def inherited_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets in the environment we were started in, which backends inherit and may print."""
    return tuple(word for word in secrets_of((), environ) if len(word) >= SHORTEST_INHERITED)


def without_keys(text: str) -> str:
    """The line without what looks like a key."""
    lowered = text.lower()
    if len(lowered) != len(text):  # some capitals become two letters, and spans must fit
        lowered = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    spans: list[Span] = []
    if any([hint in lowered for hint in _HINTS]):  # noqa: C419  # a generator takes twice as long
        spans += _named(text, lowered)
        if "authorization" in lowered:
            spans += [match.span(2) for match in _HEADER.finditer(lowered)]
    if "cookie" in lowered:
        spans += [match.span(2) for match in _COOKIE.finditer(lowered)]
    if "bearer" in lowered:
        spans += [match.span(2) for match in _BEARER.finditer(lowered)]
    if "://" in lowered and "@" in lowered:
        spans += [match.span(2) for match in _USERINFO.finditer(lowered)]
    if "?" in lowered:
        spans += [match.span(2) for match in _QUERY.finditer(lowered)]
    if "_" in lowered or "-" in lowered or "eyj" in lowered or "aiza" in lowered:
        spans += [match.span() for match in _TOKEN.finditer(text) if _stands_alone(text, match.start())]
    return _masked(text, spans) if spans else text


def _named(text: str, lowered: str) -> Iterator[Span]:
    """The values of options and variables with a telling name."""
    position = 0
    while (match := _NAME_END.search(lowered, position)) is not None:
        end = position = match.end()
        begin = _name_begin(lowered, end)
        name = lowered[begin:end]
        if name.startswith("-"):
            value = _OPTION_VALUE.match(text, end) if not name.startswith("---") else None
        elif "_" in name and text[begin:end].isupper() and text.startswith("=", end):
            value = _VARIABLE_VALUE.match(text, end)
        elif name.replace("_", "").replace("-", "").endswith(_ASSIGNED):
            value = _ASSIGNED_VALUE.match(text, end)
        else:
            continue
        if value is not None:
            yield value.span(1)
            position = value.end()


def _name_begin(lowered: str, end: int) -> int:
    begin = end
    while begin > max(0, end - _NAME_LENGTH_MAX) and lowered[begin - 1] in _NAME_CHARACTERS:
        begin -= 1
    if lowered.startswith(("[", ";", ":"), begin - 1) and "\x1b[" in lowered[max(0, begin - 24) : begin]:
        colour_end = lowered.find("m", begin, end)  # the name of a colour's end: ESC[36mapi_key
        return colour_end + 1 if lowered[begin:colour_end].isdecimal() or colour_end == begin else begin
    return begin


def _stands_alone(text: str, begin: int) -> bool:
    """Whether a word begins there: ``sk-`` in ``task-...`` is no token's beginning."""
    before = _BEFORE_TOKEN.search(text[max(0, begin - 24) : begin])
    return before is None or before["colour"] is not None


def _masked(text: str, spans: list[Span]) -> str:
    parts: list[str] = []
    done = 0
    for begin, end in sorted(spans):
        value = text[begin:end]
        if begin < done or value.lstrip("\"'[").startswith(MASK) or _is_no_value(value):
            continue
        parts += [text[done:begin], MASK]
        done = end
    return "".join(parts) + text[done:]


def _is_no_value(value: str) -> bool:
    return value.rstrip(".,:;)]}").lower() in _NO_VALUES or _PLACEHOLDER.fullmatch(value.rstrip(".,:;)]}")) is not None


def _forms(word: str) -> set[str]:
    """How programs print a word: as it is, line by line, quoted for a shell, for Python, in JSON, in an address."""
    forms = {word, *word.splitlines()}
    return forms | {repr(word)[1:-1], json.dumps(word)[1:-1], quote(word), quote(word, safe=""), shlex.quote(word)}
