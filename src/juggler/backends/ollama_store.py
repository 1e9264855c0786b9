"""The models that an ollama server would find on the disk, told as it tells them. Blocking; for a thread.

The store is a folder of manifests, ``manifests/HOST/NAMESPACE/MODEL/TAG``, and of blobs named by their digest. Lists
are made of nothing else by ollama itself (v0.33.0: ``manifest/manifest.go``, ``server/model_list_cache.go``), details
of a model of its manifest and the head of its GGUF file (``server/routes.go``: ``GetModelInfo``). What only the
program can know is left out: ``capabilities`` (each version concludes them anew), ``modelfile``, tensors. A field that
is not there means "not told" to clients; a wrong one would mislead them.

The files are somebody else's: everything is bounded, and what is damaged is passed over.
"""

import hashlib
import json
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from juggler.survey.gguf import NotGguf, read_head
from juggler.units import MIB, SECONDS

MODELS_MAX = 4096
FOLDERS_MAX = 16_384
"""Entries of folders that are looked at for one list."""

LIST_KEPT_S = 1 * SECONDS
"""A list is looked up once for all who poll; nobody notices a model a second later."""

TEXT_BYTES_MAX = MIB
"""Of a manifest, a template, a license: longer ones are no such thing."""

HEADS_KEPT = 64
"""Heads of GGUF files that are remembered: a blob's name is the digest of what it holds, so they never change."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
"""``types/model/name.go``, ``manifest/paths.go``."""

_DEFAULTS = ("registry.ollama.ai", "library")
_KIND = "application/vnd.ollama.image."
_DEFAULT_TEMPLATE = "{{ .Prompt }}"
"""``template/template.go``; of a model that brings none."""

_LATEST_NS = 253_402_300_799 * 10**9
"""The end of the year 9999, beyond which there are no dates."""

_STRING_BYTES_CUT = 4096
"""Longer strings of a head are cut by its reader, so this long a one may not be whole."""

Json = dict[str, object]


@dataclass(frozen=True)
class StoredModel:
    """One manifest, with the configuration that it names."""

    parts: tuple[str, str, str, str]
    """Host, namespace, model, tag."""
    digest: str
    modified_ns: int
    """Since 1970, as everywhere."""
    layers: tuple[Json, ...]
    size_bytes: int
    config: Json

    @property
    def name(self) -> str:
        """As short as it can be (``Name.DisplayShortest``)."""
        host, namespace, model, tag = self.parts
        if host.lower() != _DEFAULTS[0]:
            return f"{host}/{namespace}/{model}:{tag}"
        return f"{model}:{tag}" if namespace.lower() == _DEFAULTS[1] else f"{namespace}/{model}:{tag}"

    @property
    def remote(self) -> bool:
        """It runs elsewhere, and is known there."""
        return bool(self.config.get("remote_host"))

    @property
    def modified_at(self) -> str:
        whole, nanoseconds = divmod(max(0, min(self.modified_ns, _LATEST_NS)), 10**9)
        return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"

    def details(self) -> Json:
        config = self.config
        details: Json = {
            "parent_model": "",
            "format": _text_in(config, "model_format"),
            "family": _text_in(config, "model_family"),
            "families": config.get("model_families"),
            "parameter_size": _text_in(config, "model_type"),
            "quantization_level": _text_in(config, "file_type"),
        }
        lengths = {"context_length": config.get("context_length"), "embedding_length": config.get("embedding_length")}
        return details | {key: value for key, value in lengths.items() if value}


class ModelStore:
    """One folder (``OLLAMA_MODELS``).

    Args:
        folder: It need not exist.
        clock: Monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._listed: tuple[float, list[StoredModel]] = (-math.inf, [])
        self._heads: OrderedDict[str, Json] = OrderedDict()

    def models(self) -> list[StoredModel]:
        """All of them, the last changed first; as they were ``LIST_KEPT_S`` ago at the earliest.

        Raises:
            OSError: There is no store here, or it cannot be read: nobody knows what ollama would say.
        """
        now = self._clock()
        if now - self._listed[0] < LIST_KEPT_S:
            return self._listed[1]
        root = self.folder / "manifests"
        os.scandir(root).close()
        found = [model for parts, path in _manifests(root) if (model := self._read(parts, path)) is not None]
        found.sort(key=lambda model: -(model.modified_ns // 10**9))
        self._listed = (now, found)
        return found

    def find(self, wanted: str) -> StoredModel | None:
        """The model of this name as requests write it: host, namespace and tag may be left out, case is ignored.

        Raises:
            OSError: As ``models``.
        """
        parts = parts_of_name(wanted)
        same = [model for model in self.models() if tuple(map(str.lower, model.parts)) == parts]
        return same[0] if same else None

    def show(self, model: StoredModel, system: str = "") -> Json | None:
        """What ``/api/show`` tells of a model, as far as its files tell; None where too little of it is there.

        Args:
            model: From ``find``.
            system: Takes the place of the model's own system prompt.
        """
        texts = {kind: self._texts(model, kind) for kind in ("license", "template", "system", "params", "messages")}
        source = next((layer for layer in model.layers if layer.get("mediaType") == f"{_KIND}model"), None)
        head = self._head(str(source.get("digest"))) if source is not None else None
        if head is None or source is None or any(None in found for found in texts.values()):
            return None
        found = {kind: [text or "" for text in kinds] for kind, kinds in texts.items()}
        answer: Json = {
            "license": "\n".join(found["license"]),
            "parameters": _parameters(found["params"]),
            "template": (found["template"] or [""])[-1],
            "system": system or (found["system"] or [""])[-1],
        }
        if not found["template"] and not head["chat template"]:
            answer["template"] = _DEFAULT_TEMPLATE
        answer = {key: text for key, text in answer.items() if text}
        answer["details"] = model.details() | {"parent_model": str(source.get("from") or "")}
        if found["messages"]:
            answer["messages"] = _json(found["messages"][-1])
        answer["model_info"] = head["values"]
        answer["modified_at"] = model.modified_at
        if model.config.get("requires"):
            answer["requires"] = model.config["requires"]
        return answer

    def _read(self, parts: tuple[str, str, str, str], path: Path) -> StoredModel | None:
        """One manifest; None if it is none, or its configuration is not there."""
        data = _short_file(path)
        document = _json(data or b"")
        if data is None or not isinstance(document, dict):
            return None
        layers, config_layer = document.get("layers"), document.get("config")
        listed = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
        config_layer = config_layer if isinstance(config_layer, dict) else {}
        config: object = {}
        if config_layer.get("digest"):
            config = _json(_short_file(self._blob(config_layer.get("digest"))) or b"")
        if not isinstance(config, dict):
            return None
        sizes = [layer.get("size") for layer in (*listed, config_layer)]
        size = sum(one for one in sizes if isinstance(one, int))
        try:
            modified = path.stat().st_mtime_ns
        except OSError:
            return None
        return StoredModel(parts, hashlib.sha256(data).hexdigest(), modified, tuple(listed), size, config)

    def _blob(self, digest: object) -> Path | None:
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            return None
        return self.folder / "blobs" / digest.replace(":", "-")

    def _texts(self, model: StoredModel, kind: str) -> list[str | None]:
        """Of all layers of a kind; None for one that is not there."""
        kinds = (f"{_KIND}template", f"{_KIND}prompt") if kind == "template" else (f"{_KIND}{kind}",)
        found = [
            _short_file(self._blob(layer.get("digest"))) for layer in model.layers if layer.get("mediaType") in kinds
        ]
        return [None if data is None else data.decode("utf-8", "replace") for data in found]

    def _head(self, digest: str) -> Json | None:
        """What a GGUF blob's head holds, as ``model_info`` tells it; None if it is none."""
        head = self._heads.get(digest)
        path = self._blob(digest)
        if head is None and path is not None:
            try:
                read = read_head(path)
            except (NotGguf, OSError):
                return None
            told: Json = {key: value for key, value in read.values.items() if _is_told(value)}
            told |= dict.fromkeys(read.lengths)  # lists are told to who asks for all of it
            has_template = bool(told.pop("tokenizer.chat_template", "tokenizer.chat_template" in read.values))
            told.pop("general.name", None)
            head = self._heads[digest] = {"values": told, "chat template": has_template}
            while len(self._heads) > HEADS_KEPT:
                self._heads.popitem(last=False)
        return head


def models_folder(env: Mapping[str, str], cwd: str | None) -> Path | None:
    """Where a server with this environment keeps its models (``envconfig.Models``); None: it would not start."""
    value = env.get("OLLAMA_MODELS", "").strip().strip("\"'")
    home = env.get("USERPROFILE" if os.name == "nt" else "HOME", "")
    if value:
        return Path(cwd or ".", value)
    return Path(home, ".ollama", "models") if home else None


def parts_of_name(name: str) -> tuple[str, ...]:
    """Host, namespace, model and tag in lower case, those that were left out filled in (``ParseName``)."""
    rest, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        rest, tag = name, "latest"
    pieces = rest.rsplit("/", 2)
    pieces = [*_DEFAULTS[: 3 - len(pieces)], *pieces]
    pieces[0] = pieces[0].rpartition("://")[2]
    return tuple(piece.lower() for piece in (*pieces, tag))


def _manifests(root: Path) -> Iterator[tuple[tuple[str, str, str, str], Path]]:
    """Every file four folders deep whose path is a name."""
    looked, found = 0, 0
    pending: list[tuple[tuple[str, ...], Path]] = [((), root)]
    while pending:
        parts, folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            looked += 1
            pattern = _PART if parts else _HOST
            if looked > FOLDERS_MAX or found >= MODELS_MAX:
                return
            if pattern.fullmatch(entry.name) is None:
                continue
            path = folder / entry.name
            if len(parts) == 3 and entry.is_file():
                found += 1
                yield (parts[0], parts[1], parts[2], entry.name), path
            elif len(parts) < 3 and entry.is_dir():
                pending.append(((*parts, entry.name), path))


def _short_file(path: Path | None) -> bytes | None:
    """What a file holds; None if it is not there, or longer than any such file."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
    except OSError:
        return None
    return data if len(data) <= TEXT_BYTES_MAX else None


def _json(data: bytes | str) -> object:
    """What it says; None if that is no JSON: Python's NaN and numbers beyond floats are none to Go, either."""
    try:
        return json.loads(data, parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _whole(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("too large for a float")
    return value


def _text_in(config: Json, key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""


def _is_told(value: object) -> bool:
    if isinstance(value, str):
        return len(value.encode()) < _STRING_BYTES_CUT
    return not isinstance(value, float) or math.isfinite(value)


def _parameters(layers: list[str]) -> str:
    """A model's own options, a line each (``GetModelInfo``); later layers win."""
    options: Json = {}
    for layer in layers:
        document = _json(layer)
        options |= document if isinstance(document, dict) else {}
    lines = []
    for key, value in options.items():
        lines += [f"{key:<30} {_go(one)}" for one in (value if isinstance(value, list) else [value])]
    return "\n".join(lines)


def _go(value: object) -> str:
    """A value of JSON as Go's ``%#v`` writes it: numbers are floats, in their shortest form."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "<nil>"}[value]
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (int, float)):
        return json.dumps(value)
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = len(digits) + exponent - 1
    if -5 < power < 6 or not any(digits):
        return f"{Decimal((sign, digits, exponent)):f}"
    tail = "".join(map(str, digits[1:]))
    mantissa = f"{digits[0]}.{tail}" if tail else f"{digits[0]}"
    return f"{'-' if sign else ''}{mantissa}e{power:+03d}"
