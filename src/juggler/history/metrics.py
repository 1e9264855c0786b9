"""Metrics in the text format of Prometheus, made when they are asked for.

Names and units follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for counters, one prefix.
Labels are endpoints, instances and pools of the configuration as it is now, and words of fixed sets. The figures of the
process itself are the client library's, under its own names. ``docs/metrics.md`` lists them all.
"""

import math
import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from juggler import __version__
from juggler.engine import Engine
from juggler.history.tallies import EndpointTally, Histogram, Tallies
from juggler.scheduler import telling
from juggler.scheduler.transitions import Residency

INSTANCE = "model_instance"
"""The label of our instances: ``instance`` is what Prometheus itself calls the address that it asks."""

CAUSES = ("request", *telling.CAUSES)
"""Of decisions; see ``scheduler.commands.Decision``."""


class Metrics(Collector):
    """See the module.

    Args:
        lost_rows: How many records were not written to the disk.
        store_up: Whether they are written now; None: that is switched off.
    """

    def __init__(
        self,
        engine: Engine,
        tallies: Tallies,
        lost_rows: Callable[[], int],
        store_up: Callable[[], bool | None],
    ) -> None:
        self._engine = engine
        self._tallies = tallies
        self._lost_rows = lost_rows
        self._store_up = store_up
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The text, of type ``history.CONTENT_TYPE``."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what is collected depends on the configuration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything that there is to tell now."""
        self._tallies.keep(self._engine.endpoints, self._engine.scheduler.state.instances)
        info = GaugeMetricFamily(
            "juggler_build_info", "Always 1; the labels tell the version.", labels=("version", "python")
        )
        info.add_metric((__version__, platform.python_version()), 1)
        yield info
        yield from self._requests()
        yield from self._instances()
        yield from self._pools()
        yield from self._recording()

    def _requests(self) -> Iterator[Metric]:
        tallies = self._tallies.endpoints
        requests = CounterMetricFamily(
            "juggler_requests", "Requests that are over, by what became of them.", labels=("endpoint", "outcome")
        )
        up = CounterMetricFamily(
            "juggler_request_body_bytes", "Bytes of request bodies sent to backends.", labels=("endpoint",)
        )
        down = CounterMetricFamily(
            "juggler_response_body_bytes", "Bytes of answers sent to clients.", labels=("endpoint",)
        )
        for endpoint, tally in tallies.items():
            for outcome, count in tally.outcomes.items():
                requests.add_metric((endpoint, outcome), count)
            up.add_metric((endpoint,), tally.bytes_up)
            down.add_metric((endpoint,), tally.bytes_down)
        yield from (requests, up, down)
        for name, help_text, histogram_of in _HISTOGRAMS:
            family = HistogramMetricFamily(name, help_text, labels=("endpoint",))
            for endpoint, tally in tallies.items():
                _add(family, endpoint, histogram_of(tally))
            yield family

    def _instances(self) -> Iterator[Metric]:
        state = self._engine.scheduler.state
        depth = GaugeMetricFamily("juggler_queue_depth", "Requests that wait.", labels=(INSTANCE,))
        running = GaugeMetricFamily(
            "juggler_requests_running",
            "Requests that run, by whether they keep the memory.",
            labels=(INSTANCE, "class"),
        )
        residency = GaugeMetricFamily(
            "juggler_instance_state", "1 for the state that the instance is in, else 0.", labels=(INSTANCE, "state")
        )
        memory = GaugeMetricFamily(
            "juggler_instance_memory_bytes", "Memory that the instance counts for.", labels=(INSTANCE, "pool")
        )
        evictions = CounterMetricFamily(
            "juggler_evictions", "How often an instance had to make room for another.", labels=(INSTANCE,)
        )
        failures = CounterMetricFamily(
            "juggler_instance_failures",
            "Failed starts, exits of their own, failed unloads.",
            labels=(INSTANCE, "kind"),
        )
        loads = HistogramMetricFamily(
            "juggler_instance_load_seconds", "How long starting or waking took until ready.", labels=(INSTANCE,)
        )
        for name, instance in state.instances.items():
            depth.add_metric((name,), len(instance.queue))
            running.add_metric((name, "work"), len(instance.running))
            running.add_metric((name, "light"), len(instance.light))
            for one in Residency:
                residency.add_metric((name, one.value), float(instance.residency is one))
            held = state.ledger.held(name)
            for pool in state.ledger.capacity:
                memory.add_metric((name, pool), held.get(pool, 0))
        for name, tally in self._tallies.instances.items():
            evictions.add_metric((name,), tally.evictions)
            for kind, count in tally.failures.items():
                failures.add_metric((name, kind), count)
            _add(loads, name, tally.load)
        yield from (depth, running, residency, memory, evictions, failures, loads)
        swaps = CounterMetricFamily("juggler_swaps", "Decisions that freed memory, by cause.", labels=("cause",))
        for cause in CAUSES:
            swaps.add_metric((cause.replace(" ", "_"),), self._tallies.swaps[cause])
        yield swaps

    def _pools(self) -> Iterator[Metric]:
        ledger = self._engine.scheduler.state.ledger
        memory = GaugeMetricFamily(
            "juggler_pool_memory_bytes",
            "Memory of a pool: all of it, what instances count for, what other programs hold.",
            labels=("pool", "kind"),
        )
        for pool, capacity in ledger.capacity.items():
            memory.add_metric((pool, "capacity"), capacity)
            memory.add_metric((pool, "used"), ledger.used(pool))
            memory.add_metric((pool, "foreign"), ledger.foreign.get(pool, 0))
        yield memory

    def _recording(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "juggler_history_lost_requests",
            "Requests that are in no other metric, because more ended at once than could be counted.",
            self._tallies.lost_requests,
        )
        yield CounterMetricFamily(
            "juggler_history_lost_rows", "Records that were not written to the disk.", self._lost_rows()
        )
        store_up = self._store_up()
        if store_up is not None:
            yield GaugeMetricFamily(
                "juggler_history_store_up", "Whether records can be written to the disk.", float(store_up)
            )


_HISTOGRAMS: tuple[tuple[str, str, Callable[[EndpointTally], Histogram]], ...] = (
    ("juggler_request_wait_seconds", "From arrival until it was let in, or refused.", lambda one: one.wait),
    (
        "juggler_request_load_seconds",
        "Of that, while the model was being loaded, of those for which it was.",
        lambda one: one.load,
    ),
    (
        "juggler_request_first_byte_seconds",
        "From being let in until the backend's answer began.",
        lambda one: one.first_byte,
    ),
    ("juggler_request_duration_seconds", "From arrival to end.", lambda one: one.total),
)


def _add(family: HistogramMetricFamily, label: str, histogram: Histogram) -> None:
    buckets, total = [], 0
    for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == math.inf else repr(bound), float(total)))
    family.add_metric((label,), buckets, histogram.sum)
