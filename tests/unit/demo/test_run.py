"""What the demo tells to try."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from juggler.demo.run import juggler_command


def test_the_command_works_as_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``python start.py`` the program is in ``.venv/bin`` only, which is mostly below this directory."""
    scripts = tmp_path / "a b" / "bin"
    scripts.mkdir(parents=True)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(scripts))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert juggler_command() == "juggler", "there is none: its usual name"
    (scripts / "juggler").touch(mode=0o755)
    monkeypatch.chdir("/")
    assert juggler_command() == f"'{str(scripts / 'juggler').lstrip('/')}'"
    monkeypatch.chdir(tmp_path)
    assert juggler_command() == "'a b/bin/juggler'"
    monkeypatch.chdir(scripts)
    assert juggler_command() == "./juggler"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/juggler")
    assert juggler_command() == "juggler"
