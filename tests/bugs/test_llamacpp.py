"""Bugs 24 to 29 of the prototype (backends.md section 11): llama.cpp. Each test would fail with its bug."""

import re
from pathlib import Path
from typing import Any

import pytest

from juggler.backends.base import Address
from juggler.backends.kvsignature import signature_of
from juggler.backends.llamacpp import LlamaCppBackend
from juggler.ids import InstanceId
from tests.unit.backends.fake_caller import FakeCaller, answer, settings
from tests.unit.backends.test_kvcache import UNUSED, Slots, World


def program(tmp_path: Path) -> str:
    path = tmp_path / "llama-server"
    path.touch(mode=0o755)
    return str(path)


async def test_bug_24_all_calls_go_to_the_server_s_own_address(tmp_path: Path) -> None:
    """The server is told one address, and every probe and KV call goes through the one caller made for it."""
    backend = LlamaCppBackend(settings("llamacpp", "--host", "0.0.0.0", binary=program(tmp_path), state_dir=tmp_path))
    plan = backend.plan(Address("127.0.0.1", 5000), {})
    assert plan.argv.count("--host") == 1
    assert plan.argv[plan.argv.index("--host") + 1] == "127.0.0.1"
    caller = FakeCaller({"GET /health": answer(200, {"status": "ok"}), "GET /slots": answer(200, [])})
    await backend.probe(caller)
    await backend.before_stop(caller)
    assert {call.split()[1][0] for call in caller.calls} == {"/"}, "paths, not URLs with a host of their own"


async def test_bug_25_file_names_are_plain_and_tied_to_the_model(tmp_path: Path) -> None:
    """No path of an endpoint or a model gets into a name; other weights mean another directory."""
    server = Slots(10, 20)
    world = World(tmp_path)
    await world.open(server).save(server, UNUSED)
    assert world.files()
    assert all(re.fullmatch(r"[a-z0-9._-]{1,255}", name) for name in world.files())
    binary, signatures = program(tmp_path), []
    for number in range(2):
        model = tmp_path / f"{number}.gguf"
        model.write_bytes(bytes(number + 1))
        parameters = ["-m", str(model)]
        signatures.append(signature_of(binary, parameters, None, {}, InstanceId("S/a b/../c")))
    assert len(set(signatures)) == 2
    assert all(re.fullmatch(r"[a-z0-9._-]+", signature) for signature in signatures)


async def test_bug_26_every_slot_counts_and_an_empty_save_does_not(tmp_path: Path) -> None:
    """The conversation is in the last slot; a save of nothing never stands for it."""
    server = Slots(None, None, None, 53)
    world = World(tmp_path)
    cache = world.open(server)
    await cache.save(server, UNUSED)
    assert server.actions == ["save 3"]
    good = world.manifest()
    server.fail_with = answer(200, {"n_saved": 0, "n_written": 36})
    await cache.save(server, UNUSED)
    assert world.manifest() == good


async def test_bug_27_files_are_found_after_a_restart_and_do_not_pile_up(tmp_path: Path) -> None:
    """What is there is known from the disk; old states go when the quota is reached."""
    world = World(tmp_path)
    first = Slots(10)
    await world.open(first).save(first, UNUSED)
    second = Slots(None)
    await world.open(second).restore(second, UNUSED)
    assert second.actions == ["restore 0"]
    third = Slots(10)
    await world.open(third, signature="other", quota=1500).save(third, UNUSED)
    assert not (tmp_path / "kv" / "sig").exists() or not world.files("sig")


@pytest.mark.parametrize("failure", [TimeoutError(), ConnectionResetError(), answer(500, {}), answer(200, text="no")])
async def test_bug_28_a_save_that_fails_holds_nobody_up(tmp_path: Path, failure: Any) -> None:
    """Errors end it, each call has a limit, and a busy slot is not even asked."""
    server = Slots(10, 20)
    server.busy = {1}
    server.fail_with = failure
    await World(tmp_path).open(server).save(server, UNUSED)
    assert server.actions == ["save 0"]
    assert all(0 < limit_s <= 30 for limit_s in server.limits_s)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("error: invalid argument: --no-mmap", "--load-mode none"),
        ('error while handling argument "-fa": unknown value for --flash-attn', "-fa on"),
    ],
)
def test_bug_29_the_documented_options_are_explained(line: str, said: str) -> None:
    """A current server ends at them; the answer says what to write instead."""
    assert said in (LlamaCppBackend(settings("llamacpp")).hint_for([line]) or "")
