"""Decisions in words, for the log. Pure."""

from juggler.scheduler.commands import Decision
from juggler.scheduler.ledger import EXCLUSIVE_POOL, Amounts
from juggler.units import format_duration, format_size

CAUSES = {
    "operator": "by order of the operator",
    "idle": "idle for as long as idle_unload allows",
    "shutdown": "the juggler shuts down",
    "abandoned": "nobody waits for it any more",
    "unload failed": "its unload failed",
    "unload refused": "it did not free its memory",
}
"""Why memory was freed that nobody asked for."""


def log_line(decision: Decision) -> str:
    """One line for the log: who asked, who had to go and why, and what it cost against the estimate."""
    victims = [f"{mode.value} {victim}" for victim, mode in decision.victims]
    number = f"#{decision.number} "
    if decision.target is None:
        return f"{number}{', '.join(victims)}: {CAUSES.get(decision.cause, decision.cause)}"
    if decision.outcome:
        took = format_duration(decision.took_s or 0.0)
        expected = format_duration(decision.expected_s)
        return f"{number}{decision.target} {decision.outcome} after {took} (expected {expected})"
    asked = f"{decision.waiting} waiting, the first for {format_duration(decision.waited_s)}"
    if decision.client:
        asked += f" (client {decision.client})"
    return f"{number}{', '.join([*victims, f'load {decision.target}'])}: {asked}{_reasons(decision)}"


def _reasons(decision: Decision) -> str:
    if not decision.victims:
        return "; it fits into free memory"
    missing = amounts_text(decision.missing)
    spared = len(decision.considered) - len(decision.victims)
    reason = f"; {missing} missing" if missing else ""
    return reason + (f", {spared} considered and spared" if spared > 0 else "")


def amounts_text(amounts: Amounts) -> str:
    """``6.0 GiB of gpu0``; empty for the exclusive pool, whose one byte says nothing."""
    return ", ".join(f"{format_size(size)} of {pool}" for pool, size in amounts.items() if pool != EXCLUSIVE_POOL)
