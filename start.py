"""Start Model Juggler with nothing but Python: ``python start.py [--config FILE]``.

Makes a virtual environment ``.venv`` beside this file on first use, installs the package into it, and runs
``juggler serve``. With no ``config.json`` here and no ``--config`` it runs ``juggler demo`` and says so.
The other commands are ``.venv/bin/juggler`` (on Windows ``.venv\\Scripts\\juggler``). Standard library only.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / ".juggler-installed"
INSTALL_LIMIT_S = 1800


def main() -> int:  # noqa: RET503  # execv does not return
    """Install if need be, then hand over; returns the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036  # whoever runs this may have any Python
        print(f"Model Juggler needs Python 3.11 or newer; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="start.py", description="Run Model Juggler from this folder.")
    parser.add_argument("--config", metavar="FILE", help="configuration file (default: config.json, else the demo)")
    options = parser.parse_args()
    if options.config is not None and not Path(options.config).is_file():
        print(f"{options.config}: no such file", file=sys.stderr)
        return 2
    status = install()
    if status != 0:
        return status
    command = [str(PYTHON), "-m", "juggler.cli.main"]
    if options.config is not None:
        command += ["serve", "--config", options.config]
    elif Path("config.json").is_file():
        command += ["serve", "--config", "config.json"]
    else:
        print("No config.json here and no --config: this is the demo.", flush=True)
        command += ["demo"]
    if os.name == "nt":
        return subprocess.call(command)
    os.execv(command[0], command)  # one process: signals reach the juggler itself


def fingerprint() -> str:
    """Changes when the package's metadata does, so that an update is installed."""
    return hashlib.sha256((HERE / "pyproject.toml").read_bytes()).hexdigest()


def install() -> int:
    """Make the virtual environment and install the package in place; nothing to do if that was done."""
    wanted = fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"First use: installing into {VENV} (a minute or less) ...", flush=True)
    try:
        if not PYTHON.exists():
            run([sys.executable, "-m", "venv", str(VENV)])
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            run([*pip, "-e", f"{HERE}[engine,fast]"])
        except subprocess.CalledProcessError:
            # The embedded llama.cpp has no wheel for every platform; all but the demo works without it.
            print("The optional parts cannot be installed here; going on without them.", file=sys.stderr)
            run([*pip, "-e", str(HERE)])
    except (subprocess.SubprocessError, OSError) as error:
        print(f"Installing failed: {error}", file=sys.stderr)
        print(f"Hint: remove {VENV} and try again; on Debian, `apt install python3-venv` first.", file=sys.stderr)
        return 1
    STAMP.write_text(wanted, encoding="utf-8")
    print(f"Installed. The other commands are those of {BIN / 'juggler'}.", flush=True)
    return 0


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
