"""Writes small GGUF files with random weights, so that a real llama.cpp server has something to load.

No download and no dependency: the demo and the tests need models that load, fill memory and take time, not models
that know anything. The architecture is ``llama``; the text is gibberish by nature, made of syllables so that it
can be read aloud.

What a loader insists on was found by trying llama.cpp (build 11549 in the xllamacpp wheel): architecture, context,
embedding, feed-forward and head sizes, RMS epsilon, and a tokenizer with tokens, scores and types. Layout of the
file: ``docs/gguf.md`` of the ggml project, version 3.

The vocabulary is the same for every seed, and sizes depend on ``size_bytes`` alone: two seeds give two models of
one shape with different weights. That pair is what a cache of conversation states must never mix up.
"""

import os
import random
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from juggler.units import MIB

SIZE_BYTES_MIN = MIB // 2
SIZE_BYTES_MAX = 512 * MIB
"""Above this a demo model helps nobody, and the page cache of a small machine would suffer."""

_ALIGNMENT = 32
_POOL_VALUES = 1024 * 1024
_F32, _F16 = 0, 1
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_INT32 = 5

_TOKEN_NORMAL, _TOKEN_UNKNOWN, _TOKEN_CONTROL, _TOKEN_BYTE = 1, 2, 3, 6
_SPACE = "\u2581"  # how a SentencePiece vocabulary spells a space

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The ChatML layout, which llama.cpp renders with its own Jinja engine."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model; all in elements."""

    n_embd: int
    n_layer: int
    n_head: int
    n_ff: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values at 16 bits."""
        return 2 * self.n_layer * self.n_embd * 2


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    kind: int
    score: float
    spoken: bool
    """Whether the model may say it; the output rows of the others are zero, far below the random ones."""


def shape_for(size_bytes: int) -> ModelShape:
    """The shape whose file comes closest to ``size_bytes`` from below (within a few per cent).

    Raises:
        ValueError: Outside 0.5 MiB to 512 MiB.
    """
    if not SIZE_BYTES_MIN <= size_bytes <= SIZE_BYTES_MAX:
        raise ValueError(f"size_bytes must be between {SIZE_BYTES_MIN} and {SIZE_BYTES_MAX}, not {size_bytes}")
    if size_bytes < 2 * MIB:
        n_embd, n_layer, n_head = 64, 2, 4
    elif size_bytes < 24 * MIB:
        n_embd, n_layer, n_head = 192, 4, 6
    else:
        n_embd, n_layer, n_head = 512, 8, 8
    fixed = 2 * 2 * len(_vocabulary()) * n_embd + n_layer * 2 * 4 * n_embd * n_embd + 24 * 1024
    per_ff = n_layer * 2 * 3 * n_embd
    n_ff = max(_ALIGNMENT, (size_bytes - fixed) // per_ff // _ALIGNMENT * _ALIGNMENT)
    return ModelShape(n_embd, n_layer, n_head, n_ff)


def write_model(
    path: Path | str,
    *,
    seed: int = 0,
    size_bytes: int = 2 * MIB,
    context_length: int = 16384,
    name: str = "gibberish",
) -> Path:
    """Write one model file; about 0.1 s for 100 MB. An existing file is replaced in one step.

    Args:
        path: Where to; the directory must exist.
        seed: Decides the weights and nothing else.
        size_bytes: Wanted size of the file, 0.5 MiB to 512 MiB.
        context_length: The context the model claims to be trained for, in tokens.
        name: Shown by servers as the model's name.

    Returns:
        ``path``.

    Raises:
        ValueError: ``size_bytes`` out of range.
        OSError: The file cannot be written; nothing is left behind.
    """
    path = Path(path)
    shape = shape_for(size_bytes)
    metadata = _metadata(shape, context_length, name)
    tensors = list(_tensors(shape))
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
            file.write(b"".join(metadata))
            offset = 0
            for tensor in tensors:
                file.write(tensor.header(offset))
                offset += _padded(tensor.size_bytes)
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            weights = _Weights(seed)
            for tensor in tensors:
                file.write(weights.data(tensor))
                file.write(b"\0" * (-tensor.size_bytes % _ALIGNMENT))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dims: tuple[int, ...]
    """Fastest first, as the file has them."""

    @property
    def kind(self) -> int:
        return _F32 if len(self.dims) == 1 else _F16

    @property
    def elements(self) -> int:
        return self.dims[0] if len(self.dims) == 1 else self.dims[0] * self.dims[1]

    @property
    def size_bytes(self) -> int:
        return self.elements * (4 if self.kind == _F32 else 2)

    def header(self, offset: int) -> bytes:
        dims = struct.pack(f"<I{len(self.dims)}Q", len(self.dims), *self.dims)
        return _string(self.name) + dims + struct.pack("<IQ", self.kind, offset)


class _Weights:
    """Random halves between 0.008 and 0.06 in size, drawn once and then cut from a pool at random places.

    Drawing each weight of a 100 MB file would take seconds in pure Python. Cutting from a pool repeats numbers within a
    file; nobody looks, and two tensors or two seeds still differ.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        # A half is sign, 5 bits of exponent, 10 of mantissa; the high byte carries sign, exponent and two mantissa
        # bits. Exponents 8 to 10 (2**-7 to 2**-5) keep the activations of a few layers in range.
        high = bytes((byte & 0x80) | ((8 + byte % 3) << 2) | (byte >> 3 & 3) for byte in range(256))
        pool = bytearray(2 * _POOL_VALUES)
        pool[0::2] = self._random.randbytes(_POOL_VALUES)
        pool[1::2] = self._random.randbytes(_POOL_VALUES).translate(high)
        self._pool = memoryview(bytes(pool))

    def data(self, tensor: _Tensor) -> bytes:
        if tensor.kind == _F32:
            return struct.pack("<f", 1.0) * tensor.elements  # norms
        wanted, parts = tensor.size_bytes, []
        while wanted:
            start = 2 * self._random.randrange(_POOL_VALUES)
            part = self._pool[start : start + wanted]
            parts.append(part)
            wanted -= len(part)
        data = b"".join(parts)
        return _silenced(data, tensor.dims[0]) if tensor.name == "output.weight" else data


def _silenced(data: bytes, n_embd: int) -> bytes:
    rows, width = bytearray(data), 2 * n_embd
    for index, token in enumerate(_vocabulary()):
        if not token.spoken:
            rows[index * width : (index + 1) * width] = bytes(width)
    return bytes(rows)


def _tensors(shape: ModelShape) -> Iterator[_Tensor]:
    n_embd, n_vocab = shape.n_embd, len(_vocabulary())
    yield _Tensor("token_embd.weight", (n_embd, n_vocab))
    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}"
        yield _Tensor(f"{prefix}.attn_norm.weight", (n_embd,))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield _Tensor(f"{prefix}.{part}.weight", (n_embd, n_embd))
        yield _Tensor(f"{prefix}.ffn_norm.weight", (n_embd,))
        yield _Tensor(f"{prefix}.ffn_gate.weight", (n_embd, shape.n_ff))
        yield _Tensor(f"{prefix}.ffn_up.weight", (n_embd, shape.n_ff))
        yield _Tensor(f"{prefix}.ffn_down.weight", (shape.n_ff, n_embd))
    yield _Tensor("output_norm.weight", (n_embd,))
    yield _Tensor("output.weight", (n_embd, n_vocab))


def _vocabulary() -> list[_Token]:
    """Control tokens, all bytes, printable characters, and syllables with and without a space before them.

    A syllable is consonant and vowel, so a text of syllables can be cut in one way only: what the model said is cut
    into the same tokens when a client sends it back, and a cached conversation keeps matching.
    """
    tokens = [
        _Token("<unk>", _TOKEN_UNKNOWN, 0.0, False),
        _Token("<s>", _TOKEN_CONTROL, 0.0, False),
        _Token("</s>", _TOKEN_CONTROL, 0.0, True),
        _Token("<|im_start|>", _TOKEN_CONTROL, 0.0, False),
        _Token("<|im_end|>", _TOKEN_CONTROL, 0.0, True),
    ]
    tokens += [_Token(f"<0x{byte:02X}>", _TOKEN_BYTE, 0.0, False) for byte in range(256)]
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstvwz" for vowel in "aeiou"]
    tokens += [_Token(text, _TOKEN_NORMAL, -1.0, True) for text in syllables]
    tokens += [_Token(_SPACE + text, _TOKEN_NORMAL, -2.0, True) for text in syllables]
    printable = [_SPACE, *(chr(code) for code in range(0x21, 0x7F))]
    tokens += [_Token(text, _TOKEN_NORMAL, -10.0, text in ".,?!") for text in printable]
    return tokens


def _metadata(shape: ModelShape, context_length: int, name: str) -> list[bytes]:
    vocabulary = _vocabulary()
    numbers = {
        "general.alignment": _ALIGNMENT,
        "llama.context_length": context_length,
        "llama.embedding_length": shape.n_embd,
        "llama.block_count": shape.n_layer,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_head,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    texts = {
        "general.architecture": "llama",
        "general.name": name,
        "general.description": "Random weights: speaks gibberish by nature.",
        "tokenizer.ggml.model": "llama",
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    entries = [_entry(key, _STRING, _string(text)) for key, text in texts.items()]
    entries += [_entry(key, _UINT32, struct.pack("<I", number)) for key, number in numbers.items()]
    entries.append(_entry("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)))
    entries.append(_entry("tokenizer.ggml.add_space_prefix", _BOOL, b"\0"))
    entries.append(_array("tokenizer.ggml.tokens", _STRING, [_string(token.text) for token in vocabulary]))
    scores = [struct.pack("<f", token.score) for token in vocabulary]
    entries.append(_array("tokenizer.ggml.scores", _FLOAT32, scores))
    kinds = [struct.pack("<i", token.kind) for token in vocabulary]
    entries.append(_array("tokenizer.ggml.token_type", _INT32, kinds))
    return entries


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _array(key: str, kind: int, items: Sequence[bytes]) -> bytes:
    return _entry(key, _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))
