"""What snapshots keep from one look to the next is never older than what it was made of."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.ports import free_port

from juggler.app import App
from juggler.config.load import load_text
from juggler.config.resolve import resolve
from juggler.control.snapshot import Snapshots
from juggler.errors import BackendError
from juggler.ids import PoolId
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import Residency

GPU = PoolId("gpu0")


def in_app(tmp_path: Path, check: Callable[[App], None]) -> None:
    """Run ``check`` in a juggler that has just begun to listen, with two endpoints at rest."""

    def listening(app: App) -> None:
        try:
            check(app)
        finally:
            app.stop()

    port = free_port()
    endpoints = [{"name": name, "path_prefix": f"/{name}", "backend": "demo"} for name in ("a", "b")]
    document = {
        "temp_dir": str(tmp_path / "t"),
        "state_dir": str(tmp_path / "s"),
        "control": False,
        "memory": {"pools": {GPU: "8GiB"}},
        "backends": {"demo": {}},
        "servers": [{"name": "S", "port": port, "endpoints": endpoints}],
    }
    asyncio.run(App(resolve(load_text(json.dumps(document))), on_listening=listening).run())


def _fails(instance: Instance) -> None:
    instance.residency = Residency.FAILED
    instance.failure = BackendError("it broke")


CHANGES: dict[str, Callable[[Instance], None]] = {
    "pinned": lambda one: setattr(one, "pin", True),
    "used": lambda one: setattr(one, "last_used", 5.0),
    "needs": lambda one: setattr(one, "full", {GPU: 124}),
    "starts": lambda one: setattr(one, "generation", 3),
    "starting": lambda one: setattr(one, "residency", Residency.STARTING),
    "failed": _fails,
    "soft unload": lambda one: setattr(one, "soft_unload", not one.soft_unload),
    "spec": lambda one: setattr(one, "spec", replace(one.spec, name="other", slots=7, idle_unload_s=9.0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_changes_of_an_instance_at_rest_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Instance], None]
) -> None:
    """The other one, which did not change, is not made anew."""
    monkeypatch.setattr(Snapshots, "_offset", lambda _: 1000.0)

    def check(app: App) -> None:
        kept = Snapshots(app, "x")
        before = kept.collections()["instances"]
        first, _ = app.engine.scheduler.state.instances.values()
        change(first)
        after = kept.collections()["instances"]
        now = Snapshots(app, "x").collections()["instances"]
        for items in (after, now):
            items[0]["error"] = {**error, "retry_in_s": 0} if isinstance(error := items[0]["error"], dict) else error
        assert after == now
        assert after[0] != before[0]
        assert after[1] is before[1]

    in_app(tmp_path, check)


def test_addresses_of_endpoints_are_those_of_now(tmp_path: Path) -> None:
    def check(app: App) -> None:
        kept = Snapshots(app, "x")
        before = kept.collections()["endpoints"]
        assert kept.collections()["endpoints"] is before
        listener = app.listeners["S"]
        listener.addresses[:] = [("127.0.0.9", 81)]
        after = kept.collections()["endpoints"]
        assert [one["urls"] for one in after] == [["http://127.0.0.9:81/a"], ["http://127.0.0.9:81/b"]]

    in_app(tmp_path, check)
