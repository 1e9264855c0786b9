"""The report as people and as programs read it. Pure."""

import textwrap
from collections.abc import Callable, Sequence

from juggler import __version__
from juggler.doctor.findings import Finding, Grade, Section, count, healthy

_WIDTH = max(len(grade.value) for grade in Grade)
_COLUMNS = 100

Paint = Callable[[str, Grade], str]
"""Colours the word for a grade."""


def plain(word: str, grade: Grade) -> str:
    """No colour."""
    return word


def section_text(section: Section, paint: Paint = plain) -> str:
    """One section, its title above its findings, without a final line end."""
    return "\n".join([section.title, *(_finding_text(finding, paint) for finding in section.findings)])


def _finding_text(finding: Finding, paint: Paint) -> str:
    first, *rest = finding.message.splitlines() or [""]
    word = paint(finding.grade.value.ljust(_WIDTH), finding.grade)
    indent = " " * (_WIDTH + 4)
    lines = [f"  {word}  {first}", *(f"{indent}{line}".rstrip() for line in rest)]
    if finding.hint:
        lines += textwrap.wrap(
            finding.hint,
            _COLUMNS,
            initial_indent=f"{indent}-> ",
            subsequent_indent=f"{indent}   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def summary(sections: Sequence[Section]) -> str:
    """The last line."""
    problems, warnings = count(sections, Grade.PROBLEM), count(sections, Grade.WARNING)
    if not problems and not warnings:
        return "Nothing is wrong."
    parts = [_counted(problems, "problem"), _counted(warnings, "warning")]
    return ", ".join(part for part in parts if part) + "."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}" if number else ""


def document(sections: Sequence[Section]) -> dict[str, object]:
    """What ``--json`` prints."""
    return {
        "ok": healthy(sections),
        "version": __version__,
        "problems": count(sections, Grade.PROBLEM),
        "warnings": count(sections, Grade.WARNING),
        "sections": [
            {
                "title": section.title,
                "findings": [
                    {"grade": finding.grade.value, "message": finding.message, "hint": finding.hint}
                    for finding in section.findings
                ],
            }
            for section in sections
        ],
    }
