"""A condition on a JSON answer, as operators write it: ``queue_remaining > 0``, ``state.job != ""``, ``busy``."""

import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*(?:(==|!=|>=|<=|>|<)\s*(.+?))?\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JsonCondition:
    """A path of keys (numbers index lists), and what its value is compared with."""

    path: tuple[str, ...]
    compare: str | None
    """None: the value itself, as Python takes it for true or false."""
    value: object = None

    def holds(self, document: object) -> bool:
        """Whether the document fulfils it; a missing key or values that cannot be compared do not."""
        found: Any = document
        for key in self.path:
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                return False
        if self.compare is None:
            return bool(found)
        try:
            return _OPERATORS[self.compare](found, self.value)
        except TypeError:
            return False


def parse_condition(text: str) -> JsonCondition:
    """Read a condition.

    Raises:
        ValueError: With a sentence that says what is accepted.
    """
    match = _FORM.match(text)
    if match is None:
        raise ValueError(f'{text!r} is not a condition: write "key.path > 0", "state.job != \\"\\"" or "busy"')
    path, compare, literal = match.groups()
    if compare is None:
        return JsonCondition(tuple(path.split(".")), None)
    try:
        value = json.loads(literal)
    except ValueError:
        raise ValueError(f"{literal!r} is no JSON value: strings need double quotes") from None
    return JsonCondition(tuple(path.split(".")), compare, value)
