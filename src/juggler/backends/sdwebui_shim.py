"""What ``webui.sh`` runs in place of ``launch.py``: it keeps our address where ``webui-user.sh`` would change it.

The program appends the words of COMMANDLINE_ARGS to its command line, so they win over ours, and ``webui-user.sh`` may
set that variable, and gradio's, after we did (backends.md section 3.1). Here everything has been said, and nothing has
been read yet: what would move the server is taken out of the variables, the rest stays, and ``launch.py`` of the
current directory runs as if it had been called itself.

``webui.sh`` has the variable LAUNCH_SCRIPT for such scripts. This one is executed by the Python of the web UI, which
may be as old as 3.7: the standard library only, nothing of ours, and no newer syntax.
"""

from __future__ import annotations  # for Python 3.7

import sys

REMOVED = (
    ("--port", "--po", 1),
    ("--listen", "--li", 0),
    ("--server-name", "--se", 1),
    ("--share", "--sha", 0),
    ("--ngrok", "--ngrok", 1),
    ("--ngrok-options", "--ngrok-o", 1),
    ("--ngrok-region", "--ngrok-r", 1),
    ("--tls-keyfile", "--tls-k", 1),
    ("--tls-certfile", "--tls-c", 1),
    ("--disable-tls-verify", "--disable-t", 0),
    ("--autolaunch", "--au", 0),
    ("--exit", "--exit", 0),
)
"""Name, shortest beginning that the program understands, and number of values of options that are not the user's here:
address and scheme are ours, tunnels lead past us, a browser window is unwanted, and ``--exit`` ends the program (it is
looked for as that very word; modules/cmd_args.py and launch_utils.py of A1111 @c8a5322d and Forge @dfdcbab)."""

VARIABLES = ("GRADIO_SERVER_PORT", "GRADIO_SERVER_NAME", "GRADIO_ROOT_PATH", "GRADIO_SHARE")
"""They would move gradio or open a tunnel (gradio 3.41.2 and 4.40.0: networking.py, http_server.py, blocks.py)."""

API_ONLY = "--nowebui"
"""Recognised by the program as this very word only, abbreviations are not (launch_utils.py, start)."""


def remaining(words: list[str]) -> list[str]:
    """The words without the options of ``REMOVED`` and their values."""
    kept: list[str] = []
    skipped = 0
    for word in words:
        if skipped:
            skipped -= 1
            continue
        name, equals, _ = word.partition("=")
        values = next((count for full, least, count in REMOVED if name.startswith(least) and full.startswith(name)), -1)
        if values < 0:
            kept.append(word)
        elif not equals:
            skipped = values
    return kept


def main() -> None:
    """Clean the variables, then be ``launch.py``."""
    # First of all, for what is imported from now on: `python launch.py` has its own folder here, not this one's.
    import os

    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd()  # noqa: PTH109  # pathlib would be imported from the wrong folder
    import runpy
    import shlex

    for name in VARIABLES:
        os.environ.pop(name, None)
    os.environ["SD_WEBUI_RESTARTING"] = "1"
    try:
        words = remaining(shlex.split(os.environ.get("COMMANDLINE_ARGS", "")))
    except ValueError:
        pass  # an open quote: the program says so itself
    else:
        if API_ONLY in words and not any(word.startswith("--server-name") for word in sys.argv):
            words += ["--server-name", "127.0.0.1"]  # without it that mode listens on all interfaces
        os.environ["COMMANDLINE_ARGS"] = " ".join(shlex.quote(word) for word in words)
    script = os.path.join(os.getcwd(), "launch.py")  # noqa: PTH118, PTH109
    sys.argv[0] = script
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
