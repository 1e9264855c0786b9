"""Bugs 14 to 20 of the prototype (backends.md section 11): A1111, Forge, ComfyUI. Each test would fail with its bug."""

import sys
from pathlib import Path

import pytest

from juggler.backends.base import Address
from juggler.backends.comfyui import ComfyUiBackend
from juggler.backends.sdwebui import SdWebuiBackend
from tests.e2e.support import exclusive, running, web
from tests.e2e.test_comfyui import comfyui, finished, happened, queued, residency, sleep
from tests.e2e.test_sdwebui import images, other, paint, starts
from tests.unit.backends.fake_caller import FakeCaller, answer, settings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-ins look into /proc")


def test_bug_14_15_a_started_web_ui_is_unloaded_by_its_own_address(tmp_path: Path) -> None:
    """The call arrives (no second scheme in its URL), and it is made for one that we started."""
    with running(tmp_path, exclusive(a=images(tmp_path), b=web())) as juggler:
        assert paint(juggler).status == 200
        other(juggler)
        assert residency(juggler) == "unloaded"
        assert happened(tmp_path).count("unloaded") == 1
        assert starts(tmp_path) == 1


def test_bug_16_the_checkpoint_is_back_before_the_next_picture(tmp_path: Path) -> None:
    """A1111 answers 500 where it was not reloaded."""
    with running(tmp_path, exclusive(a=images(tmp_path), b=web())) as juggler:
        assert paint(juggler).status == 200
        other(juggler)
        assert paint(juggler).status == 200
        assert happened(tmp_path).count("reloaded") == 1


def test_bug_17_each_unload_is_really_made(tmp_path: Path) -> None:
    """Not only the first: what forwarded requests loaded is known."""
    with running(tmp_path, exclusive(a=images(tmp_path), b=web())) as juggler:
        for turn in (1, 2, 3):
            assert paint(juggler).status == 200
            other(juggler)
            assert happened(tmp_path).count("unloaded") == turn


def test_bug_18_both_flags_are_sent_and_the_effect_is_waited_for(tmp_path: Path) -> None:
    """``/free`` answers at once and works later: B does not start before the memory is free."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path), b=web("--name", "b"))) as juggler:
        finished(juggler, queued(juggler, sleep(0.3)))
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        order = happened(tmp_path)
        assert order.index("free free_memory+unload_models") < order.index("freed")
        assert residency(juggler) == "unloaded"


async def test_bug_18_a_200_alone_is_no_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device still holds everything: not unloaded, whatever the answer's status was."""
    from juggler.backends import comfyui_memory

    for name in [name for name in vars(comfyui_memory) if name.endswith("_S") and not name.startswith("_")]:
        monkeypatch.setattr(comfyui_memory, name, min(getattr(comfyui_memory, name), 0.05))
    device = {"name": "cuda:0", "type": "cuda", "index": 0, "vram_total": 24 << 30, "vram_free": 4 << 30}
    stats = answer(200, {"system": {}, "devices": [{**device, "torch_vram_total": 20 << 30, "torch_vram_free": 0}]})
    busy = answer(200, {"exec_info": {"queue_remaining": 1}})
    caller = FakeCaller({"GET /system_stats": stats, "GET /prompt": busy, "POST /free": answer(200, text="")})
    assert not await ComfyUiBackend(settings("comfyui")).unload(caller)


def test_bug_19_comfyui_is_started_with_interpreter_script_and_folder(tmp_path: Path) -> None:
    """All three can be said, and the program finds itself in its folder."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path))) as juggler:
        finished(juggler, queued(juggler, sleep(0.0)))
        assert any(line.startswith("start ") for line in happened(tmp_path))


@pytest.mark.parametrize("mode", [(), ("--nowebui",)])
def test_bug_20_the_page_is_kept_and_only_this_machine_listens_to(tmp_path: Path, mode: tuple[str, ...]) -> None:
    """``--nowebui`` is the operator's choice; with it the server must be told its address, or it takes all."""
    script = tmp_path / "webui.sh"
    script.touch(mode=0o755)
    backend = SdWebuiBackend(settings("sdwebui", *mode, binary=str(script)))
    argv = list(backend.plan(Address("127.0.0.1", 5000), {"PATH": "/usr/bin:/bin"}).argv)
    assert ("--nowebui" in argv) == bool(mode)
    if mode:
        assert argv[argv.index("--server-name") + 1] == "127.0.0.1"
    else:
        assert "--api" in argv
