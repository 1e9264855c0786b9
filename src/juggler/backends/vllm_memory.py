"""What vLLM takes of a GPU, and which files it reads. Blocking.

vLLM takes a share of each GPU whatever the model: the weights, and all the rest of the share for its KV cache
(``--gpu-memory-utilization``; vLLM's documentation, "Engine arguments"). A quantity given in bytes
(``--kv-cache-memory-bytes``) comes on top of weights whose size only vLLM knows: then nothing is estimated. Nor is it
for a model spread over several GPUs, which takes its share of each of them at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from juggler.backends.base import BackendSettings
from juggler.backends.gguf_model import existing
from juggler.memory.footprint import MemoryEstimate
from juggler.units import MIB

DEFAULT_GPU_SHARE = 0.92
"""In current versions (``vllm/config/cache.py``); 0.9 in earlier ones. The larger is the safe guess."""

INDEX_NAME = "model.safetensors.index.json"
INDEX_BYTES_MAX = 64 * MIB
FILES_MAX = 1000

_SPREADING = {
    "tensor-parallel-size": "-tp",
    "pipeline-parallel-size": "-pp",
    "data-parallel-size": "-dp",
    "prefill-context-parallel-size": "-pcp",
}
"""What multiplies the GPUs it takes (``vllm/engine/arg_utils.py``), with the short names."""


def model_files(settings: BackendSettings) -> tuple[Path, ...]:
    """The weights of a local model; what lies on a hub is not known before it was fetched."""
    folder = _folder(settings)
    if folder is None:
        return ()
    try:
        return existing(_weights(folder))
    except OSError:
        return ()


def memory_estimate(settings: BackendSettings) -> MemoryEstimate | None:
    """The share of the GPU; None where it is not a share."""
    words = settings.parameters
    if _value(words, "kv-cache-memory-bytes") is not None or _value(words, "kv-cache-memory") is not None:
        return None
    if any((_value(words, name, short) or "1") != "1" for name, short in _SPREADING.items()):
        return None
    try:
        share = float(_value(words, "gpu-memory-utilization") or DEFAULT_GPU_SHARE)
    except ValueError:
        return None
    if not 0 < share <= 1:
        return None
    return MemoryEstimate(gpu_fraction=share, note=f"--gpu-memory-utilization {share:g}")


def _folder(settings: BackendSettings) -> Path | None:
    """The folder of a local model: ``serve FOLDER``, ``--model FOLDER``, or the first word."""
    words = [word for word in settings.parameters if word != "serve"]
    named = _value(words, "model") or (words[0] if words and not words[0].startswith("-") else None)
    if not named:
        return None
    folder = Path(settings.cwd or ".") / named
    try:
        return folder if folder.is_dir() else None
    except (OSError, ValueError):
        return None


def _weights(folder: Path) -> list[Path]:
    """What the index lists, in its order; without an index every safetensors file.

    Raises:
        OSError: The folder cannot be read.
    """
    index = folder / INDEX_NAME
    try:
        if index.stat().st_size <= INDEX_BYTES_MAX:
            document = json.loads(index.read_bytes())
            names = document.get("weight_map") if isinstance(document, dict) else None
            if isinstance(names, dict):
                return [folder / name for name in dict.fromkeys(names.values()) if _is_name(name)][:FILES_MAX]
    except (OSError, ValueError, RecursionError):
        pass  # no index, or none that can be used
    return sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")[:FILES_MAX]


def _is_name(name: object) -> bool:
    """A file in the folder itself: an index may come from anywhere, and must not lead out of it."""
    return isinstance(name, str) and bool(name) and "/" not in name and "\\" not in name and "\0" not in name


def _value(words: Sequence[str], name: str, short: str = "") -> str | None:
    """The value of the last ``--name value``, ``--name=value`` or ``-short value``; underscores count as dashes."""
    found = None
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != short and (not option.startswith("--") or option[2:].replace("_", "-") != name):
            continue
        if equals:
            found = value
        elif position + 1 < len(words):
            found = words[position + 1]
    return found
