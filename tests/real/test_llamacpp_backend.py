"""The llamacpp backend against the real server: probes, and saving and restoring of conversations."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from juggler.backends.base import BackendSettings, ProbeResult
from juggler.backends.llamacpp import LlamaCppBackend
from juggler.demo.models import write_model
from juggler.ids import InstanceId
from juggler.lifecycle.caller import HttpCaller
from tests.real.engine_process import PROGRAM, needs_engine, started

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_engine]

PROMPT = "bada gifo muna. " * 300
"""About 2000 tokens of the demo's vocabulary."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf", seed=1, size_bytes=600_000)


def backend_for(tmp_path: Path, *parameters: str, quota: int = 10**9, saving: bool = True) -> LlamaCppBackend:
    return LlamaCppBackend(
        BackendSettings(
            instance=InstanceId("srv/chat"),
            endpoint_name="chat",
            type="llamacpp",
            binary=PROGRAM,
            parameters=("-m", str(tmp_path / "model.gguf"), "-c", "8192", *parameters),
            kv_cache_saving=saving,
            kv_cache_quota_bytes=quota,
            state_dir=tmp_path,
        )
    )


async def complete(caller: HttpCaller, prompt: str = PROMPT, **extra: object) -> dict[str, int]:
    """Timings of one completion: ``cache_n`` tokens came from the cache, ``prompt_n`` were computed."""
    body = json.dumps({"prompt": prompt, "n_predict": 4, "temperature": 0, **extra}).encode()
    answer = await caller.call("POST", "/completion", body=body, timeout_s=40)
    assert answer.status == 200, answer.body
    document = answer.json()
    assert isinstance(document, dict)
    timings: dict[str, int] = document["timings"]
    return timings


async def cached_share(caller: HttpCaller, prompt: str = PROMPT) -> float:
    timings = await complete(caller, prompt)
    return timings["cache_n"] / (timings["cache_n"] + timings["prompt_n"])


def saved_files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "kv").rglob("*.bin"))


@pytest.mark.parametrize("parameters", [(), ("-np", "1", "--cache-ram", "0")])
async def test_prompt_survives_a_swap(tmp_path: Path, model: Path, parameters: tuple[str, ...]) -> None:
    """A prompt of 2000 tokens, repeated after stop and start, has at least 95 % of its tokens from the cache."""
    backend = backend_for(tmp_path, *parameters)
    async with started(backend, tmp_path) as (caller, _):
        first = await complete(caller)
        assert first["prompt_n"] >= 2000
        assert first["cache_n"] == 0
        await backend.before_stop(caller)
    # A new object, as after a restart of the juggler: nothing may depend on memory.
    async with started(backend_for(tmp_path, *parameters), tmp_path) as (caller, _):
        assert await cached_share(caller) >= 0.95


async def test_two_conversations_survive(tmp_path: Path, model: Path) -> None:
    """All non-empty slots are saved, not only the first or the last one used."""
    options = ("-np", "2", "--no-kv-unified")
    one, two = "bada " * 300, "gifo muna " * 300
    backend = backend_for(tmp_path, *options)
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller, one, id_slot=0)
        await complete(caller, two, id_slot=1)
        await backend.before_stop(caller)
    assert len(saved_files(tmp_path)) == 2
    async with started(backend_for(tmp_path, *options), tmp_path) as (caller, _):
        assert await cached_share(caller, one) >= 0.95
        assert await cached_share(caller, two) >= 0.95


async def test_untouched_state_survives_a_second_swap(tmp_path: Path, model: Path) -> None:
    """A server that was started and stopped without a request loses nothing of what was saved before."""
    backend = backend_for(tmp_path)
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller)
        await backend.before_stop(caller)
    before = saved_files(tmp_path)
    async with started(backend, tmp_path) as (caller, _):
        await backend.before_stop(caller)
    assert saved_files(tmp_path) == before
    async with started(backend, tmp_path) as (caller, _):
        assert await cached_share(caller) >= 0.95


async def test_other_weights_of_the_same_shape_get_nothing(tmp_path: Path, model: Path) -> None:
    """The server itself would restore a file of other weights and answer nonsense; we never hand it one."""
    backend = backend_for(tmp_path)
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller)
        await backend.before_stop(caller)
    assert len(saved_files(tmp_path)) == 1
    size = model.stat().st_size
    write_model(model, seed=2, size_bytes=600_000)
    assert model.stat().st_size == size
    async with started(backend_for(tmp_path), tmp_path) as (caller, _):
        assert (await complete(caller))["cache_n"] == 0


async def test_saved_files_are_private(tmp_path: Path, model: Path) -> None:
    """Directories have mode 0700 and files 0600: they hold what people wrote."""
    backend = backend_for(tmp_path)
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller)
        await backend.before_stop(caller)
    (file,) = saved_files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in file.parent.iterdir())


async def test_quota_drops_what_does_not_fit(tmp_path: Path, model: Path) -> None:
    """A save larger than the whole quota is not kept."""
    backend = backend_for(tmp_path, quota=10_000)
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller)
        await backend.before_stop(caller)
    assert saved_files(tmp_path) == []


async def test_empty_slots_leave_no_file(tmp_path: Path, model: Path) -> None:
    """A server that never worked saves nothing, although the server would write 36 bytes."""
    backend = backend_for(tmp_path)
    async with started(backend, tmp_path) as (caller, _):
        await backend.before_stop(caller)
    assert saved_files(tmp_path) == []


async def test_busy_slot_is_skipped(tmp_path: Path, model: Path) -> None:
    """A save on a working slot would wait for the end of its generation; it is skipped within moments."""
    backend = backend_for(tmp_path, "-np", "2", "--no-kv-unified")
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller, "bada " * 300, id_slot=0)
        body = json.dumps({"prompt": "ka", "n_predict": 10**6, "ignore_eos": True, "id_slot": 1}).encode()
        working = asyncio.create_task(caller.call("POST", "/completion", body=body, timeout_s=50))
        try:
            async with asyncio.timeout(20):
                while not await backend.busy(caller):
                    await asyncio.sleep(0.02)
            began = time.monotonic()
            await backend.before_stop(caller)
            assert time.monotonic() - began < 10
            assert not working.done()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        async with asyncio.timeout(20):
            while await backend.busy(caller):
                await asyncio.sleep(1.2)  # more often would keep the server from noticing that its client left
    assert len(saved_files(tmp_path)) == 1


async def test_saving_switched_off(tmp_path: Path, model: Path) -> None:
    """With ``kv_cache_saving`` false no flag is passed and nothing is written."""
    backend = backend_for(tmp_path, saving=False)
    async with started(backend, tmp_path) as (caller, _):
        await complete(caller)
        await backend.before_stop(caller)
        assert (await caller.call("POST", "/slots/0?action=save", body=b'{"filename":"x"}')).status == 501
    assert not (tmp_path / "kv").exists()


async def test_key_and_prefix_are_used(tmp_path: Path, model: Path) -> None:
    """Probes, saving and restoring work behind an API prefix and an API key."""
    options = ("--api-prefix", "/pre", "--api-key", "one,two")
    backend = backend_for(tmp_path, *options)
    headers = {"Authorization": "Bearer two"}
    body = json.dumps({"prompt": PROMPT, "n_predict": 4}).encode()
    async with started(backend, tmp_path) as (caller, _):
        assert await backend.probe(caller) is ProbeResult.READY
        assert not await backend.busy(caller)
        assert (await caller.call("POST", "/pre/completion", headers=headers, body=body, timeout_s=40)).status == 200
        await backend.before_stop(caller)
    async with started(backend_for(tmp_path, *options), tmp_path) as (caller, _):
        answer = await caller.call("POST", "/pre/completion", headers=headers, body=body, timeout_s=40)
        document = answer.json()
        assert isinstance(document, dict)
        assert document["timings"]["cache_n"] >= 1900


async def test_sleeping_server_is_left_asleep(tmp_path: Path, model: Path) -> None:
    """Asking whether it works and saving do not wake a server that gave its model up."""
    backend = backend_for(tmp_path, "--sleep-idle-seconds", "1")
    async with started(backend, tmp_path) as (caller, _):

        async def asleep() -> bool:
            properties = (await caller.call("GET", "/props")).json()
            assert isinstance(properties, dict)
            return bool(properties["is_sleeping"])

        async with asyncio.timeout(20):
            while not await asleep():
                await asyncio.sleep(0.1)
        assert not await backend.busy(caller)
        await backend.before_stop(caller)
        assert await asleep()
