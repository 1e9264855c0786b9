"""Decisions in words, for the log. Pure."""

from juggler.scheduler.commands import Decision, Mode
from juggler.scheduler.ledger import EXCLUSIVE_POOL, Amounts
from juggler.units import format_duration, format_size

CAUSES = {
    "operator": "by order of the operator",
    "idle": "idle for as long as idle_unload allows",
    "reload": "the configuration was changed",
    "shutdown": "the juggler shuts down",
    "abandoned": "nobody waits for it any more",
    "unload failed": "its unload failed",
    "unload refused": "it did not free its memory",
    "let go": "the juggler shuts down",
}
"""Why memory was freed, or an attached server let go, that nobody asked for."""

OWN_ASKERS = frozenset({"juggler load", "warm-up"})
"""Clients of a decision that are no clients: the operator, and the list of warm-ups."""

_ENDINGS = frozenset({"given up", "deferred", "freed too little"})
"""What outcomes begin with that are neither success nor failure; why follows behind a colon."""


def log_line(decision: Decision) -> str:
    """One line for the log: who asked, who had to go and why, and what it cost against the estimate."""
    victims = [f"{_verb(decision, mode)} {victim}" for victim, mode in decision.victims]
    number = f"#{decision.number} "
    if decision.target is None:
        return f"{number}{', '.join(victims)}: {CAUSES.get(decision.cause, decision.cause)}"
    if decision.outcome:
        return f"{number}{decision.target} {ending(decision.outcome, decision.took_s or 0.0, decision.expected_s)}"
    waited = format_duration(decision.waited_s)
    if decision.client in OWN_ASKERS:
        asked = own_asker(decision.client, waited, decision.waiting)
    else:
        asked = f"{decision.waiting} waiting, the first for {waited}"
        if decision.client:
            asked += f" (client {decision.client})"
    return f"{number}{', '.join([*victims, f'load {decision.target}'])}: {asked}{_reasons(decision)}"


def own_asker(asker: str, waited: str, waiting: int) -> str:
    """``asked by juggler load (waited 1.5 s), and 2 more``."""
    more = f", and {waiting - 1} more" if waiting > 1 else ""
    return f"asked by {asker} (waited {waited}){more}"


def ending(outcome: str, took_s: float, expected_s: float) -> str:
    """What came of it and how long it took; the text of a failure stands last, whatever it says."""
    took, expected = format_duration(took_s), format_duration(expected_s)
    if outcome == "ready":
        return f"ready after {took}, expected {expected}"
    if outcome == CAUSES["abandoned"]:  # before anything was loaded
        return f"given up after {took}: {outcome}"
    how, _, why = outcome.partition(": ")
    if how in _ENDINGS:
        return f"{how} after {took}: {why}"
    return f"failed after {took} (expected {expected}): {outcome}"


def _verb(decision: Decision, mode: Mode) -> str:
    return "let go of" if decision.cause == "let go" else mode.value


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
