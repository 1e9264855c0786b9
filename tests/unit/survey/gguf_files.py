"""Writes GGUF files that hold a head and as many bytes as it promises. Layout: ``docs/gguf.md`` of ggml."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

Written = str | int | float | bool | Sequence[str] | Sequence[int]

LLAMA: dict[str, Written] = {
    "general.architecture": "llama",
    "general.type": "model",
    "llama.block_count": 32,
    "llama.context_length": 131072,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
"""An 8B model of the Llama 3 shape."""


def head(
    values: Mapping[str, Written],
    *,
    tensor_offset: int = 0,
    version: int = 3,
    tensors: Mapping[str, int] | None = None,
) -> bytes:
    """The bytes of a head with some tensors and their offsets in the data; else one, at ``tensor_offset``."""
    tensors = {"output.weight": tensor_offset} if tensors is None else tensors
    parts = [struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(values))]
    for key, value in values.items():
        parts += [_string(key), _value(value)]
    parts += [_string(name) + struct.pack("<IQIQ", 1, 8, 0, offset) for name, offset in tensors.items()]
    data = b"".join(parts)
    return data + b"\0" * (-len(data) % 32)


def write_gguf(
    path: Path, values: Mapping[str, Written] = LLAMA, *, size_bytes: int = 4096, tensor_offset: int = 0
) -> Path:
    """A file of ``size_bytes`` (mostly a hole); its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head(values, tensor_offset=tensor_offset)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(max(size_bytes, len(data) + tensor_offset + 32))
    return path


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Written) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(str(item)) for item in value)
    return struct.pack("<IIQ", 9, 5, len(value)) + b"".join(struct.pack("<i", int(item)) for item in value)
