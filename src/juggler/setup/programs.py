"""Model server programs that are installed here: in PATH, and where people unpack or clone them. Blocks on the disk."""

import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from juggler.setup.places import Surroundings

ENTRIES_MAX = 400
"""Looked at per folder; nobody keeps more clones in one, and a folder of photographs has no programs."""

FOUND_MAX = 3
"""Of one type: more installations than that are for experts, who write their own configuration."""

_BUILDS = ("build/bin/llama-server", "build/llama-server", "bin/llama-server", "llama-server")
"""Where llama.cpp's builds and releases put it, below ``llama.cpp``."""

_KOBOLD = re.compile(r"koboldcpp[\w.-]*\Z", re.IGNORECASE)
_NOT_PROGRAMS = frozenset({".sh", ".so", ".zip", ".txt", ".md", ".bat", ".kcpps", ".kcppt", ".json", ".dll", ".exe"})
_KOBOLD_FOLDERS = ("", "koboldcpp", "Downloads", "bin", ".local/bin", "AI", "ai", "apps")
_COMFY_PYTHONS = ("venv/bin/python", ".venv/bin/python", "env/bin/python", "../venv/bin/python")


@dataclass(frozen=True, slots=True)
class Program:
    """One installed program."""

    type: str
    path: str
    """Of the executable, absolute."""
    where: str
    """How it was found, for a comment."""
    parameters: tuple[str, ...] = ()
    """What must always be given to it."""
    folder: Path | None = None
    """Of a program that is a checkout."""
    cpu_only: bool = False
    """This build does not use a GPU."""
    version: str | None = None


def find_programs(around: Surroundings) -> list[Program]:
    """Everything found, the best of each type first."""
    found: list[Program] = []
    for finder in (_llama_server, _koboldcpp, _ollama, _vllm, _checkouts):
        programs: dict[str, Program] = {}
        for program in finder(around):
            # A strange name (control characters, bytes that are no text) cannot stand in a configuration.
            if program.path.isprintable():
                programs.setdefault(f"{program.type} {_real(program)}", program)
        counts: dict[str, int] = {}
        for program in programs.values():
            counts[program.type] = counts.get(program.type, 0) + 1
            if counts[program.type] <= FOUND_MAX:
                found.append(program)
    return found


def _real(program: Program) -> str:
    """What two ways to one program have in common."""
    return os.path.realpath(program.folder or program.path)


def _llama_server(around: Surroundings) -> Iterator[Program]:
    yield from _in_path("llamacpp", "llama-server", around)
    for folder in around.project_folders():
        for name in _BUILDS:
            path = folder / "llama.cpp" / name
            if _is_program(path):
                yield Program("llamacpp", str(path), f"in {folder}")
    own = Path(sysconfig.get_path("scripts")) / "juggler-llama-server"
    if importlib.util.find_spec("xllamacpp") is not None and _is_program(own):
        where = "beside this juggler: llama.cpp from the xllamacpp wheel, which computes on the CPU alone"
        yield Program("llamacpp", str(own), where, cpu_only=True)


def _koboldcpp(around: Surroundings) -> Iterator[Program]:
    folders = [Path(name) for name in (around.search_path or "").split(os.pathsep) if name]
    searched = [*folders, *(around.home / name for name in _KOBOLD_FOLDERS)]
    if around.system:
        searched += [Path("/opt"), Path("/opt/koboldcpp")]
    for folder in searched:
        for path in _entries(folder):
            if _KOBOLD.match(path.name) and path.suffix.lower() not in _NOT_PROGRAMS and _is_program(path):
                yield Program("koboldcpp", str(path), f"in {folder}")


def _ollama(around: Surroundings) -> Iterator[Program]:
    yield from _in_path("ollama", "ollama", around)


def _vllm(around: Surroundings) -> Iterator[Program]:
    yield from _in_path("vllm", "vllm", around)
    for folder in around.project_folders():
        for name in ("vllm/.venv/bin/vllm", "vllm/venv/bin/vllm", ".venv/bin/vllm", "venv/bin/vllm"):
            if _is_program(folder / name):
                yield Program("vllm", str(folder / name), f"in {folder}")


def _checkouts(around: Surroundings) -> Iterator[Program]:
    """A1111, Forge and ComfyUI, told by what lies in their folders, whatever those are called."""
    for root in around.project_folders():
        for folder in _entries(root):
            if _is_program(folder / "webui.sh") and (folder / "launch.py").is_file() and (folder / "modules").is_dir():
                yield Program("sdwebui", str(folder / "webui.sh"), f"in {folder}", folder=folder)
            elif (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir():
                python = _python_of(folder, around)
                if python is not None:
                    yield Program("comfyui", python, f"in {folder}", parameters=("main.py",), folder=folder)


def _python_of(folder: Path, around: Surroundings) -> str | None:
    """The Python of a ComfyUI checkout's own environment, else the one in PATH."""
    for name in _COMFY_PYTHONS:
        if _is_program(folder / name):
            return os.path.normpath(folder / name)  # not resolved: a link in an environment is what makes it one
    return shutil.which("python3", path=around.search_path)


def _in_path(kind: str, name: str, around: Surroundings) -> Iterator[Program]:
    path = shutil.which(name, path=around.search_path)
    if path is not None:
        yield Program(kind, str(Path(path).absolute()), "in PATH")


def _is_program(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.X_OK)
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    """Some entries of a folder, in order; none if it cannot be read."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(ENTRIES_MAX), entries, strict=False):
                found.append(Path(entry.path))
    except OSError:
        return []
    return sorted(found)
