"""What decides whether a saved KV cache fits a server. A digest over all of it names the directory of the files.

llama.cpp checks the geometry of a file itself, but restores one of **other weights with the same shape** without a
word (backends.md 2.4): so the identity of every weight file is part of the digest.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from juggler.backends.command_line import canonical

_FILE_OPTIONS = frozenset(
    {"-m", "--model", "--mmproj", "-mm", "--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled"}
)
_LORA_WITH_SCALE = frozenset({"--lora-scaled", "--control-vector-scaled"})
_IRRELEVANT = frozenset(
    {
        # name: how many words follow it
        "--host", "--port", "--slot-save-path", "--reuse-port", "--api-key", "--api-key-file", "--api-prefix",
        "--alias", "-a", "--metrics", "--props", "--no-webui", "--webui", "--threads-http", "--timeout", "-to",
        "--log-file", "--log-disable", "--log-colors", "--log-prefix", "--log-timestamps", "-v", "--verbose", "-lv",
        "--verbosity", "--seed", "-s", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty", "-n",
        "--predict", "--n-predict", "-t", "--threads", "-tb", "--threads-batch", "--sse-ping-interval", "--slots",
        "--cache-ram", "--sleep-idle-seconds", "--jinja", "--chat-template", "--chat-template-file", "--warmup",
        "--no-warmup", "--tags", "--cache-reuse",
    }
)  # fmt: skip
"""Options that change neither the content nor the layout of the cache: the same file fits whatever they say."""

_FILE_VARIABLES = frozenset({"LLAMA_ARG_MODEL", "LLAMA_ARG_MMPROJ"})
_IRRELEVANT_VARIABLES = frozenset(
    {"LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_API_PREFIX", "LLAMA_ARG_API_KEY_FILE"}
)

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf\Z")


def signature_of(
    binary: str, parameters: Sequence[str], cwd: str | None, environ: Mapping[str, str], instance: str
) -> str:
    """A hexadecimal digest: equal exactly if nothing that matters differs.

    Args:
        binary: The program's absolute path.
        parameters: The operator's options.
        cwd: What relative paths start from.
        environ: Of the process; llama-server takes options from ``LLAMA_ARG_*``, the model included.
        instance: Two instances never share files: one would remove what the other is about to restore, and
            conversations of one endpoint have no place in another.
    """
    base = Path(cwd or ".")
    parts: list[object] = [instance, identity(Path(binary))]
    for name in sorted(environ):
        if name.startswith("LLAMA_ARG_") and name not in _IRRELEVANT_VARIABLES:
            parts.append([name, environ[name]])
            if name in _FILE_VARIABLES:
                parts.append([identity(part) for part in _files(base, "", environ[name])])
    position = 0
    while position < len(parameters):
        option = canonical(parameters[position])
        values: list[str] = []
        position += 1
        while position < len(parameters) and not _is_option(parameters[position]):
            values.append(parameters[position])
            position += 1
        if option in _IRRELEVANT:
            continue
        if option in _FILE_OPTIONS:
            parts.append([option, [identity(part) for value in values for part in _files(base, option, value)], values])
        else:
            parts.append([option, values])
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_option(word: str) -> bool:
    """An option, not a negative number."""
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)


def _files(base: Path, option: str, value: str) -> list[Path]:
    """The files behind one value: all parts of a split model, each of a comma list with its scale cut off."""
    files: list[Path] = []
    for name in value.split(",") if "lora" in option or "control" in option else [value]:
        plain = name.rpartition(":")[0] if option in _LORA_WITH_SCALE and ":" in name else name
        path = base / Path(plain).expanduser()
        split = _SPLIT.search(path.name)
        if split is None:
            files.append(path)
            continue
        stem, count = path.name[: split.start()], int(split.group(2))
        files += [path.with_name(f"{stem}-{part:05d}-of-{count:05d}.gguf") for part in range(1, min(count, 999) + 1)]
    return files


def identity(path: Path) -> list[object]:
    """Path, size and time of change of a file; a missing one is told apart as such."""
    try:
        real = path.resolve()
        stat = real.stat()
    except OSError:
        return [str(path), None]
    return [str(real), stat.st_size, stat.st_mtime_ns]
