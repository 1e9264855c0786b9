"""JSON as people write it, with the place of every value.

Accepted beyond RFC 8259: trailing commas; ``//``, ``/* */`` and ``#`` comments; any white space. Everything else
that is not JSON is an error with a sentence of its own. Where the meaning of a mistake is plain (a missing comma,
single quotes, ``True``), reading goes on, so that one run reports as many problems as possible.
"""

import re
from typing import NoReturn

from juggler.config.problems import Position, Problem, Source
from juggler.config.strings import read_string
from juggler.config.tree import DEPTH_MAX, Member, Node, Read, Scalar, is_ignored_key, quoted, shortened

PROBLEMS_MAX = 50
"""Reading stops after this many: the file is something else than JSON."""

NUMBER_CHARACTERS_MAX = 300
"""Longer numbers mean nothing here, and converting them takes quadratic time (CPython refuses 4300 digits)."""

_SKIP = re.compile(r"(?:\s+|//[^\r\n]*|#[^\r\n]*|/\*.*?\*/)+", re.DOTALL)
_KEY_WORD = re.compile(r"[^\s,:=\[\]{}\"']+")
_VALUE_RUN = re.compile(r"[^,\[\]{}\"\r\n]+")
_COMMENT_AFTER = re.compile(r"\s*(?://|#|/\*).*|(?<=\S)/\*.*", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")
_NUMBER_LIKE = re.compile(r"[+-]?\.?[0-9][0-9A-Za-z_.+-]*\Z")
_SINGLE_QUOTED = re.compile(r"'((?:[^'\\\r\n]|\\.)*)'")
_CURLY_QUOTED = re.compile(r"[“”„]([^“”\"\r\n]*)[“”\"]")

_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None}
_OTHER_WORDS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"} | dict.fromkeys(
    ("None", "Null", "NULL", "nil", "undefined"), "null"
)
_SWITCH_WORDS = frozenset({"yes", "no", "on", "off"})
_NOT_NUMBERS = frozenset({"nan", "inf", "infinity"})


class _Stop(Exception):
    """Reading cannot go on; the reason is among the problems."""


def read_json(source: Source) -> Read:
    """Read one JSON value; never raises for anything the text may hold."""
    reader = _Reader(source)
    try:
        root = reader.document()
    except _Stop:
        return Read(None, reader.problems)
    return Read(root if reader.complete else None, reader.problems)


class _Reader:
    """Recursive descent, at most ``DEPTH_MAX`` deep; ``offset`` is the next character to read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text
        self.offset = 0
        self.value_end = 0
        """Just behind the last complete value: where a missing comma belongs."""
        self.problems: list[Problem] = []
        self.complete = True
        """Whether every value made it into the tree."""

    def document(self) -> Node:
        self._skip()
        if self.offset >= len(self.text):
            self._stop(0, "the file is empty", hint='write an object: { "backends": ..., "servers": ... }')
        root = self._value(0)
        self._skip()
        if self.offset < len(self.text):
            what = f'unexpected "{self.text[self.offset]}" after the end of the configuration'
            self._stop(self.offset, what, hint="is there a closing bracket too many above?")
        return root

    # --- values ------------------------------------------------------------------------------------------------

    def _value(self, depth: int) -> Node:
        character = self.text[self.offset]
        if character in "{[" and depth >= DEPTH_MAX:
            self._stop(self.offset, f"nested more than {DEPTH_MAX} deep", code="too-deep")
        if character == "{":
            node = self._object(depth)
        elif character == "[":
            node = self._list(depth)
        elif character in "\"'“”„":
            start = self.offset
            node = Node(self._at(start), self._string())
        else:
            node = self._bare()
        self.value_end = self.offset
        return node

    def _object(self, depth: int) -> Node:
        opener = self.offset
        members: dict[str, Member] = {}
        node = Node(self._at(opener), members)
        self.offset += 1
        previous = ""
        separated = True
        while not self._at_end_of_group(opener, "}"):
            if self.text[self.offset] == ",":
                separated = self._comma(separated)
                continue
            if not separated:
                self._missing_comma(previous)
            separated = False
            key_offset = self.offset
            key = self._key()
            previous = quoted(key)
            if not self._colon(key, key_offset):
                continue
            value = self._value(depth + 1)
            if key not in members:
                members[key] = Member(self._at(key_offset), value)
            elif not is_ignored_key(key):
                first = members[key].key_position
                what = f"duplicate key {quoted(key)}: it is already at line {first.line}, column {first.column}"
                self._report(key_offset, what, hint="keep one of the two", code="duplicate-key")
        return node

    def _list(self, depth: int) -> Node:
        opener = self.offset
        items: list[Node] = []
        self.offset += 1
        previous = ""
        separated = True
        while not self._at_end_of_group(opener, "]"):
            character = self.text[self.offset]
            if character == ",":
                separated = self._comma(separated)
                continue
            if character == ":":
                self._stop(self.offset, 'unexpected ":" in a list', hint="entries with keys are written in { }")
            if not separated:
                self._missing_comma(previous)
            separated = False
            start = self.offset
            items.append(self._value(depth + 1))
            previous = shortened(self.text[start : self.value_end].partition("\n")[0].rstrip(), 40)
        return Node(self._at(opener), items)

    def _at_end_of_group(self, opener: int, closer: str) -> bool:
        """Skip to the next entry; True (and past the bracket) when there is none."""
        self._skip()
        if self.offset >= len(self.text):
            what = f'this "{self.text[opener]}" is never closed'
            hint = f'the file ends at line {self._at(len(self.text)).line} without its "{closer}"'
            self._stop(opener, what, hint=hint, code="unclosed")
        character = self.text[self.offset]
        if character == closer:
            self.offset += 1
            return True
        if character in "]}":
            line, column = self._at(opener)
            what = (
                f'"{character}" where "{closer}" must close the "{self.text[opener]}" of line {line}, column {column}'
            )
            self._stop(self.offset, what, code="unclosed")
        return False

    def _key(self) -> str:
        character = self.text[self.offset]
        if character in "\"'“”„":
            return self._string()
        match = _KEY_WORD.match(self.text, self.offset)
        if match is None:
            self._stop(self.offset, f'a key in double quotes must be here, not "{character}"')
        key = match.group()
        self._report(self.offset, f"the key {quoted(key)} must be in double quotes", code="unquoted")
        self.offset = match.end()
        return key

    def _colon(self, key: str, key_offset: int) -> bool:
        """Go to the value of a key; False (reported) when there is none."""
        after_key = self.offset
        self._skip()
        character = self.text[self.offset] if self.offset < len(self.text) else ""
        if character in (":", "="):
            if character == "=":
                self._report(self.offset, f'"=" where ":" must follow the key {quoted(key)}')
                self.offset += self.text.startswith("=>", self.offset)
            self.offset += 1
            self._skip()
            character = self.text[self.offset] if self.offset < len(self.text) else ""
        elif character not in ("", ",", "}", "]"):
            if ":" in key:
                hint = "a text ends at the next double quote, on the same line"
                self._stop(key_offset, f"the quote that ends the key is missing before {quoted(key)}", hint=hint)
            self._report(after_key, f'missing ":" between the key {quoted(key)} and its value', code="missing-colon")
        if character not in ("", ",", "}", "]"):
            return True
        self.complete = False
        hint = 'every entry of an object is written "key": value'
        self._report(key_offset, f"the key {quoted(key)} has no value", hint=hint, code="missing-value")
        return False

    # --- scalars -----------------------------------------------------------------------------------------------

    def _string(self) -> str:
        start = self.offset
        if self.text[start] == '"':
            text, self.offset, problems, closed = read_string(self.source, start)
            for problem in problems:
                self._add(problem)
            if not closed:
                raise _Stop
            return text
        match = (_SINGLE_QUOTED if self.text[start] == "'" else _CURLY_QUOTED).match(self.text, start)
        if match is None:
            self._stop(start, "this text is not closed on its line", hint="write it in double quotes", code="unclosed")
        kind = "single" if self.text[start] == "'" else "typographic"
        self._report(start, f'text must be in double quotes ("), not in {kind} quotes', code="quotes")
        self.offset = match.end()
        return match.group(1)

    def _bare(self) -> Node:
        """Anything that is not in quotes or brackets: number, word, or a mistake."""
        start = self.offset
        match = _VALUE_RUN.match(self.text, start)
        run = _COMMENT_AFTER.sub("", match.group(), count=1).rstrip() if match else ""
        # Two values on one line without a comma are two entries; only letters after letters are unquoted text.
        word = run.partition(" ")[0].partition("\t")[0]
        if word in _WORDS or word in _OTHER_WORDS or _NUMBER.match(word):
            run = word
        if not run or not (run[0].isalnum() or run[0] in "-+._$%<~/\\@*&"):
            self._stop(start, f'unexpected "{self.text[start]}" where a value must be')
        self.offset = start + len(run)
        return Node(self._at(start), self._bare_value(run, start))

    def _bare_value(self, run: str, start: int) -> Scalar:
        if run in _WORDS:
            return _WORDS[run]
        number = _NUMBER.match(run)
        if number and len(run) <= NUMBER_CHARACTERS_MAX:
            whole = number.group(1) is None and number.group(2) is None
            value = int(run) if whole else float(run)
            if abs(value) != float("inf"):
                return value
        if number:
            self._report(start, f"the number {shortened(run, 40)} is too large", code="bad-number")
            return 0
        if run in _OTHER_WORDS:
            self._report(start, f"{run} is not JSON: write {_OTHER_WORDS[run]}", code="bad-word")
            return _WORDS[_OTHER_WORDS[run]]
        self.complete = False
        if run.lstrip("+-").lower() in _NOT_NUMBERS:
            self._report(start, f"{run} is not a number that JSON knows", code="bad-number")
        elif run.lower() in _SWITCH_WORDS:
            hint = f"true or false for a switch, {quoted(run)} for a text"
            self._report(start, f"{run} is not JSON", hint=hint, code="bad-word")
        elif _NUMBER_LIKE.match(run):
            hint = f"digits, one dot and no leading zero; a value with a unit is a text: {quoted(run)}"
            self._report(start, f"{shortened(run)} is not a number as JSON writes it", hint=hint, code="bad-number")
        else:
            self._report(start, f"the text {quoted(run)} must be in double quotes", code="unquoted")
        return run

    # --- small parts -------------------------------------------------------------------------------------------

    def _skip(self) -> None:
        match = _SKIP.match(self.text, self.offset)
        if match:
            self.offset = match.end()
        if self.text.startswith("/*", self.offset):
            self._stop(self.offset, "this comment is never closed", hint='close it with "*/"', code="unclosed")

    def _comma(self, separated: bool) -> bool:
        if separated:
            self._report(self.offset, 'unexpected ",": there is no entry before it', code="stray-comma")
        self.offset += 1
        return True

    def _missing_comma(self, previous: str) -> None:
        self._report(self.value_end, f'missing "," between {previous} and the next entry', code="missing-comma")

    def _at(self, offset: int) -> Position:
        return self.source.position(offset)

    def _report(self, offset: int, message: str, *, hint: str | None = None, code: str = "syntax") -> None:
        self._add(self.source.problem("error", self._at(offset), message, hint=hint, code=code))

    def _add(self, problem: Problem) -> None:
        self.problems.append(problem)
        if len(self.problems) >= PROBLEMS_MAX:
            raise _Stop

    def _stop(self, offset: int, message: str, *, hint: str | None = None, code: str = "syntax") -> NoReturn:
        self._report(offset, message, hint=hint, code=code)
        raise _Stop
