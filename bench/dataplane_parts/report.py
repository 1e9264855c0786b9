"""Ratios within a round, their medians, the gates (dataplane.md section 6), the table."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.dataplane_parts.contenders import ASYNCIO, DIRECT, GO, MANY, NGINX, UVLOOP
from bench.dataplane_parts.measures import CONNECTIONS, EVENT_STREAMS, FLOODING, Numbers

JUGGLERS = (UVLOOP, ASYNCIO)
SHOWN = (DIRECT, UVLOOP, ASYNCIO, GO, NGINX)
MIB = 2**20

Round = Mapping[tuple[str, str], Numbers]
"""Numbers by measure and contender."""


@dataclass(frozen=True)
class Row:
    """One quantity, what it is compared with, and how far it may go."""

    label: str
    measure: str
    quantity: str
    base: str = GO
    """Whose value in the same round the ratio is taken to; empty: the value itself is judged."""
    added: bool = False
    """Take off first what the load sees without a proxy."""
    scale: float = 1.0
    at_least: bool = False
    """The gate is a lower bound."""
    gates: Mapping[str, float] = field(default_factory=dict)
    """By contender."""


@dataclass
class Verdict:
    """A judged row of one contender."""

    row: Row
    contender: str
    ratio: float
    gate: float

    @property
    def passed(self) -> bool:
        return self.ratio >= self.gate if self.row.at_least else self.ratio <= self.gate


def _both(uvloop: float, asyncio: float | None = None) -> dict[str, float]:
    return {UVLOOP: uvloop, ASYNCIO: uvloop if asyncio is None else asyncio}


def rows() -> list[Row]:
    """All of the table, in order."""
    table: list[Row] = []
    for number in CONNECTIONS:
        measure = f"requests {number}"
        cpu, p50, p99 = ({}, _both(0.6), _both(1.0)) if number == 1 else (_both(0.6, 1.0), {}, {})
        table.append(Row(f"{number} conn: CPU us/request", measure, "cpu_us", gates=cpu))
        table.append(Row(f"{number} conn: requests/s", measure, "per_s", at_least=True))
        table.append(Row(f"{number} conn: added p50 us", measure, "p50_us", added=True, gates=p50))
        table.append(Row(f"{number} conn: added p99 us", measure, "p99_us", added=True, gates=p99))
    against_nginx = {UVLOOP: 0.3}
    table.append(Row("64 conn: requests/s x nginx", "requests 64", "per_s", NGINX, at_least=True, gates=against_nginx))
    table.append(Row("64 conn: CPU us/request x nginx", "requests 64", "cpu_us", NGINX))
    table.append(Row("one CPU, 64: requests/s", "pinned 64", "per_s", at_least=True, gates=_both(1.8, 1.0)))
    table.append(Row("one CPU, 64: CPU us/request", "pinned 64", "cpu_us"))
    for number in EVENT_STREAMS:
        measure = f"events {number}"
        cpu, p50, p99 = ({}, {}, {}) if number == 1 else (_both(0.7), _both(0.8), _both(1.2))
        table.append(Row(f"SSE, {number}: CPU us/event", measure, "cpu_us", gates=cpu))
        table.append(Row(f"SSE, {number}: added p50 us", measure, "p50_us", added=True, gates=p50))
        table.append(Row(f"SSE, {number}: added p99 us", measure, "p99_us", added=True, gates=p99))
    table.append(Row("WebSocket, 16: CPU us/round trip", "echo 16", "cpu_us"))
    table.append(Row("WebSocket, 16: added p50 us", "echo 16", "p50_us", added=True, gates=_both(0.8)))
    table.append(Row("WebSocket, 16: added p99 us", "echo 16", "p99_us", added=True))
    for measure, title in (("upload", "20 MB up"), ("download", "200 MB down")):
        table.append(Row(f"{title}: MB/s", measure, "mb_per_s", at_least=True, gates=_both(0.85)))
        table.append(Row(f"{title}: CPU s/GB", measure, "cpu_s_per_gb", gates=_both(1.2)))
    after = f"{FLOODING} flooding clients gone"
    table.append(Row(f"{after}: p99 us", "flood", "p99_us", gates=_both(1.0, 3.0)))
    memory = "memory"
    table.append(Row("idle: MiB", memory, "idle", "", scale=1 / MIB))
    table.append(Row("per open stream: KiB", memory, "per_stream", "", scale=1 / 1024, gates=_both(10.0)))
    table.append(Row("per stalled download: MiB", memory, "per_stalled", "", scale=1 / MIB, gates=_both(1.0)))
    table.append(Row("huge upload: peak MiB", memory, "huge_upload", "", scale=1 / MIB, gates=_both(32.0)))
    table.append(Row("huge download: peak MiB", memory, "huge_download", "", scale=1 / MIB, gates=_both(32.0)))
    return table


def many_row(base: str) -> Row:
    """500 endpoints against 5: nothing done per request may grow with their number."""
    return Row("500 endpoints: CPU us/request x 5", "requests 64", "cpu_us", base, gates={MANY: 1.15})


def judge(rounds: Sequence[Round], say: Callable[[str], None]) -> list[Verdict]:
    """Print the table; returns what was judged."""
    say(f"{'':34}" + "".join(f"{name:>10}" for name in SHOWN) + f"{'ratio':>9}{'':>8}   gate")
    say(f"{'':34}" + " " * 10 * len(SHOWN) + f"{UVLOOP:>9}{ASYNCIO:>8}")
    verdicts: list[Verdict] = []
    for row in rows():
        values = {name: _median([_value(one, row, name) for one in rounds]) for name in SHOWN}
        if all(math.isnan(value) for value in values.values()):
            continue
        ratios = {name: _ratio(rounds, row, name) for name in JUGGLERS}
        told = [Verdict(row, name, ratios[name], gate) for name, gate in row.gates.items()]
        told = [verdict for verdict in told if not math.isnan(verdict.ratio)]
        verdicts += told
        shown = "".join(_number(values[name], 10) for name in SHOWN)
        compared = "".join(_number(ratios[name], width) if row.base else " " * width for name, width in _WIDTHS)
        say(f"{row.label:34}{shown}{compared}   {_gates(row, told)}".rstrip())
    base = UVLOOP if any(("requests 64", UVLOOP) in one for one in rounds) else ASYNCIO
    row = many_row(base)
    ratio = _ratio(rounds, row, MANY)
    if not math.isnan(ratio):
        verdicts.append(Verdict(row, MANY, ratio, row.gates[MANY]))
        few, many = (_median([_value(one, row, name) for one in rounds]) for name in (base, MANY))
        say(f"{row.label:34}{few:10.1f} -> {many:.1f}: ratio {ratio:.2f}   {_gates(row, verdicts[-1:])}")
    return verdicts


_WIDTHS = ((UVLOOP, 9), (ASYNCIO, 8))


def _value(one: Round, row: Row, contender: str) -> float:
    value = one.get((row.measure, contender), {}).get(row.quantity, math.nan) * row.scale
    if row.added:
        value = math.nan if contender == DIRECT else value - one.get((row.measure, DIRECT), {}).get(row.quantity, 0.0)
    elif contender == DIRECT and row.quantity.startswith("cpu"):
        return math.nan
    return value


def _ratio(rounds: Sequence[Round], row: Row, contender: str) -> float:
    """Median of the ratios within each round; the median itself where there is no base."""
    if not row.base:
        return _median([_value(one, row, contender) for one in rounds])
    ratios = []
    for one in rounds:
        value, base = _value(one, row, contender), _value(one, row, row.base)
        # Where the base adds nothing that can be measured, a ratio says nothing.
        ratios.append(value / base if base > 0 else math.nan)
    return _median(ratios)


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _gates(row: Row, told: Sequence[Verdict]) -> str:
    sign = ">=" if row.at_least else "<="
    return "  ".join(
        f"{one.contender} {sign} {one.gate:g} {'PASS' if one.passed else f'MISS ({one.ratio:.2f})'}" for one in told
    )


def _number(value: float, width: int) -> str:
    if math.isnan(value):
        return f"{'-':>{width}}"
    return f"{value:{width}.0f}" if abs(value) >= 1000 else f"{value:{width}.2f}"
