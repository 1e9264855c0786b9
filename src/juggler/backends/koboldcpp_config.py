"""koboldcpp's settings files (``.kcpps``, ``.kcppt``): found, read, and copied with the address replaced.

What the program makes of them (backends.md 4.2; koboldcpp.py 1.116.1, ``main``, ``load_config_cli`` and
``convert_invalid_args``): the file of ``--config`` is read first; if the model then is a settings file itself, by
whatever way it was named, that one is read after it and wins. A key of a file gives way to the command line only where
the literal word ``--key`` stands there. ``port_param`` gives way to nothing.

So the operator's files are copied, each with our values for what is ours to say, and the second is named as the model
of the first: nothing else of the program's own rules changes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from juggler.backends.base import Address, BackendSettings
from juggler.backends.koboldcpp_options import POSITIONAL, Group, last_value
from juggler.errors import StartFailed
from juggler.units import MIB

SETTINGS_SUFFIXES = (".kcpps", ".kcppt", ".kcpps?download=true", ".kcppt?download=true")
FILE_LIMIT_BYTES = 64 * MIB
"""They hold options, at most with a story or a chat template among them."""

_OURS: Mapping[str, object] = {
    "launch": False,
    "showgui": False,
    "skiplauncher": True,
    "singleinstance": False,
    "remotetunnel": False,
    "cli": False,
    "prompt": "",
    "benchmark": None,
    "onready": "",
    "unpack": "",
    "exportconfig": "",
    "exporttemplate": "",
    "ssl": None,
    "adminunloadtimeout": 0,
}
"""A server without browser, window, tunnel or command of its own, which serves until it is stopped. The address
comes on top. Only the juggler unloads: after ``adminunloadtimeout`` nothing would load the model again (4.5)."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Configured:
    """A command line together with the files it names."""

    groups: Sequence[Group]
    """Of the command line, without the words that named the files."""
    documents: tuple[Document, ...] = ()
    """The files' contents in the order they are read: at most two."""
    words: frozenset[str] = field(default=frozenset())
    """All words of the operator's command line."""
    model: str = ""
    """What the program takes for its text model; empty: none."""

    def value(self, option: str) -> object:
        """What is given of an option: text on the command line, anything in a file; None if nothing is."""
        return self._of_files(option, last_value(self.groups, option))

    def flag(self, option: str) -> bool:
        """Whether the program takes a flag such as ``--admin`` for set."""
        given = last_value(self.groups, option) is not None
        return bool(self._of_files(option, given))

    def text(self, option: str, default: str = "") -> str:
        """What the program takes for an option with a value; ``default`` where nothing is said of it."""
        given = last_value(self.groups, option)
        value = self._of_files(option, default if given is None else given)
        return value if isinstance(value, str) else ""

    def _of_files(self, option: str, given: object) -> object:
        if option not in self.words:
            for document in reversed(self.documents):
                if option[2:] in document:
                    return document[option[2:]]
        return given


def configured(settings: BackendSettings, groups: Sequence[Group]) -> Configured:
    """Read the files that a command line names; blocks on the disk.

    Raises:
        StartFailed: A file cannot be read, is no settings file, or lies on another server; with a hint.
    """
    words = frozenset(word for group in groups for word in group.words)
    documents = []
    named = last_value(groups, "--config")
    if named is not None:
        document = _read(settings, named, may_be_missing=last_value(groups, "--ignoremissing") is not None)
        documents += [document] if document is not None else []
    left = [group for group in groups if group.option != "--config"]
    model = _model(left, documents, words)
    if model.lower().endswith(SETTINGS_SUFFIXES):
        document = _read(settings, model.removesuffix("?download=true"))
        documents += [document] if document is not None else []
        left = _without_model(left, model)
        words -= {"--model"}
        last = documents[-1] if documents else {}
        model = _text(last.get("model_param")) or _text(last.get("model"))
    return Configured(left, tuple(documents), words, model)


def write_copies(settings: BackendSettings, config: Configured, address: Address) -> tuple[str, str]:
    """Private copies of the files with our values, in a new directory that only this user may enter.

    Returns:
        The path for ``--config``, and the directory, which is to be removed after the process has ended.

    Raises:
        StartFailed: ``temp_dir`` cannot be used, with a hint.
    """
    ours = {**_OURS, "host": address.host, "port": address.port, "port_param": address.port}
    try:
        settings.temp_dir.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="koboldcpp-", dir=settings.temp_dir))
        try:
            paths = [directory / f"settings-{number}.kcpps" for number in range(1, len(config.documents) + 1)]
            for path, document in zip(paths, config.documents, strict=True):
                model: Document = {}
                if path is not paths[-1]:
                    model = {"model": None, "model_param": str(paths[-1])}
                elif len(paths) > 1:
                    document = {"model_param": None, **document}  # else it would be its own model
                _write(path, {**_settled(document, config.words), **ours, **model})
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    except OSError as error:
        why = f"its settings file cannot be copied: {error.strerror or error} ({settings.temp_dir})"
        raise _cannot_start(settings, why, "correct `temp_dir`, or its owner and mode") from error
    return str(paths[0]), str(directory)


def _settled(document: Document, words: Iterable[str]) -> Document:
    """Without what a literal ``--model`` overrides, as versions since 2026-05 have it; before, the file won."""
    if "--model" not in words:
        return document
    return {key: value for key, value in document.items() if key not in ("model", "model_param")}


def _write(path: Path, document: Mapping[str, object]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file)


def _model(groups: Sequence[Group], documents: Sequence[Document], words: Iterable[str]) -> str:
    """What the program takes for its text model once the file of ``--config`` is read; empty if nothing is named."""
    positional = next((group.value for group in groups if group.option == POSITIONAL), "")
    option = last_value(groups, "--model") or ""
    if documents and "--model" not in words:
        document = documents[0]
        named = _text(document.get("model_param")) or _text(document.get("model"))
        if named or "model_param" in document:
            return named or option
    return positional or option


def _without_model(groups: Sequence[Group], model: str) -> list[Group]:
    """Without the words that name the settings file, and without ``--model``, which would override what is in it."""
    return [
        group
        for group in groups
        if group.option != "--model" and not (group.option == POSITIONAL and group.value == model)
    ]


def _text(value: object) -> str:
    """A name, or the first of a list of names."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def _file(settings: BackendSettings, name: str) -> Path:
    """The file as the process would find it from its working directory."""
    return Path(settings.cwd or ".").expanduser() / name


def _read(settings: BackendSettings, name: str, *, may_be_missing: bool = False) -> Document | None:
    """One settings file; bytes that are not UTF-8 are passed over, as the program does.

    Returns:
        Its content; None if it may be missing and is.

    Raises:
        StartFailed: It cannot be read, or is no JSON object.
    """
    if name.lower().startswith(("http://", "https://")):
        raise _cannot_start(
            settings,
            f"its settings are to be downloaded from {_without_secrets(name)}",
            "download the file once, and name it instead of the address: the juggler must change the port in it",
        )
    path = _file(settings, name)
    try:
        if not path.is_file():
            if may_be_missing and not path.exists():
                return None
            why = "is not a file" if path.exists() else "does not exist"
            raise _cannot_start(settings, f"its settings file {path} {why}", "correct the path in `parameters`")
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        why = f"its settings file {path} cannot be read: {error.strerror or error}"
        raise _cannot_start(settings, why, "correct its owner or mode") from error
    if len(content) > FILE_LIMIT_BYTES:
        why = f"its settings file {path} is larger than {FILE_LIMIT_BYTES // MIB} MiB"
        raise _cannot_start(settings, why, "is it a model? Name that with `--model`")
    try:
        document = json.loads(content.decode("utf-8", "ignore").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        why = f"its settings file {path} is not valid JSON ({error})"
        raise _cannot_start(settings, why, "save it again from koboldcpp's window, or correct it by hand") from error
    if not isinstance(document, dict):
        why = f"its settings file {path} holds no JSON object"
        raise _cannot_start(settings, why, "save it again from koboldcpp's window, or correct it by hand")
    return document


def _without_secrets(address: str) -> str:
    """An address without query and user part, which may hold a token."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _cannot_start(settings: BackendSettings, why: str, hint: str) -> StartFailed:
    name = settings.endpoint_name
    return StartFailed(f"{name!r} cannot be started: {why}", hint=hint, endpoint=name, phase="starting")
