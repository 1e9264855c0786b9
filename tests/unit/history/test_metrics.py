"""The text for Prometheus, its documentation and its dashboard."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from juggler.history.history import CONTENT_TYPE, History
from juggler.history.limits import HistoryLimits
from juggler.history.metrics import CAUSES
from juggler.history.records import OUTCOMES
from juggler.history.tallies import WAIT_BUCKETS, Histogram, Tallies
from juggler.ids import EndpointId, InstanceId
from juggler.testing.virtual_time import run_virtual
from tests.unit.history.world import CHAT, IMAGE, World, recorded_world

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD = DOCS / "grafana" / "model-juggler.json"
PROCESS = ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Everything that is told after two requests and a swap, by the name of its samples."""
    texts: list[bytes] = []

    async def scenario() -> None:
        async with recorded_world(tmp_path_factory.mktemp("state"), limits=HistoryLimits()) as (world, history, _):
            await world.serve(CHAT, 2.0)
            await world.serve(IMAGE, 3.0)
            texts.append(history.metrics())

    run_virtual(scenario())
    return {full_name(one): one for one in text_string_to_metric_families(texts[0].decode())}


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    found = [
        one.value
        for family in families.values()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def test_names_and_units(families: dict[str, Metric]) -> None:
    """What promtool would complain about: prefixes, suffixes, base units, help texts."""
    for name, family in families.items():
        assert re.fullmatch(r"(juggler|process)_[a-z_]+[a-z]", name), name
        assert family.documentation, name
        if name.startswith("juggler_"):
            assert family.documentation.endswith("."), name
        assert family.type in {"counter", "gauge", "histogram"}, name
        assert (family.type == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|millis|milliseconds|minutes|kb|mb|mib|percent|gauge|counter|histogram)(_|$)", name)
        if family.type == "histogram":
            assert name.endswith("_seconds"), name
        for sample in family.samples:
            assert not set(sample.labels) & {"instance", "job"}, name  # Prometheus' own
            assert all(re.fullmatch(r"[a-z_]+", label) for label in sample.labels), name


def test_histograms_are_whole(families: dict[str, Metric]) -> None:
    """Buckets rise to the count, and the last is infinite."""
    histograms = [one for one in families.values() if one.type == "histogram"]
    assert len(histograms) == 5
    for family in histograms:
        for label in (CHAT, IMAGE):
            own = [one for one in family.samples if label in one.labels.values()]
            buckets = [(float(one.labels["le"]), one.value) for one in own if one.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1][0] == float("inf")
            assert [one.value for one in own if one.name.endswith("_count")] == [buckets[-1][1]] == [1.0]


def test_values(families: dict[str, Metric]) -> None:
    """The numbers are those of what happened."""
    assert value(families, "juggler_requests_total", endpoint=CHAT, outcome="ok") == 1
    assert value(families, "juggler_requests_total", endpoint=CHAT, outcome="error") == 0
    assert value(families, "juggler_response_body_bytes_total", endpoint=IMAGE) == 1000
    assert value(families, "juggler_request_first_byte_seconds_sum", endpoint=IMAGE) == 1.5
    assert value(families, "juggler_request_duration_seconds_sum", endpoint=CHAT) == pytest.approx(12.2, abs=0.1)
    assert value(families, "juggler_request_wait_seconds_bucket", endpoint=CHAT, le="10.0") == 0
    assert value(families, "juggler_request_wait_seconds_bucket", endpoint=CHAT, le="30.0") == 1
    assert value(families, "juggler_swaps_total", cause="request") == 1
    assert value(families, "juggler_evictions_total", model_instance=CHAT) == 1
    assert value(families, "juggler_instance_state", model_instance=IMAGE, state="ready") == 1
    assert value(families, "juggler_instance_memory_bytes", model_instance=IMAGE, pool="exclusive") == 1
    assert value(families, "juggler_pool_memory_bytes", pool="exclusive", kind="used") == 1
    assert value(families, "juggler_queue_depth", model_instance=IMAGE) == 0
    assert value(families, "juggler_history_lost_requests_total") == 0
    assert value(families, "juggler_build_info") == 1


def test_labels_are_bounded(families: dict[str, Metric]) -> None:
    """Every combination of the configuration's names and our words is there from the start, and no other."""
    outcomes = [one.labels for one in families["juggler_requests_total"].samples]
    assert outcomes == [{"endpoint": one, "outcome": word} for one in (CHAT, IMAGE) for word in OUTCOMES]
    causes = [one.labels["cause"] for one in families["juggler_swaps_total"].samples]
    assert causes == [one.replace(" ", "_") for one in CAUSES]


def test_what_is_removed_is_told_no_more(tmp_path: Path) -> None:
    """After a reload nothing of an endpoint that is gone is left, and one that comes anew begins at zero."""

    async def scenario(world: World, history: History) -> None:
        await world.serve(CHAT)
        endpoint, policy = EndpointId(CHAT), world.engine.endpoints[EndpointId(CHAT)]
        assert f'endpoint="{CHAT}",outcome="ok"}} 1.0' in history.metrics().decode()
        del world.engine.endpoints[endpoint]
        assert f'endpoint="{CHAT}"' not in history.metrics().decode()
        world.engine.endpoints[endpoint] = policy
        assert f'endpoint="{CHAT}",outcome="ok"}} 0.0' in history.metrics().decode()

    async def inside() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            await scenario(world, history)

    run_virtual(inside())


def test_names_that_are_hard_to_write(tmp_path: Path) -> None:
    """Quotes, backslashes and line ends of a name are told as they are."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (world, history, _):
            odd = EndpointId('a"b\\c\nd/ü')
            world.engine.endpoints[odd] = world.engine.endpoints[EndpointId(CHAT)]
            told = text_string_to_metric_families(history.metrics().decode())
            (requests,) = [one for one in told if one.name == "juggler_requests"]
            assert odd in {one.labels["endpoint"] for one in requests.samples}

    run_virtual(scenario())


def test_without_a_store_nothing_is_said_of_it(tmp_path: Path) -> None:
    """A disk that is not wanted cannot fail."""

    async def scenario() -> None:
        async with recorded_world(tmp_path) as (_, history, _):
            assert b"store_up" not in history.metrics()
            assert history.path is None

    run_virtual(scenario())
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_buckets() -> None:
    """A value on a bound belongs below it; a tally that is kept goes on counting."""
    histogram = Histogram(WAIT_BUCKETS)
    for seconds in (0.0, 0.001, 0.0011, 1800.0, 1801.0):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1, 1)
    tallies = Tallies()
    tallies.of_instance(InstanceId("a")).evictions = 3
    tallies.of_endpoint("e").bytes_up = 4
    tallies.keep(["e", "f"], [InstanceId("a")])
    assert (tallies.of_endpoint("e").bytes_up, tallies.of_endpoint("f").bytes_up) == (4, 0)
    tallies.keep(["f"], [])
    assert tallies.of_instance(InstanceId("a")).evictions == 0


# -------------------------------------------------------------------- documentation


def test_every_metric_is_documented(families: dict[str, Metric]) -> None:
    """docs/metrics.md has a row for each, with type, labels and help text."""
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for name, family in families.items():
        if name.startswith("process_"):
            continue
        labels = sorted({label for one in family.samples for label in one.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation.rstrip('.')}. |")
    expected = "\n".join(rows)
    documented = (DOCS / "metrics.md").read_text("utf-8").partition("<!-- metrics -->\n")[2].partition("\n<!-- end")[0]
    assert documented == expected, f"put this into docs/metrics.md:\n{expected}"


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboard and the documentation."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    yield from re.findall(r"```promql\n(.*?)```", (DOCS / "metrics.md").read_text("utf-8"), re.DOTALL)


def test_the_dashboard_asks_for_metrics_that_exist(families: dict[str, Metric]) -> None:
    """Names and labels in every expression are those that are told."""
    samples = {one: set[str]() for one in PROCESS}  # those of the process are told on Linux only
    samples |= {one.name: set(one.labels) for family in families.values() for one in family.samples}
    words = {"job", *(label for labels in samples.values() for label in labels)}
    asked = set()
    for expression in expressions():
        names = re.findall(r"\b(?:juggler|process)_[a-z_]+", expression)
        assert names, expression
        assert set(names) <= set(samples), expression
        asked |= set(names)
        for name, matchers in re.findall(r"\b((?:juggler|process)_[a-z_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= samples[name] | {"job"}, expression
        for grouped in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            assert {one.strip() for one in grouped.split(",")} <= words, expression
    assert len(asked) >= 12


def test_the_dashboard_is_whole() -> None:
    """Ids are unique, every panel has its place within the grid, its data source and a title, and none overlap."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    assert dashboard["uid"] == "model-juggler"
    assert dashboard["schemaVersion"] >= 39
    panels = dashboard["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"].endswith(".")
            assert [one["refId"] for one in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
            assert panel["fieldConfig"]["defaults"]["unit"]
