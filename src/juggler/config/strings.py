"""Double-quoted JSON texts: escapes, surrogate pairs, and the traps of Windows paths."""

import re
from typing import NamedTuple

from juggler.config.problems import Problem, Source
from juggler.config.tree import quoted, shortened

_CHUNK = re.compile(r'[^"\\\x00-\x1f]*')
_RAW = re.compile(r'(?:[^"\\\r\n]|\\[^\r\n])*')
_HEX = re.compile(r"[0-9A-Fa-f]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CONTROL_NAMES = {"b": "a backspace", "f": "a form feed", "n": "a line end", "r": "a carriage return", "t": "a tab"}

_DRIVE = re.compile(r"(?:^|[\s=,;:'])[A-Za-z]:\\")
_FILE_SUFFIX = re.compile(
    r"\.(?:gguf|safetensors|ckpt|bin|pt|pth|onnx|exe|bat|cmd|py|sh|json|kcpps|ya?ml|jinja|txt|log)\Z", re.IGNORECASE
)
_RELATIVE = re.compile(r"[\w.-]+(?:\\{1,2}[\w.-]+)+\Z")


class StringRead(NamedTuple):
    """One text as read."""

    text: str
    end: int
    """Offset just behind it."""
    problems: list[Problem]
    closed: bool


def read_string(source: Source, start: int) -> StringRead:
    """Read the text whose opening quote is at ``start``.

    After a bad escape the backslash is kept and reading goes on; only the first one of a text is reported.
    """
    text = source.text
    offset = start + 1
    parts: list[str] = []
    problems: list[Problem] = []
    first_control: int | None = None
    complaint: str | None
    while True:
        match = _CHUNK.match(text, offset)
        assert match is not None  # the pattern matches the empty text too
        parts.append(match.group())
        offset = match.end()
        character = text[offset : offset + 1]
        if character == '"':
            break
        if character in ("", "\r", "\n"):
            problems.append(_unclosed(source, start))
            return StringRead("".join(parts), offset, problems, closed=False)
        if character == "\\":
            part, end, complaint = _escape(text, offset)
            if first_control is None and complaint is None and text[offset + 1] in _CONTROL_NAMES:
                first_control = offset
        else:
            part, end = character, offset + 1
            complaint = f"a text must not hold the raw control character {character!r}"
        if complaint and not problems:
            hint = _path_hint(source, start) or _ESCAPE_HINT
            problems.append(source.problem("error", source.position(offset), complaint, hint=hint, code="bad-escape"))
        parts.append(part)
        offset = end
    raw = text[start + 1 : offset]
    if first_control is not None and not problems and looks_like_windows_path(raw):
        letter = text[first_control + 1]
        message = f'"\\{letter}" in this path means {_CONTROL_NAMES[letter]}, not a backslash and "{letter}"'
        position = source.position(first_control)
        remedy = _path_hint(source, start)
        problems.append(source.problem("warning", position, message, hint=remedy, code="path-escape"))
    return StringRead("".join(parts), offset + 1, problems, closed=True)


_ESCAPE_HINT = r'a backslash is written twice ("\\"); JSON knows \" \\ \/ \b \f \n \r \t and \u with four hex digits'


def looks_like_windows_path(raw: str) -> bool:
    """Whether a text, as written in the file, seems to be a path such as ``C:\\models\\x.gguf``."""
    if _DRIVE.search(raw):
        return True
    return len(raw) < 1000 and bool(_FILE_SUFFIX.search(raw)) and bool(_RELATIVE.match(raw))


def _escape(text: str, offset: int) -> tuple[str, int, str | None]:
    """One escape: what it stands for, the offset behind it, and a complaint or None."""
    letter = text[offset + 1 : offset + 2]
    if letter in _ESCAPES:
        return _ESCAPES[letter], offset + 2, None
    if letter != "u":
        shown = letter if letter.isprintable() else ""
        return "\\", offset + 1, f'"\\{shown}" is not an escape that JSON knows'
    unit = _code_unit(text, offset)
    if unit is None:
        return "\\", offset + 1, '"\\u" must be followed by four hexadecimal digits'
    if 0xD800 <= unit < 0xDC00:
        low = _code_unit(text, offset + 6)
        if low is not None and 0xDC00 <= low < 0xE000:
            return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)), offset + 12, None
    if 0xD800 <= unit < 0xE000:
        complaint = f'"{text[offset : offset + 6]}" is half of a surrogate pair, without its other half'
        return "\N{REPLACEMENT CHARACTER}", offset + 6, complaint
    return chr(unit), offset + 6, None


def _code_unit(text: str, offset: int) -> int | None:
    if not text.startswith("\\u", offset):
        return None
    match = _HEX.match(text, offset + 2)
    return int(match.group(), 16) if match else None


def _unclosed(source: Source, start: int) -> Problem:
    hint = _path_hint(source, start) or "a text ends with a double quote, on the same line"
    return source.problem(
        "error", source.position(start), "this text is not closed on its line", hint=hint, code="unclosed"
    )


def _path_hint(source: Source, start: int) -> str | None:
    """How to write the path that begins at ``start``, if it seems to be one for Windows."""
    match = _RAW.match(source.text, start + 1)
    raw = match.group() if match else ""
    if not looks_like_windows_path(raw):
        return None
    single = re.sub(r"\\{1,2}", r"\\", raw.rstrip('",;]} \\'))
    forward = quoted(shortened(single).replace("\\", "/"))
    doubled = '"' + shortened(single).replace("\\", "\\\\") + '"'
    return f"in Windows paths write two backslashes, {doubled}, or forward slashes, {forward}"
