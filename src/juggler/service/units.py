"""What the service managers want to have written: texts, made without touching anything.

Sources: systemd.service(5), systemd.syntax(7), launchd.plist(5), and the XML of Windows' task scheduler
(``schtasks /Create /XML``; its schema is at learn.microsoft.com under "Task Scheduler Schema").
"""

import plistlib
from collections.abc import Sequence
from xml.sax.saxutils import escape

MARK = "written by juggler service install"
"""Only files with these words are overwritten or removed."""
LABEL = "model-juggler"
STOP_LIMIT_S = 120
"""Longer than requests may take to end, plus the last resort of those that do not."""


def systemd_unit(command: Sequence[str], directory: str, *, system: bool) -> str:
    """A unit for systemd.

    Args:
        command: Absolute program and its arguments.
        directory: Working directory, absolute.
        system: For the system's manager, not the user's.
    """
    target = "multi-user.target" if system else "default.target"
    return f"""\
# {MARK}; `juggler service uninstall` removes it.
[Unit]
Description=Model Juggler: AI models that share this machine's memory
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
# Not notify-reload, which systemd knows since version 253 only.
Type=notify
ExecStart={" ".join(_systemd_word(word) for word in command)}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={_systemd_path(directory)}
Restart=on-failure
RestartSec=2
# 2: the configuration is wrong. Starting again does not help.
RestartPreventExitStatus=2
WatchdogSec=60
TimeoutStopSec={STOP_LIMIT_S}
# The juggler ends its backends itself; whatever is left then is killed.
KillMode=mixed
LimitNOFILE=65536

[Install]
WantedBy={target}
"""


def _systemd_word(word: str) -> str:
    """One argument of a command line: ``%`` and ``$`` stand for themselves when doubled."""
    doubled = word.replace("%", "%%").replace("$", "$$")
    if doubled and not any(one in doubled for one in " \t\"'\\;"):
        return doubled
    return '"' + doubled.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _systemd_path(path: str) -> str:
    """A path as the value of a setting; it is not split into words."""
    return path.replace("%", "%%")


def launchd_plist(command: Sequence[str], directory: str, log: str) -> bytes:
    """A launch agent for macOS.

    Args:
        command: Absolute program and its arguments.
        directory: Working directory.
        log: File for what it prints.
    """
    return plistlib.dumps(
        {
            "Label": LABEL,
            "Comment": MARK,
            "ProgramArguments": list(command),
            "WorkingDirectory": directory,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": STOP_LIMIT_S,
            "SoftResourceLimits": {"NumberOfFiles": 65536},
            "StandardOutPath": log,
            "StandardErrorPath": log,
        }
    )


def windows_task(command: Sequence[str], directory: str, user: str) -> str:
    """A task for Windows' scheduler, started when the user logs on.

    Args:
        command: Absolute program and its arguments.
        directory: Working directory.
        user: Whose task it is: ``DOMAIN\\name``.
    """
    program, *arguments = command
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.4" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>Model Juggler ({MARK})</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
      <UserId>{escape(user)}</UserId>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(user)}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>5</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(program)}</Command>
      <Arguments>{escape(" ".join(_windows_word(word) for word in arguments))}</Arguments>
      <WorkingDirectory>{escape(directory)}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""


def _windows_word(word: str) -> str:
    """One argument as C runtimes on Windows take it apart (learn.microsoft.com, "Parsing C command-line arguments")."""
    if word and not any(one in word for one in ' \t"'):
        return word
    out, backslashes = '"', 0
    for one in word:
        if one == "\\":
            backslashes += 1
            continue
        if one == '"':
            out += "\\" * (2 * backslashes + 1) + '"'
        else:
            out += "\\" * backslashes + one
        backslashes = 0
    return out + "\\" * (2 * backslashes) + '"'
