"""What came of one reload. Plain data."""

from dataclasses import dataclass, field
from typing import Literal

from juggler.reload.plan import ReloadPlan

Result = Literal["done", "nothing", "planned", "problems", "refused"]


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """See the module."""

    at: float
    """Seconds since 1970, when it was asked for."""
    by: str
    """Who asked: ``SIGHUP``, ``API``, ``file change`` ..."""
    result: Result
    """``done``: in effect. ``nothing``: the file says what runs already. ``planned``: a dry run.

    ``problems``: the file, or what it needs of the machine, is not in order, and nothing was changed (but see
    ``half_done``). ``refused``: not possible now.
    """
    message: str
    """One line; of problems all of them, as ``juggler check`` prints them."""
    problems: tuple[dict[str, object], ...] = ()
    """Errors and warnings of the file, as ``config.problems.Problem.as_dict``."""
    plan: ReloadPlan | None = None
    digest: str | None = None
    """Of the text that was read."""
    hint: str | None = None
    took_s: float = 0.0
    dry_run: bool = field(default=False)
    half_done: bool = False
    """It failed in the middle, by a bug: a part of it may be in effect."""
    passing: bool = False
    """It failed for a reason outside the file, such as a port in use; trying again costs nobody anything."""

    @property
    def ok(self) -> bool:
        """What was asked for was done."""
        return self.result in ("done", "nothing", "planned")

    @property
    def harm(self) -> str:
        """What was changed by one that failed."""
        return "a part of it may have been changed" if self.half_done else "nothing was changed"

    def as_data(self) -> dict[str, object]:
        """Plain JSON data."""
        return {
            "at": round(self.at, 3),
            "by": self.by,
            "ok": self.ok,
            "result": self.result,
            "dry_run": self.dry_run,
            "summary": self.message if self.ok or self.result == "refused" else self.harm,
            "message": self.message,
            "hint": self.hint,
            "changes": self.plan.changes() if self.plan is not None else [],
            "problems": [dict(one) for one in self.problems],
            "plan": self.plan.as_data() if self.plan is not None else None,
            "digest": self.digest,
            "took_s": round(self.took_s, 3),
        }
