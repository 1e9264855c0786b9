"""YAML into the same located tree as JSON.

Built on the parser's events rather than on composed nodes: the events come without recursion, so depth and the
expansion of aliases can be bounded before anything is built. Plain words are resolved as in the JSON schema of
YAML 1.2 (section 10.2): ``true``, ``false``, ``null`` and JSON's numbers; ``no``, ``on`` and ``1_000`` are text.
"""

import dataclasses
import re
from typing import NoReturn

import yaml

from juggler.config.problems import Position, Problem, Source
from juggler.config.tree import DEPTH_MAX, Member, Node, Read, Scalar, describe, is_ignored_key, quoted, shortened

NODES_MAX = 50_000
"""Values after every alias is followed; against "billion laughs", where a few lines stand for gigabytes."""

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_NUMBER_CHARACTERS_MAX = 300


class _Stop(Exception):
    """Reading cannot go on."""

    def __init__(self, position: Position, message: str, hint: str | None, code: str) -> None:
        super().__init__(message)
        self.position, self.message, self.hint, self.code = position, message, hint, code


def read_yaml(source: Source) -> Read:
    """Read one YAML document; never raises for anything the text may hold."""
    builder = _Builder(source)
    try:
        for event in yaml.parse(source.text, Loader=yaml.SafeLoader):
            builder.feed(event)
        if builder.root is None:
            builder.stop(Position(1, 1), "the file is empty", hint='write an object with "backends" and "servers"')
    except _Stop as stop:
        problem = source.problem("error", stop.position, stop.message, hint=stop.hint, code=stop.code)
        return Read(None, [*builder.problems, problem])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        text = error.problem or error.context or "unknown mistake"
        hint = "indent with spaces, not tabs" if "'\\t'" in text else None
        if "escape" in text:
            hint = "in double quotes write a backslash twice; in single quotes it stands for itself"
        problem = source.problem("error", position, f"this is not YAML: {text}", hint=hint, code="syntax")
        return Read(None, [*builder.problems, problem])
    except (yaml.YAMLError, ValueError, OverflowError, IndexError) as error:
        # Characters that YAML forbids (ReaderError), and "\UFFFFFFFF" or "%YAML 1.²", where PyYAML 6.0.3 lets the
        # errors of chr() and int() through.
        position = source.position(error.position) if isinstance(error, yaml.reader.ReaderError) else builder.last
        problem = source.problem("error", position, f"this is not YAML: {shortened(str(error))}", code="syntax")
        return Read(None, [*builder.problems, problem])
    return Read(builder.root, builder.problems)


@dataclasses.dataclass(slots=True)
class _Measured:
    """A finished value with what following it costs."""

    node: Node
    nodes: int = 1
    height: int = 1


@dataclasses.dataclass(slots=True)
class _Frame:
    """A list or mapping under construction."""

    result: _Measured
    anchor: str | None
    key: tuple[str, Position] | None = None
    merges: bool = False
    """``key`` is the merge key: ``<<`` without quotes."""
    merged: list[Node] = dataclasses.field(default_factory=list)
    """Values of the merge key ``<<``: defaults for the members of this mapping."""


class _Builder:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self.last = Position(1, 1)
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Measured | None] = {}
        """None: still under construction."""
        self._nodes = 0

    def feed(self, event: yaml.Event) -> None:
        mark = event.start_mark
        if mark is not None:
            self.last = Position(mark.line + 1, mark.column + 1)
        at = self.last
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            self.stop(at, "a second document begins here", hint='one file holds one configuration; remove the "---"')
        if isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor or "", at)
        elif isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, at)
            if self._waits_for_key():
                self._set_key(event.value, at, plain=event.style is None)
                if event.anchor:
                    self._anchors[event.anchor] = _Measured(Node(at, event.value))
            else:
                text = event.style is not None or event.tag is not None
                measured = _Measured(Node(at, event.value if text else self._resolve(event.value, at)))
                self._check_text(event.value, at)
                self._finish(measured, event.anchor, at)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._check_tag(event.tag, at)
            if self._waits_for_key():
                self.stop(at, "a key must be a text")
            if len(self._stack) >= DEPTH_MAX:
                self.stop(at, f"nested more than {DEPTH_MAX} deep", code="too-deep")
            empty: dict[str, Member] | list[Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._stack.append(_Frame(_Measured(Node(at, empty)), event.anchor))
            if event.anchor:
                self._anchors[event.anchor] = None
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            frame = self._stack.pop()
            self._merge(frame)
            self._finish(frame.result, frame.anchor, at)

    def _waits_for_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].result.node.value, dict) and self._stack[-1].key is None

    def _set_key(self, key: str, at: Position, *, plain: bool) -> None:
        self._check_text(key, at)
        self._stack[-1].key = (key, at)
        self._stack[-1].merges = plain and key == "<<"

    def _finish(self, measured: _Measured, anchor: str | None, at: Position) -> None:
        """Give a finished value to whatever contains it."""
        if anchor:
            self._anchors[anchor] = measured
        self._nodes += 1
        if self._nodes > NODES_MAX or measured.nodes > NODES_MAX:
            self.stop(at, f"more than {NODES_MAX} values once the aliases are followed", code="too-large")
        if not self._stack:
            self.root = measured.node
            return
        frame = self._stack[-1]
        frame.result.nodes += measured.nodes
        frame.result.height = max(frame.result.height, measured.height + 1)
        if len(self._stack) + measured.height > DEPTH_MAX + 1:
            self.stop(at, f"nested more than {DEPTH_MAX} deep", code="too-deep")
        value = frame.result.node.value
        if isinstance(value, list):
            value.append(measured.node)
        elif isinstance(value, dict) and frame.key is not None:
            (key, key_at), frame.key = frame.key, None
            if frame.merges:
                frame.merged.append(measured.node)
            elif key not in value:
                value[key] = Member(key_at, measured.node)
            elif not is_ignored_key(key):
                first = value[key].key_position
                message = f"duplicate key {quoted(key)}: it is already at line {first.line}, column {first.column}"
                self._report(key_at, message, hint="keep one of the two", code="duplicate-key")

    def _merge(self, frame: _Frame) -> None:
        """Apply ``<<``: members of the merged mappings that are not written here (yaml.org/type/merge)."""
        target = frame.result.node.value
        for merged in frame.merged:
            for node in merged.value if isinstance(merged.value, list) else [merged]:
                if not isinstance(node.value, dict) or not isinstance(target, dict):
                    self.stop(merged.position, f'"<<" must name a mapping, not {describe(node)}')
                for key, member in node.value.items():
                    target.setdefault(key, member)

    def _alias(self, name: str, at: Position) -> None:
        if self._waits_for_key():
            self.stop(at, "a key must be a text, not an alias")
        if name not in self._anchors:
            self.stop(at, f'the alias "*{name}" names no anchor above it', hint=f'an anchor is written "&{name}"')
        measured = self._anchors[name]
        if measured is None:
            self.stop(at, f'the alias "*{name}" stands inside its own anchor')
        self._finish(measured, None, at)

    def _resolve(self, text: str, at: Position) -> Scalar:
        """The value of a plain word."""
        if text in ("", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        number = _NUMBER.match(text)
        if number is None:
            return text
        if len(text) <= _NUMBER_CHARACTERS_MAX:
            whole = number.group(1) is None and number.group(2) is None
            value = int(text) if whole else float(text)
            if abs(value) != float("inf"):
                return value
        self._report(at, f"the number {shortened(text, 40)} is too large", code="bad-number")
        return 0

    def _check_tag(self, tag: str | None, at: Position) -> None:
        if tag not in _PLAIN_TAGS:
            self.stop(at, f"the tag {quoted(tag or '')} is not accepted", hint="leave the tag out")

    def _check_text(self, text: str, at: Position) -> None:
        if _SURROGATE.search(text):
            self.stop(at, "half of a surrogate pair in this text", hint=r'write the character itself, or "\U0001F600"')

    def _report(self, at: Position, message: str, *, hint: str | None = None, code: str = "syntax") -> None:
        self.problems.append(self.source.problem("error", at, message, hint=hint, code=code))

    def stop(self, at: Position, message: str, *, hint: str | None = None, code: str = "syntax") -> NoReturn:
        raise _Stop(at, message, hint, code)
