"""Type ``koboldcpp``: command line, settings files, probes, unload, traffic and hints, without a server."""

import asyncio
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from juggler.backends import koboldcpp_admin
from juggler.backends.base import Address, BackendSettings, LaunchPlan, ProbeResult, Response, StopStep
from juggler.backends.koboldcpp import DEFAULT_CONCURRENCY, KoboldCppBackend
from juggler.backends.koboldcpp_options import END_OF_OPTIONS, POSITIONAL, joined, last_value, split
from juggler.errors import BackendError, StartFailed
from juggler.lifecycle.guardian import remove_paths
from juggler.routing.traffic import TrafficClass
from juggler.testing.virtual_time import run_virtual
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings

ADDRESS = Address("127.0.0.1", 9000)
OURS = ["--port", "9000", "--host", "127.0.0.1"]
VERSION = "GET /api/extra/version"
OPTIONS = "GET /api/admin/list_options"
RELOAD = "POST /api/admin/reload_config"
PERF = "GET /api/extra/perf"
MODEL = "GET /api/v1/model"
BOTH = answer(200, ["a.kcpps", "initial_model", "unload_model"])
DONE = answer(200, {"success": True})
REFUSED = answer(200, {"success": False})


def version(*, llm: bool = True, admin: object = 1, **flags: bool) -> Response:
    return answer(200, {"result": "KoboldCpp", "version": "1.116.1", "llm": llm, "admin": admin, **flags})


@pytest.fixture
def program(tmp_path: Path) -> str:
    file = tmp_path / "koboldcpp-linux-x64"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def base(program: str, tmp_path: Path) -> BackendSettings:
    """An instance in ``tmp_path``, with a directory for private files that is not there yet."""
    return replace(settings("koboldcpp", binary=program, cwd=str(tmp_path)), temp_dir=tmp_path / "private" / "files")


def planned(base: BackendSettings, *parameters: str, **environ: str) -> LaunchPlan:
    return KoboldCppBackend(replace(base, parameters=parameters)).plan(ADDRESS, environ)


def words(base: BackendSettings, *parameters: str) -> list[str]:
    return list(planned(base, *parameters).argv[1:])


def copied(plan: LaunchPlan) -> Any:
    """The content of the settings file that the program is given."""
    return json.loads(Path(plan.argv[plan.argv.index("--config") + 1]).read_text())


def unload_of(backend: KoboldCppBackend) -> str:
    """As it is now; it changes with what the backend learns."""
    return backend.capabilities.unload


def write(directory: Path, name: str, **content: object) -> str:
    (directory / name).write_text(json.dumps(content))
    return name


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ("--port", "1"),
        ("--port=1",),
        ("--po", "1"),
        ("--por=1",),
        ("--host", "0.0.0.0"),
        ("--host=",),
        ("--hos", "::"),
        ("--port", "1", "--host", "0.0.0.0", "--port", "2"),
        ("--launch",),
        ("--lau",),
        ("--showgui",),
        ("-p", "hello"),
        ("-phello",),
        ("-p", "- hello"),
        ("--prompt=hello",),
        ("--benchmark",),
        ("--benchmark", "file.csv"),
        ("--cli",),
        ("--remotetunnel",),
        ("--remote",),
        ("--unpack", "folder"),
        ("--analyze", "a.gguf"),
        ("--exportconfig", "file"),
        ("--exporttemplate", "file"),
        ("--version",),
        ("--testmemory",),
        ("--onready", "rm -r x"),
        ("--singleinstance",),
        ("--ssl", "certificate", "key"),
        ("--adminunloadtimeout", "60"),
        ("--help",),
        ("-h",),
    ],
)
def test_what_is_ours_to_say_is_replaced(base: BackendSettings, given: tuple[str, ...]) -> None:
    """Address, windows, tunnels and early ends go in each form argparse reads, and nothing beside them does."""
    line = ["--threads", "4", *given, "--quiet"]
    assert words(base, *line) == ["--threads", "4", "--quiet", *OURS]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["a.gguf", "6000"], ["a.gguf"]),
        (["--threads", "4", "a.gguf", "6000"], ["--threads", "4", "a.gguf"]),
        (["a.gguf", "6000", "--quiet"], ["a.gguf", "--quiet"]),
        (
            ["--usecublas", "normal", "0", "--quiet", "a.gguf", "6000"],
            ["--usecublas", "normal", "0", "--quiet", "a.gguf"],
        ),
        (["--gpulayers", "-1", "a.gguf", "6000"], ["--gpulayers", "-1", "a.gguf"]),
        (["-ngl", "99", "a.gguf", "6000"], ["-ngl", "99", "a.gguf"]),
        (["--useclblast", "0", "0", "a.gguf", "6000"], ["--useclblast", "0", "0", "a.gguf"]),
        (["-ts", "7", "3", "--multiuser", "2", "a.gguf", "6000"], ["-ts", "7", "3", "--multiuser", "2", "a.gguf"]),
        (["-c8192", "a.gguf", "6000"], ["-c8192", "a.gguf"]),
        (["--contextsize=8192", "a.gguf", "6000"], ["--contextsize=8192", "a.gguf"]),
    ],
)
def test_a_positional_port_goes(base: BackendSettings, given: list[str], left: list[str]) -> None:
    """It is the second positional word; which words are values of options is known of each option."""
    assert words(base, *given) == [*left, *OURS]


@pytest.mark.parametrize(
    "given",
    [
        ["--model", "a.gguf", "6000"],  # a second model, or an error of the program's own
        ["-t", "6000", "a.gguf"],
        ["a.gguf", "6000x"],
        ["--lora", "x.gguf", "6000"],
        ["--hordeconfig", "name", "80", "2048"],
        ["--config-of-tomorrow", "a.gguf", "6000"],
        ["--model-of-tomorrow", "x.kcpps"],
        ["--con", "a.gguf"],  # ambiguous: the program says so
        ["--password", "6000", "--adminpassword", "5001"],
        ["--preloadstory", "- a story", "--quiet"],
    ],
)
def test_what_is_not_ours_stays(base: BackendSettings, given: list[str]) -> None:
    """Values that look like ports, and words behind an option that nobody knows yet, are left alone."""
    assert words(base, *given) == [*given, *OURS]


def test_options_end_at_two_dashes(base: BackendSettings) -> None:
    """What follows is positional for argparse, so ours must stand before it."""
    assert words(base, "--quiet", "--", "a.gguf", "6000") == ["--quiet", *OURS, "--", "a.gguf"]


def test_splitting_keeps_every_word() -> None:
    """The groups of a line together are the line."""
    line = ["-m", "a", "b", "-mc", "--model=d", "--mod", "-1", "-", "--new", "x", "", "a b", "--", "--port", "1"]
    groups = split(line)
    assert joined(groups) == line
    assert [group.values for group in groups if group.option == "--model"] == [("a", "b"), ("c",), ("d",)]
    assert last_value(groups, "--model") == "d"
    assert last_value(groups, "--port") is None
    assert [group.option for group in groups[-3:]] == [END_OF_OPTIONS, POSITIONAL, POSITIONAL]


def test_left_out_options_are_told(base: BackendSettings, caplog: pytest.LogCaptureFixture) -> None:
    """Who asked for a tunnel shall not look for it; addresses are replaced without a word."""
    planned(base, "--remotetunnel", "--onready", "x", "--port", "1", "--launch")
    assert "left out of its parameters: --onready, --remotetunnel" in caplog.text
    assert "--launch" not in caplog.text


# -- the program ---------------------------------------------------------------------------------------------------


def test_plan(base: BackendSettings) -> None:
    """No private file without a settings file; no screen to open windows on; logs arrive at once."""
    backend = KoboldCppBackend(replace(base, parameters=("--model", "a.gguf"), env={"CUDA_VISIBLE_DEVICES": "0"}))
    plan = backend.plan(ADDRESS, {"PATH": "/bin", "DISPLAY": ":0", "WAYLAND_DISPLAY": "w"})
    assert plan.argv == (base.binary, "--model", "a.gguf", *OURS)
    assert plan.env == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "PYTHONUNBUFFERED": "1"}
    assert plan.cwd == base.cwd
    assert plan.temp_files == ()
    assert not base.temp_dir.exists()


@pytest.mark.parametrize(
    ("signal", "timeout_s", "ladder"),
    [
        (None, 10.0, (StopStep("SIGINT", 3.0), StopStep("SIGTERM", 3.0))),
        ("SIGQUIT", 10.0, (StopStep("SIGQUIT", 3.0), StopStep("SIGTERM", 3.0))),
        (None, 2.0, (StopStep("SIGINT", 1.0), StopStep("SIGTERM", 1.0))),
    ],
)
def test_stop_ladder(base: BackendSettings, signal: str | None, timeout_s: float, ladder: object) -> None:
    """SIGINT, which Python cannot always handle, and SIGTERM, within ``stop_timeout``."""
    plan = KoboldCppBackend(replace(base, stop_signal=signal, stop_timeout_s=timeout_s)).plan(ADDRESS, {})
    assert plan.stop_ladder == ladder


def test_interpreter_with_script(base: BackendSettings) -> None:
    """The interpreter's own words stay in front; koboldcpp's begin after the script."""
    given = ("-u", "src/koboldcpp.py", "a.gguf", "6000")
    backend = KoboldCppBackend(replace(base, binary=sys.executable, parameters=given))
    assert backend.plan(ADDRESS, {}).argv == (sys.executable, "-u", "src/koboldcpp.py", "a.gguf", *OURS)
    assert backend.version_arguments == ("-u", "src/koboldcpp.py", "--version")
    assert backend.help_arguments == ("-u", "src/koboldcpp.py", "--help")
    assert KoboldCppBackend.version_arguments == ("--version",)
    assert KoboldCppBackend(base).version_arguments == ("--version",)


def test_script_alone(base: BackendSettings, tmp_path: Path) -> None:
    """``koboldcpp.py`` is not executable as it is checked out: a Python beside it runs it, else the one on the PATH."""
    script = tmp_path / "koboldcpp.py"
    script.write_text("#!/usr/bin/env python3\n")
    alone = replace(base, binary="./koboldcpp.py", parameters=("a.gguf", "6000"))
    with pytest.raises(StartFailed, match="no Python") as caught:
        KoboldCppBackend(alone).plan(ADDRESS, {"PATH": str(tmp_path)})
    assert "binary" in (caught.value.hint or "")
    (tmp_path / "python3").symlink_to(sys.executable)
    on_path = KoboldCppBackend(alone).plan(ADDRESS, {"PATH": str(tmp_path)})
    assert on_path.argv == (str(tmp_path / "python3"), str(script), "a.gguf", *OURS)
    beside = tmp_path / "venv" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.symlink_to(sys.executable)
    assert KoboldCppBackend(alone).plan(ADDRESS, {"PATH": str(tmp_path)}).argv[0] == str(beside)
    script.chmod(0o755)
    assert KoboldCppBackend(alone).plan(ADDRESS, {"PATH": str(tmp_path)}).argv == (str(script), "a.gguf", *OURS)


def test_missing_program(base: BackendSettings, tmp_path: Path) -> None:
    """The default program is looked up on the PATH, and its absence is explained."""
    with pytest.raises(StartFailed, match="'koboldcpp' is not on the PATH"):
        KoboldCppBackend(replace(base, binary=None)).plan(ADDRESS, {"PATH": str(tmp_path / "none")})


# -- settings files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["--config", "f.kcpps", "--threads", "4"], ["--threads", "4"]),
        (["--config=f.kcpps"], []),
        (["--conf", "f.kcpps"], []),
        (["--config", "other.kcpps", "--config", "f.kcpps"], []),
        (["--model", "f.kcpps", "--quiet"], ["--quiet"]),
        (["--model=f.kcpps"], []),
        (["-m", "f.kcpps"], []),
        (["-mf.kcpps"], []),
        (["f.kcpps"], []),
        (["f.kcpps", "6000"], []),
        (["--quiet", "f.kcpps", "6000", "--threads", "4"], ["--quiet", "--threads", "4"]),
        (["--", "f.kcpps", "6000"], ["--"]),
    ],
)
def test_settings_files_in_every_position(base: BackendSettings, given: list[str], left: list[str]) -> None:
    """Each is replaced by a private copy with our address; the other words stay."""
    write(Path(base.cwd or ""), "f.kcpps", model_param="b.gguf", port=7000, port_param=7000, host="0.0.0.0")
    plan = planned(base, *given)
    own = plan.argv.index("--port")
    assert list(plan.argv[own : own + 5]) == [*OURS, "--config"]
    assert [*plan.argv[1:own], *plan.argv[own + 6 :]] == left
    content = copied(plan)
    assert (content["port"], content["port_param"], content["host"]) == (9000, 9000, "127.0.0.1")
    assert content["model_param"] == "b.gguf"


def test_copy_keeps_what_is_the_operators(base: BackendSettings, tmp_path: Path) -> None:
    """Everything of the file is there, except what keeps it from being a server of ours; the file is not touched."""
    theirs = {"model_param": "b.gguf", "contextsize": 4096, "gpulayers": -1, "admin": True, "chat": {"a": [1, None]}}
    ours = {"launch": True, "showgui": True, "prompt": "x", "benchmark": "stdout", "onready": "rm", "ssl": ["a", "b"]}
    ours |= {"singleinstance": True, "remotetunnel": True, "cli": True, "unpack": "x", "adminunloadtimeout": 60}
    name = write(tmp_path, "f.kcppt", **theirs, **ours)
    before = (tmp_path / name).read_bytes()
    content = copied(planned(base, name))
    assert {key: content[key] for key in theirs} == theirs
    assert {key for key in ours if content[key]} == set()
    assert content["skiplauncher"] is True
    assert (tmp_path / name).read_bytes() == before


def test_copy_is_private_and_goes_with_the_process(base: BackendSettings, tmp_path: Path) -> None:
    """Passwords are in it: its directory is new, nobody else's, and removed afterwards. Two starts do not collide."""
    name = write(tmp_path, "f.kcpps", model_param="b.gguf", password="secret")
    plans = [planned(base, "--config", name) for _ in range(2)]
    files = [Path(plan.argv[plan.argv.index("--config") + 1]) for plan in plans]
    assert files[0].parent != files[1].parent
    for plan, file in zip(plans, files, strict=True):
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert file.parent.parent == base.temp_dir
        assert plan.temp_files == (str(file.parent),)
        remove_paths(list(plan.temp_files))
    assert list(base.temp_dir.iterdir()) == []


def test_stray_bytes_are_passed_over(base: BackendSettings, tmp_path: Path) -> None:
    """As the program reads them; a byte order mark does no harm either."""
    (tmp_path / "f.kcpps").write_bytes(b'\xef\xbb\xbf{"model_param": "b\xff\xfe.gguf", "comment": "\xc3\xa4"}')
    content = copied(planned(base, "f.kcpps"))
    assert (content["model_param"], content["comment"]) == ("b.gguf", "ä")


def test_literal_model_wins_in_every_version(base: BackendSettings, tmp_path: Path) -> None:
    """Before 2026-05 the file won over ``--model``; without the key in the copy, both versions do the same."""
    name = write(tmp_path, "f.kcpps", model_param="b.gguf", model=["b.gguf"], threads=4)
    assert {"model", "model_param"}.isdisjoint(copied(planned(base, "--config", name, "--model", "a.gguf")))
    assert copied(planned(base, "--config", name, "-m", "a.gguf"))["model_param"] == "b.gguf"
    assert copied(planned(base, "--config", name, "--model=a.gguf"))["model_param"] == "b.gguf"


def test_two_files_stay_two(base: BackendSettings, tmp_path: Path) -> None:
    """``--config`` is read first, a settings file as the model after it: each is copied with our address."""
    write(tmp_path, "one.kcpps", threads=1, model_param="x.gguf", port_param=7000)
    write(tmp_path, "two.kcpps", threads=2, port_param=7001)
    first = copied(planned(base, "--config", "one.kcpps", "--model", "two.kcpps"))
    second = json.loads(Path(first["model_param"]).read_text())
    assert (first["port_param"], second["port_param"]) == (9000, 9000)
    assert (first["threads"], second["threads"]) == (1, 2)
    assert second["model_param"] is None  # else the program would try to load its settings as a model
    write(tmp_path, "one.kcpps", model_param="two.kcpps")
    write(tmp_path, "two.kcpps", model="b.gguf")
    first = copied(planned(base, "--config", "one.kcpps", "--quiet"))
    second = json.loads(Path(first["model_param"]).read_text())
    assert second["model"] == "b.gguf"


@pytest.mark.parametrize(
    ("content", "said", "hint"),
    [
        (None, r"settings file .*/f\.kcpps does not exist", "parameters"),
        (b"{", r"f\.kcpps is not valid JSON", "save it again"),
        (b"[" * 100_000, r"f\.kcpps is not valid JSON", "save it again"),
        (b"[1]", r"f\.kcpps holds no JSON object", "save it again"),
        (b"GGUF\0\0", r"f\.kcpps is not valid JSON", "save it again"),
    ],
)
def test_unusable_files(base: BackendSettings, tmp_path: Path, content: bytes | None, said: str, hint: str) -> None:
    """Which file, what is wrong with it, and what to do, before anything is started or left behind."""
    if content is not None:
        (tmp_path / "f.kcpps").write_bytes(content)
    for given in (["--config", "f.kcpps"], ["f.kcpps"]):
        with pytest.raises(StartFailed, match=said) as caught:
            planned(base, *given)
        assert hint in (caught.value.hint or "")
        assert caught.value.endpoint == "end"
    assert not base.temp_dir.exists()


def test_odd_places(base: BackendSettings, tmp_path: Path) -> None:
    """A directory instead of a file, a forbidden one, and a directory for copies that is a file."""
    (tmp_path / "f.kcpps").mkdir()
    with pytest.raises(StartFailed, match="is not a file"):
        planned(base, "f.kcpps")
    name = write(tmp_path, "g.kcpps", model_param="x")
    base.temp_dir.parent.write_text("")
    with pytest.raises(StartFailed, match="cannot be copied") as caught:
        planned(base, name)
    assert "temp_dir" in (caught.value.hint or "")


def test_too_large_a_file(base: BackendSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model by the name of a settings file is not read into memory."""
    monkeypatch.setattr("juggler.backends.koboldcpp_config.FILE_LIMIT_BYTES", 1024 * 1024)
    with (tmp_path / "f.kcpps").open("wb") as file:
        file.truncate(1024 * 1024 + 1)
    with pytest.raises(StartFailed, match="larger than 1 MiB"):
        planned(base, "f.kcpps")


@pytest.mark.parametrize(
    "given",
    [
        ("--config", "https://user:secret@host/f.kcpps?token=secret"),
        ("--config=http://host/f.kcpps",),
        ("https://host/f.kcpps",),
        ("--model", "https://host/f.kcppt?download=true"),
    ],
)
def test_addresses_are_rejected(base: BackendSettings, given: tuple[str, ...]) -> None:
    """What is downloaded by the program itself cannot be given our port."""
    with pytest.raises(StartFailed, match=r"downloaded from https?://host/f\.kcpp") as caught:
        planned(base, *given)
    assert "download" in (caught.value.hint or "")
    assert "secret" not in caught.value.message


def test_missing_file_may_be_ignored(base: BackendSettings) -> None:
    """``--ignoremissing`` is the program's own word for it."""
    given = ["--config", "none.kcpps", "--model", "a.gguf", "--ignoremissing"]
    assert words(base, *given) == ["--model", "a.gguf", "--ignoremissing", *OURS]


@pytest.mark.parametrize(
    ("parameters", "content"),
    [
        (["--routermode"], None),
        (["--autoswap"], None),
        (["f.kcpps"], {"routermode": True}),
        (["--config", "f.kcpps"], {"autoswapmode": True}),
    ],
)
def test_router_mode_is_rejected(
    base: BackendSettings, tmp_path: Path, parameters: list[str], content: dict[str, object] | None
) -> None:
    """It swaps models by itself, behind our back and on a port of its own."""
    if content is not None:
        write(tmp_path, "f.kcpps", **content)
    with pytest.raises(StartFailed, match="router mode") as caught:
        planned(base, *parameters)
    assert "--routermode" in (caught.value.hint or "")
    assert not base.temp_dir.exists()


def test_router_mode_that_is_off(base: BackendSettings, tmp_path: Path) -> None:
    """Files saved by the window hold every key."""
    assert planned(base, write(tmp_path, "f.kcpps", routermode=False, autoswapmode=None)).temp_files


# -- passwords and capabilities ------------------------------------------------------------------------------------


def test_secrets(base: BackendSettings, tmp_path: Path) -> None:
    """Every password the program prints at its start, in clear and as Python writes it; and no empty or tiny one."""
    write(tmp_path, "f.kcpps", adminpassword="in the file", password=None, hordekey="0000")
    given = ("--password", "it's\ta secret", "--config", "f.kcpps")
    backend = KoboldCppBackend(replace(base, parameters=given, env={"KCPP_PASSWORD": "environment", "OTHER": "x"}))
    assert "in the file" not in backend.secrets
    backend.plan(ADDRESS, {"KCPP_ADMINPASSWORD": "ab"})
    assert set(backend.secrets) == {"in the file", "0000", "environment", "it's\ta secret", "it's\\ta secret"}
    assert list(map(len, backend.secrets)) == sorted(map(len, backend.secrets), reverse=True)


@pytest.mark.parametrize(
    ("parameters", "content", "guess", "expected"),
    [
        ([], None, "none", "none"),
        (["--admin"], None, "async", "async"),
        (["--admi"], None, "none", "none"),  # ambiguous
        (["--config", "f.kcpps"], {"admin": True}, "none", "async"),
        (["f.kcpps"], {"admin": True}, "none", "async"),
        (["f.kcpps", "--admin"], {"admin": False}, "async", "async"),
        (["f.kcpps"], {"admin": False}, "none", "none"),
    ],
)
def test_soft_unload_is_known_from_the_settings(
    base: BackendSettings,
    tmp_path: Path,
    parameters: list[str],
    content: dict[str, object] | None,
    guess: str,
    expected: str,
) -> None:
    """Before the server can be asked: from the command line, then from the files as well."""
    if content is not None:
        write(tmp_path, "f.kcpps", **content)
    backend = KoboldCppBackend(replace(base, parameters=tuple(parameters)))
    assert unload_of(backend) == guess
    backend.plan(ADDRESS, {})
    assert unload_of(backend) == expected
    assert backend.capabilities.reload == ("explicit" if expected == "async" else "start")
    assert backend.capabilities.unload_needs_idle
    assert backend.capabilities.work_outlives_request
    assert not backend.capabilities.answers_when_unloaded
    off = KoboldCppBackend(replace(base, parameters=tuple(parameters), model_unloading=False))
    off.plan(ADDRESS, {})
    assert off.capabilities.unload == "none"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ((), DEFAULT_CONCURRENCY),
        (("--multiuser", "0"), 1),
        (("--multiuser", "2"), 2),
        (("--multiuser",), DEFAULT_CONCURRENCY),
        (("--multiuser=20",), DEFAULT_CONCURRENCY),
        (("--parallelrequests", "8"), 8),
        (("--contbatch", "8", "--multiuser", "6"), 6),
        (("--multiuser", "0", "--parallelrequests", "8"), 8),
        (("--multiuser", "many"), DEFAULT_CONCURRENCY),
    ],
)
def test_concurrency(parameters: tuple[str, ...], expected: int) -> None:
    """As many as it takes without a refusal, and a few at least where it has a queue."""
    assert KoboldCppBackend(settings("koboldcpp", *parameters)).default_concurrency == expected


# -- probes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (version(), ProbeResult.READY),
        (version(llm=False), ProbeResult.READY),
        (answer(200, {"result": "KoboldCpp", "version": "1.76"}), ProbeResult.READY),
        (answer(200, {"result": "KoboldAI"}), ProbeResult.WRONG_SERVER),
        (answer(200, ["x"]), ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), ProbeResult.WRONG_SERVER),
        (answer(404, text=""), ProbeResult.WRONG_SERVER),
        (answer(401, text=""), ProbeResult.NOT_YET),
        (answer(502, text="<html>KoboldCpp is not available."), ProbeResult.NOT_YET),
        (ConnectionRefusedError(), ProbeResult.NOT_YET),
        (TimeoutError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """Its own version, and nothing it imitates; the page of its router says "not yet"."""
    assert await KoboldCppBackend(settings("koboldcpp")).probe(FakeCaller({VERSION: response})) is expected


async def test_identify() -> None:
    """By its own route, with its version."""
    backend = KoboldCppBackend(settings("koboldcpp"))
    assert await backend.identify(FakeCaller({VERSION: version()})) == "KoboldCpp 1.116.1"
    assert await backend.identify(FakeCaller({VERSION: answer(404, text="")})) is None
    with pytest.raises(ConnectionRefusedError):
        await backend.identify(FakeCaller({}))


@pytest.mark.parametrize(
    ("perf", "expected"),
    [
        ({"idle": 1, "queue": 0}, False),
        ({"idle": 1}, False),
        ({"idle": 0, "queue": 0}, True),
        ({"idle": 1, "queue": 2}, True),
    ],
)
async def test_busy(perf: dict[str, int], expected: bool) -> None:
    """Idle, and nobody in its queue."""
    assert await KoboldCppBackend(settings("koboldcpp")).busy(FakeCaller({PERF: answer(200, perf)})) is expected


async def test_busy_that_cannot_be_told() -> None:
    """An answer of another kind is an error; silence of a server with other clients is work of theirs."""
    backend = KoboldCppBackend(settings("koboldcpp"))
    for response in (answer(200, {}), answer(500, text="oops"), answer(200, [1])):
        with pytest.raises(BackendError, match="whether it works"):
            await backend.busy(FakeCaller({PERF: response}))
    with pytest.raises(TimeoutError):
        await backend.busy(FakeCaller({PERF: TimeoutError()}))
    backend.attached = True
    assert await backend.busy(FakeCaller({PERF: TimeoutError()}))
    with pytest.raises(ConnectionRefusedError):
        await backend.busy(FakeCaller({}))


# -- unload and wake -----------------------------------------------------------------------------------------------


class Workers:
    """Answers ``/api/extra/version`` with one item of a script after the other, the last one for ever."""

    def __init__(self, *script: Answer, **more: Answer) -> None:
        self.script = list(script)
        self.caller = FakeCaller({OPTIONS: BOTH, RELOAD: DONE, VERSION: self.next, **more})

    def next(self, body: bytes | None) -> Response:
        item = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(item, BaseException):
            raise item
        assert isinstance(item, Response)
        return item

    @property
    def orders(self) -> list[object]:
        """Bodies of the orders given."""
        return [json.loads(body or b"") for body in self.caller.bodies if body is not None]


OLD, GONE, EMPTY = version(), ConnectionRefusedError(), version(llm=False)
LATE = TimeoutError()


def backend_with_admin(*parameters: str, **more: Any) -> KoboldCppBackend:
    return KoboldCppBackend(settings("koboldcpp", "--admin", *parameters, **more))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ((OLD, OLD, OLD, GONE, GONE, EMPTY), True),
        ((OLD, EMPTY), True),
        ((OLD, OLD, ConnectionResetError(), LATE, EMPTY), True),
        ((OLD, OLD, answer(502, text="<html>"), EMPTY), True),
        ((OLD, OLD, GONE, OLD), False),
        ((OLD, OLD, GONE, answer(200, text="<html>"), EMPTY), True),
        ((OLD,), False),
        ((OLD, LATE), False),
        ((OLD, GONE), False),
    ],
)
def test_unload_is_verified_with_a_new_worker(script: tuple[Answer, ...], expected: bool) -> None:
    """The old worker answers for a while; only one without models proves it, and one with models disproves it."""
    workers = Workers(*script)

    async def scenario() -> None:
        assert await backend_with_admin().unload(workers.caller) is expected
        assert workers.orders == [{"filename": "unload_model"}]

    run_virtual(scenario())


def test_unload_of_other_kinds_of_models() -> None:
    """A server that paints has no text model before and after: what it had is what must be gone."""
    paints = version(llm=False, txt2img=True)
    workers = Workers(paints, paints, GONE, EMPTY)

    async def scenario() -> None:
        assert await backend_with_admin().unload(workers.caller)
        assert workers.caller.calls.count(VERSION) == 4

    run_virtual(scenario())


def test_nothing_loaded_is_unloaded() -> None:
    """Then nothing is ordered."""
    workers = Workers(EMPTY)
    run_virtual(_assert_unloads(workers, expected=True))
    assert workers.orders == []


async def _assert_unloads(workers: Workers, *, expected: bool) -> None:
    assert await backend_with_admin().unload(workers.caller) is expected


@pytest.mark.parametrize(
    ("answers", "orders"),
    [
        ({VERSION: version(admin=0)}, 0),
        ({VERSION: version(admin=None)}, 0),
        ({VERSION: answer(404, text="")}, 0),
        ({OPTIONS: answer(200, [])}, 0),
        ({OPTIONS: answer(200, ["x.kcpps", "unload_model"])}, 0),
        ({OPTIONS: answer(404, text="")}, 0),
        ({OPTIONS: answer(200, text="<html>")}, 0),
        ({RELOAD: REFUSED}, 1),
        ({RELOAD: answer(500, text="")}, 1),
        ({RELOAD: answer(200, text="")}, 1),
    ],
)
def test_unload_that_is_refused(answers: dict[str, Answer], orders: int) -> None:
    """No administration, a wrong password, an old version, or ``{"success":false}``: the process must be stopped."""
    workers = Workers(OLD)
    workers.caller.answers.update(answers)
    run_virtual(_assert_unloads(workers, expected=False))
    assert len(workers.orders) == orders


async def test_unload_that_is_switched_off() -> None:
    """Nothing is asked then."""
    caller = FakeCaller({})
    assert not await backend_with_admin(model_unloading=False).unload(caller)
    assert caller.calls == []


@pytest.mark.parametrize(
    ("script", "orders"),
    [((EMPTY, EMPTY, EMPTY, GONE, GONE, OLD), 1), ((EMPTY, OLD), 1), ((OLD,), 0)],
)
def test_wake(script: tuple[Answer, ...], orders: int) -> None:
    """Back when the worker has its models; at once if the manager brought them back by itself."""
    workers = Workers(*script)

    async def scenario() -> None:
        await backend_with_admin().wake(workers.caller)
        assert workers.orders == [{"filename": "initial_model"}] * orders

    run_virtual(scenario())


@pytest.mark.parametrize("script", [(EMPTY, EMPTY, GONE, EMPTY), (EMPTY,), (EMPTY, GONE)])
def test_wake_that_fails(script: tuple[Answer, ...]) -> None:
    """A new worker without models, or none before the start's time limit."""

    async def scenario() -> None:
        with pytest.raises(BackendError, match="end: its koboldcpp server did not load its model again"):
            await backend_with_admin().wake(Workers(*script).caller)

    run_virtual(scenario())
    refused = Workers(EMPTY, **{RELOAD: REFUSED})

    async def refusal() -> None:
        with pytest.raises(BackendError, match="did not load"):
            await backend_with_admin().wake(refused.caller)

    run_virtual(refusal())


def test_unload_stays_within_its_limit() -> None:
    """The supervisor gives a minute; all the calls together take less."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await backend_with_admin().unload(Workers(OLD).caller)
        return loop.time() - began

    waited_s = run_virtual(scenario())
    assert 30 < waited_s < 60 - 4 * koboldcpp_admin.CALL_LIMIT_S


@pytest.mark.parametrize(
    ("parameters", "env", "header"),
    [
        (("--adminpassword", "pass"), {}, "Bearer pass"),
        (("--adminpassword=pass",), {"KCPP_ADMINPASSWORD": "other"}, "Bearer pass"),
        ((), {"KCPP_ADMINPASSWORD": "env"}, "Bearer env"),
        (("--config", "{file}"), {}, "Bearer file"),
        (("--config", "none.kcpps", "--adminpassword", "pass"), {}, "Bearer pass"),
        ((), {}, None),
    ],
)
async def test_attached_servers_get_the_password_of_the_settings(
    tmp_path: Path, parameters: tuple[str, ...], env: dict[str, str], header: str | None
) -> None:
    """Nothing is planned for them; what the operator wrote down counts, a file that is not there says nothing."""
    file = tmp_path / write(tmp_path, "f.kcpps", adminpassword="file")
    given = tuple(word.replace("{file}", str(file)) for word in parameters)
    backend = KoboldCppBackend(settings("koboldcpp", *given, attach_to="http://127.0.0.1:1", env=env))
    backend.attached = True
    assert unload_of(backend) == "none"
    caller = Workers(version(admin=2)).caller
    await backend.after_start(caller)
    assert caller.headers[-1].get("Authorization") == header
    assert unload_of(backend) == "async"


async def test_after_start_learns_what_the_server_can_do(caplog: pytest.LogCaptureFixture) -> None:
    """Without the routes, or refused by them, there is no soft unload, and the reason is told once it is one."""
    backend = backend_with_admin()
    await backend.after_start(FakeCaller({VERSION: version(admin=0)}))
    assert unload_of(backend) == "none"
    assert not caplog.records
    await backend.after_start(FakeCaller({VERSION: version(admin=2), OPTIONS: answer(200, [])}))
    assert unload_of(backend) == "none"
    assert "--adminpassword" in caplog.text
    await backend.after_start(FakeCaller({VERSION: version(), OPTIONS: BOTH}))
    assert unload_of(backend) == "async"
    backend.attached = True
    await backend.after_start(FakeCaller({VERSION: EMPTY, OPTIONS: BOTH}))
    assert "has no model loaded" in caplog.text


def test_another_model_after_the_wake_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """An attached server is woken with what it was started with, which need not be what somebody had it load."""
    backend = backend_with_admin(attach_to="http://127.0.0.1:1")
    backend.attached = True
    workers = Workers(OLD, GONE, EMPTY, **{MODEL: answer(200, {"result": "koboldcpp/theirs"})})

    async def scenario() -> None:
        assert await backend.unload(workers.caller)
        workers.script = [EMPTY, GONE, OLD]
        workers.caller.answers[MODEL] = answer(200, {"result": "koboldcpp/ours"})
        with caplog.at_level(logging.WARNING):
            await backend.wake(workers.caller)

    run_virtual(scenario())
    assert "held koboldcpp/theirs" in caplog.text
    assert "now holds koboldcpp/ours" in caplog.text


# -- traffic and hints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("POST /api/v1/generate", TrafficClass.WORK),
        ("POST /api/extra/generate/stream", TrafficClass.WORK),
        ("POST /v1/chat/completions", TrafficClass.WORK),
        ("POST /v1/completions", TrafficClass.WORK),
        ("POST /api/extra/transcribe", TrafficClass.WORK),
        ("POST /api/extra/tts", TrafficClass.WORK),
        ("POST /api/extra/embeddings", TrafficClass.WORK),
        ("POST /api/extra/tokencount", TrafficClass.WORK),
        ("POST /sdapi/v1/txt2img", TrafficClass.WORK),
        ("POST /api/generate", TrafficClass.WORK),
        ("POST /api/chat", TrafficClass.WORK),
        ("POST /api/extra/music/generate", TrafficClass.WORK),
        ("POST /prompt", TrafficClass.WORK),
        ("GET /voice/vits", TrafficClass.WORK),
        ("GET /noscript", TrafficClass.WORK),
        ("GET /", TrafficClass.START),
        ("GET /lcpp/", TrafficClass.START),
        ("GET /sdui", TrafficClass.START),
        ("GET /musicui/", TrafficClass.START),
        ("HEAD /", TrafficClass.LIGHT),
        ("OPTIONS /api/v1/generate", TrafficClass.LIGHT),
        ("GET /api/extra/version", TrafficClass.LIGHT),
        ("GET /api/v1/model", TrafficClass.LIGHT),
        ("GET /v1/models", TrafficClass.LIGHT),
        ("GET /api/tags", TrafficClass.LIGHT),
        ("GET /api/extra/perf", TrafficClass.LIGHT),
        ("GET /ws", TrafficClass.LIGHT),
        ("GET /manifest.json", TrafficClass.LIGHT),
        ("GET /api/admin/list_options", TrafficClass.LIGHT),
        ("POST /api/extra/generate/check", TrafficClass.LIGHT),
        ("POST /api/extra/abort", TrafficClass.LIGHT),
        ("POST /api/extra/multiplayer/status", TrafficClass.LIGHT),
        ("POST /api/show", TrafficClass.LIGHT),
        ("POST /api/admin/reload_config", TrafficClass.BLOCKED),
        ("POST /api/admin/reload_configuration", TrafficClass.BLOCKED),
        ("POST /lite/api/admin/save_state", TrafficClass.BLOCKED),
        ("POST /api/%61dmin/reload_config", TrafficClass.BLOCKED),
        ("POST //api//admin/reload_config", TrafficClass.BLOCKED),
        ("POST /api/extra/shutdown", TrafficClass.BLOCKED),
    ],
)
def test_traffic(request_line: str, expected: TrafficClass) -> None:
    """Section 8 of backends.md: generations work, pages start, polls do neither, and nobody else administrates."""
    method, path = request_line.encode().split()
    assert KoboldCppBackend.traffic.classify(method, path) is expected
    assert KoboldCppBackend.has_ui


def test_answers_about_the_moment_are_not_kept() -> None:
    """Progress and load of an hour ago are lies; names and versions are not."""
    volatile = {b"/api/extra/perf", b"/api/extra/generate/check", b"/api/extra/last_logprobs", b"/history/1", b"/view"}
    for path in (*volatile, b"/api/extra/version", b"/api/v1/model", b"/v1/models", b"/sdapi/v1/sd-models"):
        assert KoboldCppBackend.traffic.decide(b"GET", path).volatile is (path in volatile), path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Cannot find text model file: /models/a.gguf", "/models/a.gguf does not exist"),
        ("Cannot find mmproj file: p.gguf", "its mmproj does not exist (p.gguf)"),
        ("Cannot find tts model files: a or b", "its tts model does not exist (a or b)"),
        ("Cannot find Music LLM model file!", "Music LLM model"),
        ("Could not load text model: /models/a.gguf", "the text model could not be loaded"),
        ("Could not load Embeddings model!", "the Embeddings model could not be loaded"),
        ("llama_model_load: error loading model: unknown model architecture: 'x'", "too old"),
        ("File selection GUI unsupported.", "no model is named"),
        ("Specified kcpp config file invalid or not found.", "settings file"),
        ("KoboldCPP couldn't locate any backends to use (i.e Default, Vulkan, CUDA).", "run `make`"),
        ("ERROR: Both IPv4 and IPv6 cannot bind. Server features will not work.", "port"),
        ("koboldcpp.py: error: unrecognized arguments: --mirostat", "does not know --mirostat"),
        ("koboldcpp.py: error: argument port_param: not allowed with argument --port", "behind the model"),
        ("koboldcpp: error: argument model_param: not allowed with argument --model/-m", "two models"),
        ("koboldcpp.py: error: argument --threads/-t: expected one argument", "argument --threads/-t"),
        ("koboldcpp.py: error: ambiguous option: --con could match --config, --contextsize", "could match"),
        ("python: can't open file '/x/koboldcpp.py': [Errno 2] No such file or directory", "cwd"),
        ("[PYI-77:ERROR] Could not create temporary directory!", "TMPDIR"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "memory"),
    ],
)
def test_hints(line: str, said: str) -> None:
    """Known failures of the program, each with what to do about it."""
    assert said in (KoboldCppBackend(settings("koboldcpp")).hint_for(["Welcome to KoboldCpp", line]) or "")


def test_no_hint() -> None:
    """The line about IPv6 is normal, and nothing to worry about."""
    lines = ["IPv6 Socket Failed to Bind. IPv6 will be unavailable.", "Exiting"]
    assert KoboldCppBackend(settings("koboldcpp")).hint_for(lines) is None
