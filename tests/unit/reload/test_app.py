"""Reloads of the whole program in one loop: what is left of them."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.ports import free_port

from juggler.app import App
from juggler.config.load import load_config
from juggler.config.resolve import resolve


def document(tmp_path: Path, ports: dict[str, int], endpoints: dict[str, list[str]]) -> dict[str, Any]:
    def server(name: str, port: int) -> dict[str, Any]:
        rows = [
            {"name": one, "path_prefix": f"/{one}", "backend": "demo", "parameters": parameters}
            for one, parameters in endpoints.items()
        ]
        return {"name": name, "port": port, "endpoints": rows}

    return {
        "temp_dir": str(tmp_path / "t"),
        "state_dir": str(tmp_path / "s"),
        "control": False,
        "memory": {"pools": {"gpu0": "24GiB"}},
        "backends": {"demo": {}},
        "servers": [server(name, port) for name, port in ports.items()],
    }


def tasks() -> Counter[str]:
    """What runs in this loop, by name; numbers of unnamed tasks do not count."""
    return Counter(one.get_name().rstrip("0123456789") for one in asyncio.all_tasks())


async def test_nothing_is_left_of_what_was_changed(tmp_path: Path) -> None:
    """After any number of reloads there are the tasks, owners and listeners of the last configuration, and no more."""
    path = tmp_path / "config.json"
    home = document(tmp_path, {"S": free_port()}, {"a": [], "b": []})
    path.write_text(json.dumps(home))
    loaded = load_config(path)
    listening = asyncio.Event()
    app = App(resolve(loaded), loaded=loaded, on_listening=lambda app: listening.set())
    running = asyncio.create_task(app.run())
    await listening.wait()
    await app.engine.opened.wait()
    before = tasks()
    for number in range(8):
        other = {"a": [], "c": ["--load-seconds", str(number)]}
        away = document(tmp_path, {"S": home["servers"][0]["port"], f"T{number}": free_port()}, other)
        for text in (away, home):
            path.write_text(json.dumps(text))
            outcome = await app.reload(by="test")
            assert outcome.result == "done", outcome
    path.write_text(json.dumps(home))
    assert (await app.reload(by="test")).result == "nothing"
    async with asyncio.timeout(10):
        while tasks() - before:
            await asyncio.sleep(0.01)
    names = {"S/a", "S/b"}
    assert set(app.engine.supervisors) == set(app.engine.scheduler.state.instances) == names
    assert set(app.engine.endpoints) == names
    assert set(app.listeners) == {"S"}
    assert not app.engine.waiters
    app.stop()
    await running


async def test_a_reload_waits_until_the_start_is_through(tmp_path: Path) -> None:
    """A signal may come at any time."""
    path = tmp_path / "config.json"
    home = document(tmp_path, {"S": free_port()}, {"a": []})
    path.write_text(json.dumps(home))
    loaded = load_config(path)
    app = App(resolve(loaded), loaded=loaded)
    running = asyncio.create_task(app.run())
    path.write_text(json.dumps(document(tmp_path, {"S": home["servers"][0]["port"]}, {"a": [], "b": []})))
    app.reloader.signal()
    done = asyncio.Event()
    app.when_changed(done.set)
    await asyncio.wait_for(done.wait(), 20)
    assert app.reloader.last is not None
    assert app.reloader.last.result == "done"
    assert set(app.engine.supervisors) == {"S/a", "S/b"}
    assert app.config_summary()["problems"] == 0
    app.stop()
    await running
