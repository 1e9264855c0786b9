"""Judging one backend: its program, options, files, and the server it attaches to."""

import asyncio
import datetime
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from juggler.backends import registry
from juggler.backends.base import BackendSettings, Caller
from juggler.doctor import backends
from juggler.doctor.backends import Case, examine_backend
from juggler.doctor.findings import Finding, Grade
from juggler.ids import InstanceId
from juggler.lifecycle import attaching
from juggler.tls import ServerTls, server_context
from tests.certificates import authority, make_pair, stranger, write_authority
from tests.ports import free_port
from tests.unit.doctor.tools import answering, install
from tests.unit.survey.gguf_files import write_gguf

KOBOLD = {"/api/extra/version": '{"result":"KoboldCpp","version":"1.116.1"}', "/api/version": '{"version":"0.7.0"}'}


def settings(kind: str, name: str = "E", *parameters: str, **more: Any) -> BackendSettings:
    return BackendSettings(InstanceId(f"S/{name}"), name, kind, parameters=parameters, **more)


async def examine(kind: str, *instances: BackendSettings) -> list[Finding]:
    case = Case("b", kind, instances)
    section = await asyncio.wait_for(examine_backend(case, dict(os.environ), asyncio.Semaphore(4)), 60)
    assert section.title == f'Backend "b" ({kind})'
    return list(section.findings)


def judged(kind: str, *instances: BackendSettings) -> list[tuple[Grade, str]]:
    return [(one.grade, one.message) for one in asyncio.run(examine(kind, *instances))]


# --- the program ---------------------------------------------------------------------------------------------------


def test_a_healthy_program(tmp_path: Path) -> None:
    """Version, options and files of all its endpoints; the program is asked once for each."""
    binary = str(install(tmp_path / "llama-server"))
    write_gguf(tmp_path / "m.gguf")
    env = {"FAKE_CALLS": str(tmp_path / "calls"), "FAKE_SERVED": str(tmp_path / "served")}
    line = ("-m", str(tmp_path / "m.gguf"), "-ngl", "99")
    found = judged("llamacpp", *(settings("llamacpp", name, *line, binary=binary, env=env) for name in ("A", "B")))
    assert found == [
        (Grade.OK, f"{binary}: version: 7777 (abcdef0)"),
        (Grade.OK, "its help lists every option that is used"),
        (Grade.OK, "A: 1 file readable, 4.0 KiB"),
        (Grade.OK, "B: 1 file readable, 4.0 KiB"),
    ]
    assert sorted((tmp_path / "calls").read_text().split()) == ["--help", "--version"]
    assert not (tmp_path / "served").exists()


def test_options_that_are_gone(tmp_path: Path) -> None:
    """The seed's own example on a current build: each option once, with the endpoints that use it and what to write."""
    binary = str(install(tmp_path / "llama-server"))
    found = asyncio.run(
        examine(
            "llamacpp",
            settings("llamacpp", "A", "--no-mmap", "-ngl", "99", binary=binary),
            settings("llamacpp", "B", "--no-mmap", "--gone", binary=binary),
        )
    )
    options = [one for one in found if "no option" in one.message]
    assert [(one.grade, one.message) for one in options] == [
        (Grade.PROBLEM, "--no-mmap is no option of this build (every endpoint)"),
        (Grade.PROBLEM, "--gone is no option of this build (B)"),
    ]
    assert "--load-mode" in (options[0].hint or "")


def test_options_of_an_argparse_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those may be hidden from the help: a warning, not a problem."""
    monkeypatch.setattr(registry.BACKENDS["command"], "version_arguments", ("--version",))
    monkeypatch.setattr(registry.BACKENDS["command"], "help_arguments", ("--help",))
    binary = str(install(tmp_path / "server"))
    found = judged("command", settings("command", "A", "--gone=1", "--gpu-lay", "3", binary=binary))
    assert (Grade.WARNING, "--gone is not in the program's help (A)") in found
    assert not any("gpu-lay" in message for _, message in found)


@pytest.mark.parametrize(
    ("env", "grade", "words"),
    [
        ({"FAKE_HABIT": "hang"}, Grade.WARNING, "did not tell its version within"),
        ({"FAKE_HABIT": "flood"}, Grade.WARNING, "did not tell its version within"),
        ({"FAKE_HABIT": "dies"}, Grade.PROBLEM, "ends with signal 4"),
        ({"FAKE_STATUS": "127", "FAKE_VERSION": "no"}, Grade.PROBLEM, "ends with status 127"),
        ({"FAKE_STATUS": "1", "FAKE_VERSION": "no"}, Grade.WARNING, "ends with status 1"),
        ({"FAKE_VERSION": "no"}, Grade.OK, "runs, and tells no version"),
        (
            {
                "FAKE_STATUS": "1",
                "FAKE_VERSION": "",
                "FAKE_FIRST": "llama-server: error while loading shared libraries: libcudart.so.12: cannot open",
            },
            Grade.PROBLEM,
            "ends with status 1",
        ),
    ],
)
def test_programs_that_do_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], grade: Grade, words: str
) -> None:
    """Each failure is graded by what it means for a start; none takes longer than the limit."""
    if env.get("FAKE_HABIT") in ("hang", "flood"):
        monkeypatch.setattr(backends, "RUN_LIMIT_S", 0.5)
    binary = str(install(tmp_path / "llama-server"))
    finding = asyncio.run(examine("llamacpp", settings("llamacpp", binary=binary, env=env)))[0]
    assert finding.grade is grade, finding
    assert words in finding.message
    if "shared libraries" in env.get("FAKE_FIRST", ""):
        assert "LD_LIBRARY_PATH" in (finding.hint or "")


def test_help_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Not checked" is said, rather than that every option is unknown."""
    binary = str(install(tmp_path / "llama-server"))
    monkeypatch.setattr(registry.BACKENDS["llamacpp"], "help_arguments", ("--version",))
    found = judged("llamacpp", settings("llamacpp", "E", "-c", "1", binary=binary))
    assert (Grade.NOTE, "its options: not checked, `--version` did not help (it printed no list of options)") in found
    monkeypatch.setattr(registry.BACKENDS["llamacpp"], "help_arguments", None)
    found = judged("llamacpp", settings("llamacpp", "E", "-c", "1", binary=binary))
    assert (Grade.NOTE, "its options: not checked, the program does not list them quickly") in found


def test_programs_that_cannot_be_asked(tmp_path: Path) -> None:
    """A script whose interpreter has gone is told even where nothing is run."""
    moved = tmp_path / "server"
    moved.write_text("#!/gone/venv/bin/python\n")
    moved.chmod(0o755)
    (finding, *_) = judged("command", settings("command", binary=str(moved)))
    assert finding == (Grade.PROBLEM, f"{moved} needs /gone/venv/bin/python, which does not exist")
    fine = install(tmp_path / "fine")
    (finding, *_) = judged("command", settings("command", binary=str(fine)))
    assert finding[0] is Grade.OK
    assert "not checked" in finding[1]
    (finding, *_) = judged("llamacpp", settings("llamacpp", binary=str(moved)))
    assert finding[0] is Grade.PROBLEM
    assert "interpreter" in finding[1]


def test_what_check_has_said_is_not_said_again(tmp_path: Path) -> None:
    """A missing program or working directory is a problem of the configuration already."""
    (finding,) = judged("llamacpp", settings("llamacpp", binary=str(tmp_path / "none")))
    assert finding[0] is Grade.NOTE
    binary = str(install(tmp_path / "llama-server"))
    (finding,) = judged("llamacpp", settings("llamacpp", binary=binary, cwd=str(tmp_path / "gone")))
    assert finding[0] is Grade.NOTE


def test_backends_that_are_not_examined() -> None:
    """Unused ones, settings that a module refuses, and types with nothing to check."""
    section = asyncio.run(examine_backend(Case("demo", "demo", ()), {}, asyncio.Semaphore(1)))
    assert section.title == 'Backend "demo"'
    assert section.findings[0].message == "no endpoint uses it: not looked at"
    assert judged("demo", settings("demo")) == [(Grade.NOTE, "nothing to check for this type")]
    assert judged("unheard", settings("unheard"))[0][0] is Grade.PROBLEM


# --- files and targets ---------------------------------------------------------------------------------------------


def test_files_on_a_dead_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that never returns costs its limit, and is told."""
    monkeypatch.setattr(backends, "FILES_LIMIT_S", 0.05)
    monkeypatch.setattr(backends, "file_findings", lambda settings: __import__("time").sleep(1))
    (finding,) = judged("demo", settings("demo"))
    assert finding[0] is Grade.WARNING
    assert "could not be looked at" in finding[1]


async def attach(answers: Mapping[str, str] | None, kind: str = "ollama", **more: Any) -> list[Finding]:
    if answers is None:
        return await examine(kind, settings(kind, attach_to=f"http://127.0.0.1:{free_port()}", **more))
    seen: list[str] = []
    async with answering(answers, seen) as port:
        found = await examine(kind, settings(kind, attach_to=f"http://127.0.0.1:{port}", **more))
    assert all(line.startswith(("GET ", "HEAD ")) for line in seen), "nothing is changed"
    return found


def test_targets_that_are_what_they_should_be() -> None:
    """Named, with its version."""
    (finding,) = asyncio.run(attach({"/api/version": '{"version":"0.33.0"}', "/": "Ollama is running"}))
    assert finding.grade is Grade.OK
    assert "0.33.0" in finding.message


def test_targets_that_are_not_there(tmp_path: Path) -> None:
    """A problem, unless the juggler could start its own."""
    (finding,) = asyncio.run(attach(None))
    assert finding.grade is Grade.PROBLEM
    assert "nothing answers" in finding.message
    binary = str(install(tmp_path / "ollama"))
    found = asyncio.run(attach(None, binary=binary))
    assert [one.grade for one in found if "nothing answers" in one.message] == [Grade.NOTE]


def test_an_imitator_is_named() -> None:
    """koboldcpp answers ollama's question for a version; it is not taken for ollama."""
    (finding,) = asyncio.run(attach(KOBOLD))
    assert finding.grade is Grade.PROBLEM
    assert "1.116.1" in finding.message
    assert "koboldcpp" in (finding.hint or "")


def test_targets_of_another_program() -> None:
    """A known one is named; an unknown one is at least doubted."""
    known = {"/api/version": '{"version":"0.33.0"}', "/": "Ollama is running"}
    (finding,) = asyncio.run(attach(known, "comfyui"))
    assert finding.grade is Grade.PROBLEM
    assert "0.33.0" in finding.message
    (finding,) = asyncio.run(attach({"/": "<html>"}))
    assert finding.grade in (Grade.PROBLEM, Grade.WARNING)


@pytest.mark.parametrize(("sleeping", "grades"), [("", ["ok", "warning"]), ('{"is_sleeping":false}', ["ok"])])
def test_a_vllm_that_was_started_by_hand(sleeping: str, grades: list[str]) -> None:
    """Without its development routes it holds its memory for ever."""
    answers = {"/health": "", "/version": '{"version":"0.15.0"}', **({"/is_sleeping": sleeping} if sleeping else {})}
    found = asyncio.run(attach(answers, "vllm"))
    assert [finding.grade.value for finding in found] == grades
    assert sleeping or "--enable-sleep-mode" in (found[-1].hint or "")


def test_targets_of_type_command() -> None:
    """Any server will do, if it is ready."""
    (finding,) = asyncio.run(attach({"/": "hello"}, "command"))
    assert finding.grade is Grade.OK
    (finding,) = asyncio.run(attach({"/": "hello"}, "command", ready_path="/ready"))
    assert finding.grade is Grade.WARNING


def test_one_target_is_asked_once() -> None:
    """However many instances name it."""

    async def body() -> list[Finding]:
        async with answering({"/api/version": '{"version":"0.33.0"}'}) as port:
            url = f"http://127.0.0.1:{port}"
            both = [settings("ollama", name, attach_to=url) for name in ("A", "B")]
            return await examine("ollama", *both)

    assert len(asyncio.run(body())) == 1


# --- targets behind TLS ---------------------------------------------------------------------------------------------

OLLAMA = {"/api/version": '{"version":"0.33.0"}', "/": "Ollama is running"}


async def attach_securely(server: ssl.SSLContext, ca: str | None = None, *, verify: bool = True) -> Finding:
    """What is said of an attached ollama behind ``https://localhost``."""
    async with answering(OLLAMA, context=server) as port:
        tls = ServerTls("localhost", f"localhost:{port}", ca, verify)
        (finding,) = await examine(
            "ollama", settings("ollama", attach_to=f"https://localhost:{port}", attach_tls=tls, model_unloading=False)
        )
        return finding


@pytest.mark.parametrize("verify", [True, False])
def test_a_target_that_proves_itself(tmp_path: Path, verify: bool) -> None:
    """By an authority that is named, or to somebody who does not ask."""
    pair = make_pair(tmp_path, by=None if verify else stranger())
    ca = write_authority(tmp_path) if verify else None
    finding = asyncio.run(attach_securely(server_context(*pair), ca, verify=verify))
    assert finding.grade is Grade.OK
    assert "0.33.0" in finding.message


@pytest.mark.parametrize(
    ("names", "stranger_signs", "age_days", "ca", "why", "hint"),
    [
        (("localhost",), True, 0, "ca.pem", "authority that is not trusted", "put the certificate of its authority"),
        (("elsewhere.example",), False, 0, "ca.pem", "another name than localhost", "use a name that it holds"),
        (("localhost",), False, 99, "ca.pem", "has expired", "renew it"),
        (("localhost",), False, 0, "missing.pem", "missing.pem cannot be read", "correct `tls.ca`"),
        (("localhost",), False, 0, "server.key", "server.key holds no certificate", "correct `tls.ca`"),
    ],
)
def test_targets_that_prove_nothing(
    tmp_path: Path, names: tuple[str, ...], stranger_signs: bool, age_days: int, ca: str, why: str, hint: str
) -> None:
    """A problem each, with whose fault it is and what to do."""
    end = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age_days) if age_days else None
    pair = make_pair(tmp_path, *names, by=stranger() if stranger_signs else authority(), not_after=end)
    write_authority(tmp_path)
    finding = asyncio.run(attach_securely(server_context(*pair), str(tmp_path / ca)))
    assert finding.grade is Grade.PROBLEM
    assert "no connection to https://localhost:" in finding.message
    assert why in finding.message
    assert hint in (finding.hint or "")


@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"), (b"", "does not answer a TLS handshake")],
    ids=["answers", "waits for more"],
)
def test_a_target_that_speaks_no_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, why: str) -> None:
    """That is told, and not that nobody listens on the other loopback; the hint names the s too much."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        await reader.read()
        writer.close()

    async def body() -> Finding:
        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
            url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
            tls = ServerTls("localhost", "localhost", write_authority(tmp_path))
            (finding,) = await examine("ollama", settings("ollama", attach_to=url, attach_tls=tls))
            return finding

    monkeypatch.setattr(attaching, "HANDSHAKE_LIMIT_S", 20.0 if answer else 0.5)
    finding = asyncio.run(body())
    assert finding.grade is Grade.PROBLEM
    assert why in finding.message
    assert "http://" in (finding.hint or "")


def test_a_module_that_stumbles_over_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is not ours."""

    async def stumble(self: object, caller: Caller) -> None:
        raise ValueError("not JSON")

    monkeypatch.setattr(registry.BACKENDS["ollama"], "probe", stumble)
    (finding,) = asyncio.run(attach({"/": "<html>"}))
    assert finding.grade is Grade.WARNING
