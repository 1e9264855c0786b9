"""``juggler service``: has the system start the juggler, and keep it running.

Only files that carry our mark are overwritten or removed. What is done is said, with the commands that undo it.
"""

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.errors import JugglerError
from juggler.service.units import LABEL, MARK, launchd_plist, systemd_unit, windows_task
from juggler.units import SECONDS

COMMAND_LIMIT_S = 60 * SECONDS
"""For each call of the service manager."""


class ServiceError(JugglerError):
    """The service could not be installed or removed."""

    code = "service_error"


@dataclass(frozen=True, slots=True)
class Written:
    """A file and the commands that make the service manager take it up."""

    path: Path
    data: bytes
    then: tuple[tuple[str, ...], ...]
    undo: tuple[tuple[str, ...], ...]
    after: tuple[tuple[str, ...], ...]
    """Once the file is gone again."""
    hints: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    """What makes it forget an earlier one; fails where there is none."""


def wanted(config: Path, *, system: bool = False, platform: str = sys.platform) -> Written:
    """What would be installed here.

    Args:
        config: The configuration to serve; it exists.
        system: For the whole system (Linux only), not for the user.

    Raises:
        ServiceError: This platform has no service manager that is known here.
    """
    config = config.absolute()
    command = (sys.executable, "-m", "juggler.cli.main", "serve", "--config", str(config))
    directory = str(config.parent)
    if platform.startswith("linux"):
        return _systemd(command, directory, system=system)
    if system:
        raise ServiceError("services of the whole system are only written for systemd", hint="leave --system out")
    if platform == "darwin":
        path = Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        log = Path.home() / "Library" / "Logs" / f"{LABEL}.log"
        return Written(
            path,
            launchd_plist(command, directory, str(log)),
            (("launchctl", "bootstrap", f"gui/{_uid()}", str(path)),),
            (("launchctl", "bootout", f"gui/{_uid()}/{LABEL}"),),
            (),
            (f"its log: {log}", f"start it anew: launchctl kickstart -k gui/{_uid()}/{LABEL}"),
            (("launchctl", "bootout", f"gui/{_uid()}/{LABEL}"),),
        )
    if platform == "win32":
        path = Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / LABEL / f"{LABEL}.xml"
        user = f"{os.environ.get('USERDOMAIN', '.')}\\{getpass.getuser()}"
        return Written(
            path,
            windows_task(command, directory, user).encode("utf-16"),
            (("schtasks", "/Create", "/TN", LABEL, "/XML", str(path), "/F"), ("schtasks", "/Run", "/TN", LABEL)),
            (("schtasks", "/End", "/TN", LABEL), ("schtasks", "/Delete", "/TN", LABEL, "/F")),
            (),
            (f"look at it: schtasks /Query /TN {LABEL} /V /FO LIST",),
        )
    raise ServiceError(f"no service manager is known on {platform!r}", hint="run `juggler serve` from your own scripts")


def _systemd(command: Sequence[str], directory: str, *, system: bool) -> Written:
    name = f"{LABEL}.service"
    user = () if system else ("--user",)
    if system:
        path = Path("/etc/systemd/system") / name
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        path = Path(base) / "systemd" / "user" / name
    shown = " ".join(("systemctl", *user))
    hints = [
        f"look at it: {shown} status {LABEL}",
        f"its log: journalctl {'--user ' if user else ''}-u {LABEL} -f",
        f"after a change of the configuration: {shown} reload {LABEL}, or juggler reload",
    ]
    if user:
        hints.append("run it also while you are not logged in: loginctl enable-linger")
    return Written(
        path,
        systemd_unit(command, directory, system=system).encode(),
        # restart, not --now: one that runs already goes on with what was installed before.
        tuple(("systemctl", *user, *words) for words in (("daemon-reload",), ("enable", name), ("restart", name))),
        (("systemctl", *user, "disable", "--now", name),),
        (("systemctl", *user, "daemon-reload"),),
        tuple(hints),
    )


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def install(service: Written, *, force: bool = False) -> None:
    """Write the file and have it taken up, also by one that runs; without the service manager, nothing is written.

    Args:
        force: Also over a file that was not written by this program.

    Raises:
        ServiceError: Somebody else's file is there, or the service manager refuses.
    """
    _check_manager(service)
    if not force and not _is_ours(service.path):
        raise ServiceError(
            f"{service.path} is there, and was not written by juggler", hint="move it away, or use --force"
        )
    try:
        service.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = service.path.with_name(service.path.name + ".new")
        temporary.write_bytes(service.data)
        temporary.replace(service.path)
    except OSError as error:
        raise ServiceError(f"{service.path} cannot be written: {error.strerror or error}") from error
    for command in service.before:
        _run_if_possible(command)
    for command in service.then:
        _run(command)


def uninstall(service: Written) -> bool:
    """Stop it and remove the file; returns whether there was one.

    Raises:
        ServiceError: The file is somebody else's, or the service manager refuses.
    """
    if not service.path.exists():
        return False
    if not _is_ours(service.path):
        raise ServiceError(f"{service.path} was not written by juggler", hint="remove it yourself")
    _check_manager(service)
    for command in service.undo:
        _run(command)
    try:
        service.path.unlink(missing_ok=True)
    except OSError as error:
        raise ServiceError(f"{service.path} cannot be removed: {error.strerror or error}") from error
    for command in service.after:
        _run(command)
    return True


def _is_ours(path: Path) -> bool:
    """Whether a file may be overwritten: it carries our mark, or is not there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error.strerror or error}") from error
    return MARK.encode() in data or MARK.encode("utf-16-le") in data


def _check_manager(service: Written) -> None:
    program = service.then[0][0]
    if shutil.which(program) is None:
        raise ServiceError(
            f"there is no {program} here: this system (a container?) is not run by it",
            hint="`juggler service install --print` shows what would be written; run `juggler serve` some other way",
        )


def _run_if_possible(command: Sequence[str]) -> None:
    with contextlib.suppress(ServiceError):
        _run(command)


def _run(command: Sequence[str]) -> None:
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"`{shown}` did not end within {COMMAND_LIMIT_S:.0f} s") from error
    except OSError as error:
        raise ServiceError(f"`{shown}` cannot be run: {error.strerror or error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        hint = None
        if "Failed to connect to bus" in said or "No medium found" in said:
            hint = "log in as this user (not by su or sudo), or use --system as root"
        raise ServiceError(f"`{shown}` failed with exit status {done.returncode}: {said}", hint=hint)
