"""The files that service managers get, and what is done around them."""

import plistlib
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from juggler.cli.main import cli
from juggler.service.install import ServiceError, install, uninstall, wanted
from juggler.service.units import MARK, launchd_plist, systemd_unit, windows_task

ODD = ["/opt/my python/bin/python3", "-m", "juggler", "--config", '/home/me/100% "local"/$HOME/it\'s.json']


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


@pytest.fixture
def calls(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down how it was called, and fails where a file says so."""
    programs, log = home / "bin", home / "calls"
    programs.mkdir()
    script = programs / "systemctl"
    script.write_text(
        f'#!/bin/sh\necho "$*" >> {shlex.quote(str(log))}\n'
        f"if [ -e {shlex.quote(str(home / 'refuse'))} ]; then\n"
        "  echo 'Failed to connect to bus: No medium found' >&2; exit 1\nfi\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    log.touch()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return log


def config(home: Path) -> Path:
    path = home / "config.json"
    path.write_text(
        '{"backends": {"command": {"binary": "/bin/true"}}, "servers": [{"name": "S", "port": 8021,'
        ' "endpoints": [{"name": "a", "backend": "command", "parameters": ["{port}"]}]}]}'
    )
    return path


def test_the_unit_quotes_what_systemd_would_take_apart() -> None:
    text = systemd_unit(ODD, "/home/me/100% local", system=False)
    command = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    words = command.removeprefix("ExecStart=")
    assert '"/opt/my python/bin/python3" -m juggler --config' in words
    assert '100%% \\"local\\"/$$HOME/it\'s.json"' in words
    assert "WorkingDirectory=/home/me/100%% local\n" in text
    assert "WantedBy=default.target" in text
    assert "WantedBy=multi-user.target" in systemd_unit(ODD, "/", system=True)


def test_systemd_finds_no_mistake_in_the_unit(tmp_path: Path) -> None:
    try:
        subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no systemd-analyze here")
    unit = tmp_path / "model-juggler.service"
    unit.write_text(systemd_unit([sys.executable, "-m", "juggler"], str(tmp_path), system=False))
    done = subprocess.run(["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True)
    assert str(unit) not in done.stderr, done.stderr


def test_the_agent_for_macos() -> None:
    data = plistlib.loads(launchd_plist(ODD, "/home/me", "/home/me/log"))
    assert data["ProgramArguments"] == ODD
    assert data["KeepAlive"] == {"SuccessfulExit": False}
    assert MARK in data["Comment"]


def test_the_task_for_windows() -> None:
    command = ["C:\\My Python\\python.exe", "-m", "juggler", "--config", 'C:\\a & b\\"x" <1>\\', ""]
    text = windows_task(command, "C:\\a & b", "BOX\\me")
    names = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    action = ElementTree.fromstring(text.encode("utf-16")).find("t:Actions/t:Exec", names)
    assert action is not None
    assert action.findtext("t:Command", "", names) == "C:\\My Python\\python.exe"
    arguments = action.findtext("t:Arguments", "", names)
    assert subprocess.list2cmdline(command[1:]) == arguments, "as the standard library quotes for Windows"


def test_install_and_uninstall(home: Path, calls: Path) -> None:
    service = wanted(config(home), platform="linux")
    assert service.path == home / ".config/systemd/user/model-juggler.service"
    install(service)
    install(service)
    assert service.path.read_bytes() == service.data
    done = ["--user daemon-reload", "--user enable model-juggler.service", "--user restart model-juggler.service"]
    assert calls.read_text().splitlines() == done * 2, "also where one runs that was installed before"
    calls.write_text("")
    assert uninstall(service)
    assert not service.path.exists()
    assert calls.read_text().splitlines() == ["--user disable --now model-juggler.service", "--user daemon-reload"]
    assert not uninstall(service)


def test_somebody_elses_file_stays(home: Path, calls: Path) -> None:
    service = wanted(config(home), platform="linux")
    service.path.parent.mkdir(parents=True)
    service.path.write_text("[Service]\nExecStart=/mine\n")
    with pytest.raises(ServiceError, match="was not written by juggler"):
        install(service)
    with pytest.raises(ServiceError, match="was not written by juggler"):
        uninstall(service)
    assert calls.read_text() == ""
    install(service, force=True)
    assert MARK in service.path.read_text()


def test_a_manager_that_refuses_is_quoted_with_a_hint(home: Path, calls: Path) -> None:
    (home / "refuse").touch()
    with pytest.raises(ServiceError, match="No medium found") as caught:
        install(wanted(config(home), platform="linux"))
    assert "--system as root" in (caught.value.hint or "")


def test_without_a_manager_nothing_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    service = wanted(config(home), platform="linux")
    with pytest.raises(ServiceError, match="there is no systemctl here"):
        install(service)
    assert not service.path.exists()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_platforms_have_files_of_their_own(home: Path, platform: str) -> None:
    service = wanted(config(home), platform=platform)
    assert service.path.suffix == {"darwin": ".plist", "win32": ".xml"}[platform]
    assert b"config.json" in service.data.replace(b"\0", b"")
    with pytest.raises(ServiceError, match="only written for systemd"):
        wanted(config(home), system=True, platform=platform)


def test_one_that_runs_on_macos_is_ended_first(home: Path, calls: Path) -> None:
    """launchd takes nothing up under a name that it has; where it has none, there is nothing to end."""
    launchctl = calls.parent / "bin" / "launchctl"
    launchctl.write_text(f'#!/bin/sh\necho "$1" >> {shlex.quote(str(calls))}\n[ "$1" != bootout ]\n')
    launchctl.chmod(0o755)
    service = wanted(config(home), platform="darwin")
    install(service)
    assert calls.read_text().splitlines() == ["bootout", "bootstrap"]
    assert service.path.exists()


def test_a_platform_that_is_not_known(home: Path) -> None:
    with pytest.raises(ServiceError, match="plan9"):
        wanted(config(home), platform="plan9")


def test_the_command_line(home: Path, calls: Path) -> None:
    path = config(home)
    shown = CliRunner().invoke(cli, ["service", "install", "--config", str(path), "--print"], catch_exceptions=False)
    assert "[Service]" in shown.output
    assert calls.read_text() == ""
    done = CliRunner().invoke(cli, ["service", "install", "--config", str(path)], catch_exceptions=False)
    assert "installed and started" in done.output
    assert "journalctl --user -u model-juggler -f" in done.output
    assert "stopped and removed" in CliRunner().invoke(cli, ["service", "uninstall"]).output
    assert "not installed" in CliRunner().invoke(cli, ["service", "uninstall"]).output
