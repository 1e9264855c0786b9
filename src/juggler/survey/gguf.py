"""The head of a GGUF file: what the model is, and how much memory it will want.

Read with our own bounded parser: the file is untrusted, every length in it is checked against what is there, and
only the head is read. Layout: ``docs/gguf.md`` of the ggml project, versions 2 and 3; keys: memory.md section C.
"""

import itertools
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from juggler.units import MIB

HEAD_BYTES_MAX = 64 * MIB
"""The largest heads hold vocabularies of 260 000 words with merges: below 20 MiB."""

ARRAY_ITEMS_KEPT = 1024
ITEMS_KEPT = 65_536
"""Of all lists together: a number of a list takes five times its bytes here."""
STRINGS_MAX = 2**21
"""In all lists together; the largest vocabularies with their merges have 800 000."""
KEYS_MAX = 4096
TENSORS_MAX = 65_536
LAYERS_MAX = 1024
NUMBER_MAX = 2**31
"""Of what is counted: contexts reach tens of millions, everything else is smaller."""
_STRING_BYTES_KEPT = 4096
_FIRST_READ_BYTES = 2 * MIB

SIZE_MAX = 2**50
"""Bytes; no tensor is larger."""

_EXPERTS = re.compile(r"blk\.([0-9]{1,4})\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\b")
"""What ``--cpu-moe`` keeps in main memory (llama.cpp: ``common/arg.cpp``)."""

_SPLIT = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf\Z")
"""llama.cpp's names for the parts of a model (``gguf-split``), counted from 1."""

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

Value = int | float | bool | str | tuple[int | float | bool, ...]


class NotGguf(ValueError):
    """The file is no GGUF file, or is damaged; the message says in a few words which."""


class _More(Exception):
    """The head goes on behind what has been read."""


@dataclass(frozen=True)
class GgufHead:
    """What stands at the beginning of a file."""

    values: dict[str, Value] = field(default_factory=dict)
    """Scalars, and arrays of numbers with at most ``ARRAY_ITEMS_KEPT`` items."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Number of items of every array."""
    least_bytes: int = 0
    """The file cannot be complete if it is shorter."""
    token_embedding_bytes: int = 0
    """Of the table of token embeddings, where this part holds it."""
    has_output: bool = False
    """It holds an output layer of its own, beside that table."""
    expert_bytes: dict[int, int] = field(default_factory=dict)
    """Of the experts of each layer that this part holds (mixture of experts)."""

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def is_language_model(self) -> bool:
        """Whether llama-server can load it as its model: projectors, adapters and image models have no vocabulary."""
        return "tokenizer.ggml.model" in self.values and self.values.get("general.type", "model") == "model"

    @property
    def is_projector(self) -> bool:
        """What ``--mmproj`` takes: the eyes or ears of a model (llama.cpp: ``tools/mtmd/clip.cpp``)."""
        return self.architecture == "clip" or self.values.get("general.type") == "mmproj"

    def number(self, key: str) -> int | None:
        """A whole number by its key without the architecture: ``block_count``."""
        return _whole(self.values.get(f"{self.architecture}.{key}"))

    @property
    def layers(self) -> int:
        """0 if the file does not tell, and never more than any model has."""
        return min(self.number("block_count") or 0, LAYERS_MAX)

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        """A number for each layer, where the file gives one for all or a list."""
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple) and len(value) >= layers:
            return [_whole(one) or 0 for one in value[:layers]]
        number = self.number(key)
        return [default if number is None else number] * layers


def _whole(value: object) -> int | None:
    """A number from an untrusted file, if it is one that a size or a count can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= NUMBER_MAX:
        return None
    return int(value)


def read_head(path: Path) -> GgufHead:
    """Parse the head of a file.

    Raises:
        NotGguf: It is something else, or damaged.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_FIRST_READ_BYTES)
        while True:
            try:
                return _Parser(data).head()
            except _More:
                if len(data) >= HEAD_BYTES_MAX:
                    raise NotGguf("its head is longer than any model's") from None
                more = file.read(min(3 * len(data), HEAD_BYTES_MAX - len(data)))
                if not more:
                    raise NotGguf("it ends in the middle of its head") from None
                data += more


def parts_of(path: Path) -> list[Path]:
    """All files of a model, whichever part is named; just the file if it is in one piece."""
    match = _SPLIT.search(path.name)
    if match is None:
        return [path]
    stem, count = path.name[: match.start()], int(match.group(2))
    return [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, min(count, 999) + 1)]


def is_later_part(path: Path) -> bool:
    """Whether this is a part other than the first, which is the one to load."""
    match = _SPLIT.search(path.name)
    return match is not None and int(match.group(1)) != 1


def plain_stem(path: Path) -> str:
    """The file's name without the number of its part and without ``.gguf``."""
    return _SPLIT.sub("", path.name).removesuffix(".gguf")


class _Parser:
    """Walks over a head that begins at offset 0 of ``data``."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0
        self.strings = 0
        self.kept = 0

    def head(self) -> GgufHead:
        if self.data[:4] != b"GGUF"[: len(self.data)] or not self.data:
            raise NotGguf("it does not begin as GGUF files do")
        self.offset = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise NotGguf(f"it says to be of GGUF version {version}")
        tensors, keys = self._number("<Q"), self._number("<Q")
        if keys > KEYS_MAX or tensors > TENSORS_MAX:
            raise NotGguf("its head holds impossible numbers")
        head = GgufHead()
        for _ in range(keys):
            self._key(head)
        tensors_found = self._tensors(tensors)
        end = max((offset for _, offset in tensors_found), default=0)
        alignment = head.values.get("general.alignment", 32)
        step = alignment if isinstance(alignment, int) and 0 < alignment <= 2**20 else 32
        start = (self.offset + step - 1) // step * step
        return _with_sizes(GgufHead(head.values, head.lengths, start + end if tensors else self.offset), tensors_found)

    def _key(self, head: GgufHead) -> None:
        key = self._string()
        kind = self._number("<I")
        if kind == _STRING:
            head.values[key] = self._string()
        elif kind == _ARRAY:
            self._array(head, key)
        elif kind in _NUMBERS:
            head.values[key] = self._number(_NUMBERS[kind])
        else:
            raise NotGguf("its head holds a value of an unknown kind")

    def _array(self, head: GgufHead, key: str) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if count > HEAD_BYTES_MAX:
            raise NotGguf("its head holds impossible numbers")
        head.lengths[key] = count
        if kind == _STRING:
            self._skip_strings(count)
        elif kind in _NUMBERS:
            form = f"<{count}{_NUMBERS[kind][1]}"
            start = self.offset
            self._skip(count * struct.calcsize(_NUMBERS[kind]))
            if count <= ARRAY_ITEMS_KEPT and self.kept + count <= ITEMS_KEPT:
                self.kept += count
                head.values[key] = struct.unpack_from(form, self.data, start)
        else:
            raise NotGguf("its head holds a list of an unknown kind")

    def _skip_strings(self, count: int) -> None:
        """Inline, because vocabularies and their merges hold half a million of them."""
        self.strings += count
        if self.strings > STRINGS_MAX:
            raise NotGguf("its head holds impossible numbers")
        data, offset, end = self.data, self.offset, len(self.data)
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if offset + 8 > end:
                raise _More
            offset += 8 + length_at(data, offset)[0]
        if offset > end:
            raise _More
        self.offset = offset

    def _tensors(self, count: int) -> list[tuple[str, int]]:
        """Name and offset within the data of every tensor."""
        found = []
        for _ in range(count):
            name = self._string()
            dimensions = self._number("<I")
            if dimensions > 8:
                raise NotGguf("its head holds impossible numbers")
            self._skip(8 * dimensions + 4)
            found.append((name, self._number("<Q")))
        return found

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        if self.offset + size > len(self.data):
            raise _More
        value: int = struct.unpack_from(form, self.data, self.offset)[0]
        self.offset += size
        return value

    def _string(self) -> str:
        length = self._number("<Q")
        start = self.offset
        self._skip(length)
        return self.data[start : start + min(length, _STRING_BYTES_KEPT)].decode("utf-8", "replace")

    def _skip(self, count: int) -> None:
        if count > HEAD_BYTES_MAX:
            raise NotGguf("its head holds impossible numbers")
        self.offset += count
        if self.offset > len(self.data):
            raise _More


def _with_sizes(head: GgufHead, tensors: list[tuple[str, int]]) -> GgufHead:
    """Add the sizes of the tensors that matter: each reaches to the next one; the last one's is not told."""
    tensors = sorted(tensors, key=lambda tensor: tensor[1])
    embedding, experts = 0, dict[int, int]()
    for (name, begin), (_, end) in itertools.pairwise(tensors):
        size = min(end - begin, SIZE_MAX)
        if name == "token_embd.weight":
            embedding = size
        elif (match := _EXPERTS.match(name)) is not None:
            layer = int(match.group(1))
            experts[layer] = experts.get(layer, 0) + size
    has_output = any(name == "output.weight" for name, _ in tensors)
    return replace(head, token_embedding_bytes=embedding, has_output=has_output, expert_bytes=experts)
