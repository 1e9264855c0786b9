"""From a file to a validated configuration, or to every reason why not.

The readers give located values, the models check each value, ``validate`` checks how the values fit together. All
problems are collected and told at once.
"""

import dataclasses
import re
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from juggler.config.explain import explain
from juggler.config.problems import ConfigFileError as ConfigFileError
from juggler.config.problems import PathParts, Position, Severity, Source, config_error, in_file_order, path_text
from juggler.config.problems import Problem as Problem
from juggler.config.reader import read_json
from juggler.config.schema import Config
from juggler.config.tree import FILE_BYTES_MAX, Node, Read, follow, key_position, plain

Format = Literal["json", "yaml"]

_YAML_SUFFIXES = frozenset({".yaml", ".yml"})
_CODES_OF_NAMES = frozenset({"unknown-backend", "unknown-warmup", "duplicate-name", "bad-prefix", "bad-url"})
_CODES_OF_BACKENDS = frozenset({"unknown-type", "missing-key", "attach-refused"})
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclasses.dataclass(frozen=True)
class LoadedConfig:
    """A configuration without errors, and where everything in it is written."""

    config: Config
    source: Source
    root: Node
    warnings: tuple[Problem, ...] = ()
    """In the order of the file."""

    @property
    def path(self) -> str:
        """The file, as the operator named it."""
        return self.source.path

    def location(self, *path: str | int) -> Position:
        """Where a value begins: ``location("servers", 0, "port")``; its nearest container if it is not written."""
        return follow(self.root, path)[0].position

    def key_location(self, *path: str | int) -> Position:
        """Where the key of a value is written."""
        return key_position(self.root, path)

    def is_written(self, *path: str | int) -> bool:
        """Whether the file holds this value, ``null`` not counted."""
        node, found = follow(self.root, path)
        return found == path and node.value is not None

    def problem(
        self,
        severity: Severity,
        path: PathParts,
        message: str,
        *,
        hint: str | None = None,
        code: str,
        at_key: bool = False,
    ) -> Problem:
        """A problem at a value (or at its key) of this configuration."""
        position = self.key_location(*path) if at_key else self.location(*path)
        return self.source.problem(severity, position, message, hint=hint, code=code, key=path)


def load_config(path: str | Path) -> LoadedConfig:
    """Read and check a configuration file.

    Reads at most ``FILE_BYTES_MAX`` bytes; touches nothing else on the machine.

    Raises:
        ConfigFileError: The file is missing or cannot be read.
        ConfigError: Its content is wrong; the message lists every problem, ``details["problems"]`` as data.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigFileError(f"{name}: there is no such file", hint="name another one with --config FILE") from error
    except IsADirectoryError as error:
        raise ConfigFileError(f"{name} is a directory, not a file", hint=f"did you mean {name}/config.json?") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigFileError(f"{name} cannot be read: {reason}") from error
    if len(data) > FILE_BYTES_MAX:
        problem = Source(name, "").problem(
            "error", Position(1, 1), f"the file is larger than {FILE_BYTES_MAX} bytes", code="too-large"
        )
        raise config_error([problem])
    return load_text(_decode(name, data), name, "yaml" if Path(name).suffix.lower() in _YAML_SUFFIXES else "json")


def load_text(text: str, path: str | Path = "config.json", format: Format = "json") -> LoadedConfig:
    """As ``load_config``, for a text that is already here; ``path`` only appears in messages.

    Raises:
        ConfigError: The content is wrong.
    """
    from juggler.config.validate import validate

    source = Source(str(path), text.removeprefix(_BOM))
    read = _read(source, format)
    if read.root is None:
        raise config_error(read.problems)
    problems = list(read.problems)
    data = plain(read.root)
    try:
        loaded = LoadedConfig(Config.model_validate(data), source, read.root)
    except ValidationError as error:
        problems += explain(source, read.root, error.errors(include_url=False, include_input=False))
        problems += _problems_beside(error, data, source, read.root)
        raise config_error(problems) from None
    problems += validate(loaded)
    if any(problem.severity == "error" for problem in problems):
        raise config_error(problems)
    return dataclasses.replace(loaded, warnings=tuple(in_file_order(problems)))


def _problems_beside(error: ValidationError, data: object, source: Source, root: Node) -> list[Problem]:
    """How the remaining values fit together once those that pydantic refused are left out.

    Without this, an unknown key would hide an unknown backend until the next run. Only what cannot be a mere
    consequence of the loss is told.
    """
    from juggler.config.validate import validate

    incomplete: list[str] = []
    for detail in error.errors(include_url=False, include_input=False):
        found = follow(root, detail["loc"])[1]
        if detail["type"] == "extra_forbidden" or detail["loc"][-1:] == ("[key]",):
            found = (*found[: len(follow(root, detail["loc"][:-1])[1])], detail["loc"][-1])
        keys = [index for index, part in enumerate(found) if isinstance(part, str)]
        if detail["type"] == "missing" or not keys:
            return []
        owner = data
        try:
            for part in found[: keys[-1]]:
                owner = owner[part]  # type: ignore[index]  # what it is not subscriptable with is caught
        except (LookupError, TypeError):
            continue  # it went with a larger part that was refused too
        if not isinstance(owner, dict):
            return []
        owner.pop(found[keys[-1]], None)
        incomplete.append(path_text(found[: keys[-1]]))
    try:
        loaded = LoadedConfig(Config.model_validate(data), source, root)
    except ValidationError:
        return []

    def is_sure(problem: Problem) -> bool:
        if problem.code in _CODES_OF_BACKENDS:
            return not any(problem.key == part or problem.key.startswith(f"{part}.") for part in incomplete)
        return problem.code in _CODES_OF_NAMES

    return [problem for problem in validate(loaded) if is_sure(problem)]


def _read(source: Source, format: Format) -> Read:
    surrogate = _SURROGATE.search(source.text)
    if surrogate is not None:
        message = "half of a surrogate pair: this is not text"
        return Read(None, [source.problem("error", source.position(surrogate.start()), message, code="encoding")])
    if format == "json":
        return read_json(source)
    from juggler.config.yaml_reader import read_yaml

    return read_yaml(source)


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        source = Source(name, before)
        position = source.position(len(before))
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            message, position = "the file is UTF-16, not UTF-8", Position(1, 1)
        else:
            message = f"the byte 0x{data[error.start]:02x} is not UTF-8"
        problem = source.problem("error", position, message, hint="save the file as UTF-8", code="encoding")
        raise config_error([problem]) from error
