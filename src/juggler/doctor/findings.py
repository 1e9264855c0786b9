"""What the doctor says: findings in sections. Plain data."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Grade(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Neither good nor bad, or something that could not be checked."""
    WARNING = "warning"
    """It may work, or not for everyone."""
    PROBLEM = "problem"
    """It does not work as it is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    grade: Grade
    message: str
    """May have several lines; the first one stands alone."""
    hint: str | None = None
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Section:
    """Findings about one thing."""

    title: str
    findings: tuple[Finding, ...]


def ok(message: str) -> Finding:
    return Finding(Grade.OK, message)


def note(message: str, hint: str | None = None) -> Finding:
    return Finding(Grade.NOTE, message, hint)


def warning(message: str, hint: str | None = None) -> Finding:
    return Finding(Grade.WARNING, message, hint)


def problem(message: str, hint: str | None = None) -> Finding:
    return Finding(Grade.PROBLEM, message, hint)


def count(sections: Iterable[Section], grade: Grade) -> int:
    """How many findings of a grade there are."""
    return sum(finding.grade is grade for section in sections for finding in section.findings)


def healthy(sections: Sequence[Section]) -> bool:
    """Whether there is no problem; warnings do not count."""
    return count(sections, Grade.PROBLEM) == 0
