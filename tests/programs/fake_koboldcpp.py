"""A stand-in for koboldcpp 1.116.1: its command line, settings files, processes, routes and exits (backends.md 4.7).

Models are files that exist; whatever is in them, they load. ``--admin`` runs the same three processes as the real one:
manager, helper (``multiprocessing.Manager``) and worker. The routes are in ``fake_koboldcpp_server``. Speeds and bad
habits, by environment:

    FAKE_PACE           how fast its clock goes: 0.1 makes its own pauses (0.2, 0.5, 1, 2, 3 s) a tenth as long (0.1)
    FAKE_LOAD_S         one load of all models (0.1); a worker without models loads nothing
    FAKE_NATIVE_LOAD    a load is native code: SIGINT is handled only after it
    FAKE_LOADS          what becomes of each worker in turn: "ok,die,ok"; "die" is exit status 3 (all ok)
    FAKE_TOKEN_S        one word of an answer (0.01); ``max_length`` of a request says how many (3)
    FAKE_BIG_OUTPUT     so many bytes on stdout during the load (0)
    FAKE_VERSION_BEFORE_110  no ``initial_model``, as before 2026-03
    FAKE_DEAF_ADMIN     orders to unload are accepted, and nothing happens
    FAKE_DEAF           SIGINT and SIGTERM do nothing
    FAKE_BOOTLOADER     as the one-file program: a parent that unpacks to ``_MEI…`` in TMPDIR and forwards signals
    FAKE_EVENTS         a file that gets a line per start of a server, order to reload, begin and end of a generation
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.programs.fake_koboldcpp_server import LOAD_S, VERSION, pause, serve

DEFAULT_PORT = 5001
KEPT_AT_RELOAD = (
    *("remotetunnel", "showgui", "port", "host", "port_param", "admin", "adminpassword", "password", "admindir"),
    *("adminunloadtimeout", "routermode", "ssl", "benchmark", "prompt", "config", "onready"),
)
"""reload_from_new_args: what the command line said of the process itself."""


def parser() -> argparse.ArgumentParser:
    """The options of main that matter to anybody here, with their real arities."""
    options = argparse.ArgumentParser(prog="koboldcpp", description=f"KoboldCpp Server - Version {VERSION}")
    model = options.add_mutually_exclusive_group()
    model.add_argument("--model", "-m", nargs="+", default=[])
    model.add_argument("model_param", nargs="?")
    port = options.add_mutually_exclusive_group()
    port.add_argument("--port", default=DEFAULT_PORT, type=int)
    port.add_argument("port_param", default=DEFAULT_PORT, nargs="?", type=int)
    windows = options.add_mutually_exclusive_group()
    windows.add_argument("--showgui", action="store_true")
    windows.add_argument("--skiplauncher", action="store_true")
    options.add_argument("--config", nargs=1)
    options.add_argument("--host", default="")
    options.add_argument("--prompt", "-p", default="")
    options.add_argument("--contextsize", "--ctx-size", "-c", type=int, default=8192)
    options.add_argument("--threads", "-t", type=int, default=4)
    options.add_argument(
        "--gpulayers", "--gpu-layers", "--n-gpu-layers", "-ngl", nargs="?", const=1, type=int, default=-1
    )
    options.add_argument("--tensor_split", "--tensorsplit", "--tensor-split", "-ts", type=float, nargs="+")
    options.add_argument("--usecuda", "--usecublas", "--usehipblas", nargs="*")
    options.add_argument("--ssl", "--lora", nargs="+")
    options.add_argument("--benchmark", nargs="?", const="stdout")
    options.add_argument("--multiuser", nargs="?", const=10, default=10, type=int)
    options.add_argument("--password", default=os.getenv("KCPP_PASSWORD"))
    options.add_argument("--adminpassword", default=os.getenv("KCPP_ADMINPASSWORD"))
    options.add_argument("--adminunloadtimeout", type=int, default=0)
    for name in ("admindir", "sdmodel", "whispermodel", "ttsmodel", "embeddingsmodel", "onready", "unpack", "analyze"):
        options.add_argument(f"--{name}", default="")
    for name in ("exportconfig", "exporttemplate", "hordekey", "preloadstory"):
        options.add_argument(f"--{name}", default="")
    flags = "launch cli version admin routermode autoswapmode remotetunnel singleinstance nomodel quiet testmemory"
    for name in (*flags.split(), "ignoremissing", "flashattention"):
        options.add_argument(f"--{name}", action="store_true")
    return options


def fail(status: int, message: str) -> NoReturn:
    """exit_with_error."""
    print("")
    pause(1)
    print(message, flush=True)
    pause(2)
    sys.exit(status)


def straightened(values: dict[str, Any]) -> None:
    """convert_invalid_args: of arguments and of files alike."""
    if values.get("skiplauncher"):
        values["showgui"] = False
    if not values.get("model_param") and "model" in values:
        model = values["model"]
        if isinstance(model, list) and model:
            model = model[0]
        if isinstance(model, str) and model:
            values["model_param"] = model
    if values.get("port_param") and values["port_param"] != DEFAULT_PORT:
        values["port"] = values["port_param"]


def load_settings(args: argparse.Namespace, name: str) -> None:
    """load_config_cli: a key gives way only to the literal ``--key``."""
    print(f"Loading configuration file {name}...")
    settings = json.loads(Path(name).read_text("utf-8", "ignore"))
    straightened(settings)
    if "onready" in settings:
        settings["onready"] = ""
    words = sys.argv[1:]
    if "--model" in words:
        words.append("--model_param")
    for key, value in settings.items():
        if f"--{key}" in words:
            print(f"Overriding Config Value: {key}")
        else:
            setattr(args, key, value)


def is_settings_file(name: object) -> bool:
    return isinstance(name, str) and name.lower().endswith((".kcpps", ".kcppt"))


def prepared(args: argparse.Namespace) -> None:
    """The first half of main: the arguments, and the files they name."""
    values = vars(args)
    straightened(values)
    print(f"***\nWelcome to KoboldCpp - Version {VERSION}")
    if args.config:
        if Path(args.config[0]).exists():
            load_settings(args, args.config[0])
        elif args.ignoremissing:
            print("Ignoring missing kcpp config file...")
        else:
            fail(2, "Specified kcpp config file invalid or not found.")
    straightened(values)
    if is_settings_file(args.model_param):
        load_settings(args, args.model_param)
    models = (args.model_param, args.sdmodel, args.whispermodel, args.ttsmodel, args.embeddingsmodel, args.nomodel)
    if args.showgui or not any(models):
        print("Warning, GUI failed to start\nReason: no display\nFile selection GUI unsupported.", flush=True)
        pause(3)
        sys.exit(2)


def main() -> None:
    args = parser().parse_args()
    if args.version and len(sys.argv) <= 2:
        print(VERSION)
        return
    if os.environ.get("FAKE_DEAF"):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    prepared(args)
    if args.prompt and not args.cli:
        time.sleep(LOAD_S)
        print(f"An answer to: {args.prompt}")
        return
    if not args.admin:
        serve(args, {"restart_target": "", "started": 0})
        return
    if not args.admindir:
        args.admindir = str(Path(__file__).resolve().parent)
        print(f"Admin Directory Set: {args.admindir}\n")
    manage(args)


def manage(args: argparse.Namespace) -> None:
    """The second half of main: the manager of ``--admin``, which ends and starts workers."""
    processes = multiprocessing.get_context("fork")
    original = copy.deepcopy(args)
    with processes.Manager() as helper:
        memory = helper.dict({"restart_target": "", "started": 0})

        def started() -> Any:
            worker = processes.Process(target=serve, args=(args, memory), daemon=True)
            worker.start()
            return worker

        worker = started()
        recovering = False
        while True:
            try:
                if not worker.is_alive():
                    if not recovering:
                        break
                    print("Attempting to recover to safe mode, launching known-good config...", flush=True)
                    recovering = False
                    args = copy.deepcopy(original)
                    worker = started()
                    pause(3)
                target = str(memory["restart_target"])
                if not target or os.environ.get("FAKE_DEAF_ADMIN"):
                    pause(0.2)
                    continue
                print(f"Reloading new model/config: {target}", flush=True)
                memory["restart_target"] = ""
                pause(0.5)
                print("Terminating old process...", flush=True)
                worker.terminate()
                worker.join(timeout=10)
                print("Restarting KoboldCpp...", flush=True)
                recovering = True
                reload(args, target, original)
                worker = started()
                pause(3)
            except (KeyboardInterrupt, SystemExit):
                break


def reload(args: argparse.Namespace, target: str, original: argparse.Namespace) -> None:
    """reload_from_new_args, and what stands around it."""
    values = vars(original) if target == "initial_model" else vars(parser().parse_args([]))
    for key, value in values.items():
        if key not in KEPT_AT_RELOAD:
            setattr(args, key, value)
    if target == "unload_model":
        args.model_param, args.model, args.nomodel = None, None, True
    elif target != "initial_model":
        args.model_param = str(Path(args.admindir) / target)


def bootloader() -> NoReturn:
    """PyInstaller's parent process (bootloader/src/pyi_utils_posix.c): unpacks, forwards signals, waits, cleans up."""
    directory = tempfile.mkdtemp(prefix="_MEI")
    (Path(directory) / "library.so").write_bytes(b"\0" * 1000)
    env = {name: value for name, value in os.environ.items() if name != "FAKE_BOOTLOADER"}
    child = os.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], env)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGCHLD, signal.SIGTSTP, signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    shutil.rmtree(directory, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if os.environ.get("FAKE_BOOTLOADER"):
        bootloader()
    main()
