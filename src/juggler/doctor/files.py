"""The files that a command line names: whether they are there, readable, complete, and what they say they are.

Blocks on the file system: call it in a thread.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.backends.base import BackendSettings
from juggler.doctor.findings import Finding, ok, problem, warning
from juggler.survey.gguf import NotGguf, is_later_part, parts_of, read_head
from juggler.units import MIB, format_size

FILES_MAX = 200
"""Looked at per endpoint; a command line holds a handful."""

KCPPS_BYTES_MAX = 1 * MIB

_FILE_OPTIONS = frozenset(
    {
        # llama.cpp (tools/server/README.md)
        *("-m", "--model", "-mm", "--mmproj", "-md", "--model-draft", "--spec-draft-model", "-mv", "--model-vocoder"),
        *("--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled", "--grammar-file"),
        *("--chat-template-file", "--api-key-file", "--ssl-key-file", "--ssl-cert-file", "--models-preset"),
        # koboldcpp (koboldcpp.py)
        *("--config", "--draftmodel", "--sdmodel", "--sdvae", "--sdlora", "--sdt5xxl", "--sdclip1", "--sdclip2"),
        *("--whispermodel", "--ttsmodel", "--ttswavtokenizer", "--embeddingsmodel", "--preloadstory"),
        # A1111 and Forge (modules/cmd_args.py), ComfyUI (comfy/cli_args.py), vLLM
        *("--ckpt", "--vae-path", "--extra-model-paths-config", "--chat-template", "--hf-config-path"),
    }
)
_DIRECTORY_OPTIONS = frozenset(
    {
        *("--ckpt-dir", "--ckpt-dirs", "--lora-dir", "--lora-dirs", "--vae-dir", "--embeddings-dir", "--models-dir"),
        *("--base-directory", "--input-directory", "--admindir", "--text-encoder-dir"),
    }
)
_NAME_OPTIONS = frozenset(
    {
        *("-hff", "--hf-file", "-hffv", "--hf-file-v", "-hf", "-hfr", "--hf-repo", "-a", "--alias"),
        *("--served-model-name", "--hf-overrides"),
    }
)
"""Their values may look like files, but name something elsewhere."""

_MODEL_SUFFIXES = (".gguf", ".ggml", ".safetensors", ".ckpt", ".kcpps", ".kcppt")
_PATH_LIKE = re.compile(r"(/|~|\.{1,2}/)|.*\.(gguf|ggml|safetensors|ckpt|kcpps|kcppt|bin|pth?|json|jinja2?|ya?ml)\Z")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SCALE = re.compile(r":[0-9.]+\Z")
_KCPPS_KEYS = ("model_param", "model", "mmproj", "lora", "draftmodel", "sdmodel", "sdvae", "whispermodel", "ttsmodel")


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file or directory that something names."""

    path: str
    """As written."""
    named_by: str
    """An option, a variable, or another file."""
    directory: bool = False


def file_findings(settings: BackendSettings) -> list[Finding]:
    """One finding for each named file that something is wrong with, and one for all the others together."""
    base = Path(settings.cwd or ".").absolute()
    findings: list[Finding] = []
    fine = 0
    size_bytes = 0
    for named in _all_named(settings, base)[:FILES_MAX]:
        result = _look(named, base, settings.type)
        if isinstance(result, int):
            fine, size_bytes = fine + 1, size_bytes + result
        else:
            findings.append(result)
    if fine:
        size = f", {format_size(size_bytes)}" if size_bytes else ""
        findings.insert(0, ok(f"{settings.endpoint_name}: {fine} file{'s' if fine > 1 else ''} readable{size}"))
    return findings


def named_files(arguments: Sequence[str]) -> list[NamedFile]:
    """What a command line names, by options known to take a file and by the look of the word."""
    found: dict[tuple[str, bool], NamedFile] = {}
    option = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("-") and not equals:
            option = _canonical(word)
            continue
        if word.startswith("-") and equals:
            option, text = _canonical(name), value
        else:
            text = word
        directory = option in _DIRECTORY_OPTIONS
        expected = (option in _FILE_OPTIONS or directory) and bool(_PATH_LIKE.match(text))
        looks = text.lower().endswith(_MODEL_SUFFIXES) and option not in _NAME_OPTIONS
        if (expected or looks) and not _URL.match(text):
            found.setdefault((text, directory), NamedFile(text, option or "the command line", directory))
        if equals:
            option = ""
    return list(found.values())


def _canonical(option: str) -> str:
    return option.replace("_", "-") if option.startswith("--") else option


def _all_named(settings: BackendSettings, base: Path) -> list[NamedFile]:
    named = named_files(settings.parameters)
    script = settings.parameters[0] if settings.parameters else ""
    if script.endswith(".py"):  # what a Python is to run: ComfyUI's main.py
        named.insert(0, NamedFile(script, "the script"))
    for name, value in settings.env.items():
        if value.lower().endswith(_MODEL_SUFFIXES) and not _URL.match(value):
            named.append(NamedFile(value, f"the variable {name}"))
    if settings.type == "koboldcpp":
        for one in list(named):
            if one.path.lower().endswith(".kcpps"):
                named += _in_kcpps(base / one.path)
    return named


def _in_kcpps(path: Path) -> Iterator[NamedFile]:
    """The models that a koboldcpp configuration names (backends.md section 4.2); it is read as koboldcpp does."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(KCPPS_BYTES_MAX).decode("utf-8", "ignore"))
    except (OSError, ValueError):
        return
    for key in _KCPPS_KEYS if isinstance(document, dict) else ():
        value = document.get(key)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one and not _URL.match(one):
                yield NamedFile(one, f"{path.name} ({key})")


def _look(named: NamedFile, base: Path, kind: str) -> Finding | int:
    """What is wrong with a file; its size in bytes (0 for a directory) if nothing is."""
    path = base / named.path
    try:
        if path.is_dir():
            return _look_into(path, named)
        if path.exists():
            return _judge(path, named)
    except OSError as error:
        return problem(f"{named.named_by}: {named.path} cannot be looked at: {error.strerror}")
    return _missing(named, base, kind)


def _look_into(path: Path, named: NamedFile) -> Finding | int:
    if not named.directory and path.suffix.lower() in _MODEL_SUFFIXES:
        return problem(f"{named.named_by}: {named.path} is a directory, not a file")
    if not os.access(path, os.R_OK | os.X_OK):
        return problem(f"{named.named_by}: the directory {named.path} cannot be read", "look at its owner and mode")
    return 0


def _missing(named: NamedFile, base: Path, kind: str) -> Finding:
    if named.path.startswith("~"):
        hint = "write the path in full: no shell stands between the juggler and the program"
        message = f"{named.named_by}: the `~` of {named.path} is passed on as it is"
        # Python programs may expand it themselves; llama.cpp and koboldcpp do not.
        return (problem if kind in ("llamacpp", "koboldcpp") else warning)(message, hint)
    parts = [_SCALE.sub("", part) for part in named.path.split(",")]
    gone = [part for part in parts if not (base / part).exists()]
    if len(parts) > 1 and not gone:
        return ok(f"{named.named_by}: {len(parts)} files are there")
    if len(parts) == 1 and not gone:  # ``file:0.5`` with its scale
        return ok(f"{named.named_by}: {parts[0]} is there")
    path = named.path if len(parts) == 1 else gone[0]
    hint = f"relative paths start from {base}" if not Path(path).is_absolute() else _nearest(Path(path))
    return problem(f"{named.named_by}: {path} does not exist", hint)


def _nearest(path: Path) -> str:
    """Which part of a path is the first that is not there."""
    missing = path
    try:
        while not missing.parent.exists():
            missing = missing.parent
    except OSError:
        return "correct the path"
    return f"{missing.parent} holds no {missing.name}"


def _judge(path: Path, named: NamedFile) -> Finding | int:
    """A file that exists."""
    if not os.access(path, os.R_OK):
        return problem(f"{named.named_by}: {named.path} may not be read by this user", "look at its owner and mode")
    if path.suffix.lower() != ".gguf":
        size = path.stat().st_size
        return size if size else problem(f"{named.named_by}: {named.path} is empty")
    parts = parts_of(path)
    absent = [part.name for part in parts if not part.exists()]
    if absent:
        missing = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        return problem(f"{named.named_by}: parts of {path.name} are missing: {missing}", "download them beside it")
    if is_later_part(path):
        return problem(f"{named.named_by}: {path.name} is not the first part", f"name {parts[0].name}")
    return _gguf(path, parts, named)


def _gguf(path: Path, parts: Sequence[Path], named: NamedFile) -> Finding | int:
    hint = "download it again"
    for part in parts:
        try:
            least_bytes = read_head(part).least_bytes
        except NotGguf as error:
            return problem(f"{named.named_by}: {part} is not a usable GGUF file: {error}", hint)
        except OSError as error:
            return problem(f"{named.named_by}: {part} cannot be read: {error.strerror}")
        if part.stat().st_size < least_bytes:
            sizes = f"{format_size(part.stat().st_size)} of at least {format_size(least_bytes)}"
            return problem(f"{named.named_by}: {part} is incomplete: {sizes}", hint)
    return sum(part.stat().st_size for part in parts)
