"""The whole examination: what is asked of which configuration, and in which order it is told."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from juggler.config.load import load_text
from juggler.config.resolve import resolve
from juggler.doctor import examine as module
from juggler.doctor.examine import Checked, cases_of, examine
from juggler.doctor.findings import Grade, Section
from tests.ports import free_port
from tests.unit.doctor.tools import install

ENVIRON = {"PATH": "/nonexistent"}


def report(path: Path | None, environ: dict[str, str] | None = None) -> list[Section]:
    async def collect() -> list[Section]:
        return [section async for section in examine(path, {**ENVIRON, **(environ or {})})]

    return asyncio.run(asyncio.wait_for(collect(), 60))


def write(tmp_path: Path, document: dict[str, Any] | str) -> Path:
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=4))
    return path


def document(tmp_path: Path, backends: dict[str, Any], *endpoints: dict[str, Any]) -> dict[str, Any]:
    return {
        "temp_dir": str(tmp_path / "t"),
        "state_dir": str(tmp_path / "s"),
        "control": False,
        "backends": backends,
        "servers": [{"name": "S", "host": "0.0.0.0", "port": free_port(), "endpoints": list(endpoints)}],
    }


def test_without_a_configuration() -> None:
    """Only the machine is looked at, and that is said."""
    first, machine = report(None)
    assert first.findings[0].grade is Grade.NOTE
    assert "juggler init" in (first.findings[0].hint or "")
    assert machine.title == "Machine"
    assert machine.findings[0].grade is Grade.OK


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "there is no such file"), ('{"backends": {}, "servrs": []}', 'unknown key "servrs"'), ("{", "")],
)
def test_with_a_wrong_configuration(tmp_path: Path, text: str | None, words: str) -> None:
    """Its problems as ``check`` shows them, with place and excerpt; then the machine."""
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    first, machine = report(path)
    assert first.findings[0].grade is Grade.PROBLEM
    assert words in "".join(finding.message for finding in first.findings)
    if words.startswith("unknown"):
        told = next(finding.message for finding in first.findings if words in finding.message)
        assert told.splitlines()[:2] == [f"{path}:1:18: {words}", f"    {text}"]
    assert machine.title == "Machine"


def test_sections_in_order(tmp_path: Path) -> None:
    """Configuration, machine, directories, ports, then the backends as the file has them."""
    binary = str(install(tmp_path / "llama-server"))
    backends = {"llamacpp": {"binary": binary}, "spare": {"type": "demo"}, "demo": {}}
    path = write(
        tmp_path,
        document(
            tmp_path,
            backends,
            {"name": "A", "path_prefix": "/a", "backend": "llamacpp"},
            {"name": "B", "backend": "demo"},
        ),
    )
    sections = report(path, {"PATH": os.environ["PATH"]})
    assert [section.title for section in sections] == [
        f"Configuration {path}",
        "Machine",
        "Directories",
        "Ports",
        'Backend "llamacpp"',
        'Backend "spare" (demo)',
        'Backend "demo"',
    ]
    assert sections[0].findings[0].message == "no mistakes found"
    assert sections[4].findings[0].message == f"{binary}: version: 7777 (abcdef0)"
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "s").exists()


def test_what_check_finds_is_shown_once(tmp_path: Path) -> None:
    """A missing program stands among the problems of the configuration, and nowhere else as a problem."""
    path = write(
        tmp_path,
        document(tmp_path, {"llamacpp": {"binary": "/none/llama-server"}}, {"name": "A", "backend": "llamacpp"}),
    )
    sections = report(path)
    judged = [section for section in sections if section.title != "Machine"]
    problems = [one.message for section in judged for one in section.findings if one.grade is Grade.PROBLEM]
    assert len(problems) == 1
    assert "the program /none/llama-server does not exist" in problems[0]


def test_a_backend_for_each_name_and_not_for_each_endpoint(tmp_path: Path) -> None:
    """Endpoints that share a process are one instance; those that do not are several."""
    loaded = load_text(
        json.dumps(
            document(
                tmp_path,
                {"a": {"type": "ollama", "attach_to": "http://localhost:1"}, "demo": {}, "unused": {"type": "demo"}},
                {"name": "1", "path_prefix": "/1", "backend": "a"},
                {"name": "2", "path_prefix": "/2", "backend": "a"},
                {"name": "3", "path_prefix": "/3", "backend": "demo"},
                {"name": "4", "path_prefix": "/4", "backend": "demo"},
            )
        )
    )
    cases = cases_of(Checked(loaded, resolve(loaded), ()))
    assert [(one.name, one.type, len(one.instances)) for one in cases] == [
        ("a", "ollama", 1),
        ("demo", "demo", 2),
        ("unused", "demo", 0),
    ]


def test_a_section_that_takes_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, the others are told."""

    async def hang(*_: object) -> Section:
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")

    monkeypatch.setattr(module, "directories", hang)
    monkeypatch.setattr(module, "SECTION_LIMIT_S", 0.2)
    path = write(tmp_path, document(tmp_path, {"demo": {}}, {"name": "A", "backend": "demo"}))
    sections = {section.title: section for section in report(path)}
    assert sections["Directories"].findings[0].grade is Grade.WARNING
    assert "was given up" in sections["Directories"].findings[0].message


def test_a_mistake_of_ours_costs_one_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the report is told all the same."""

    def stumble(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("juggler.doctor.backends.file_findings", stumble)
    path = write(tmp_path, document(tmp_path, {"demo": {}}, {"name": "A", "backend": "demo"}))
    sections = report(path)
    assert sections[-1].findings[0].grade is Grade.WARNING
    assert "KeyError('oops')" in sections[-1].findings[0].message
    assert len(sections) == 5


def test_a_configuration_on_a_dead_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it has a deadline too."""
    monkeypatch.setattr(module, "CHECK_LIMIT_S", 0.05)
    monkeypatch.setattr(module, "load_config", lambda path: __import__("time").sleep(1))
    assert report(tmp_path / "config.json")[0].findings[0].grade is Grade.PROBLEM
