"""The GGUF writer, read back with a reader of our own."""

import struct
from pathlib import Path
from typing import Any

import pytest

from juggler.demo.models import SIZE_BYTES_MAX, SIZE_BYTES_MIN, shape_for, write_model
from juggler.units import MIB

_SCALARS = {4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}


class Reader:
    """Enough of GGUF version 3 to check a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        magic, version, tensors, entries = self.take("<4sIQQ")
        assert (magic, version) == (b"GGUF", 3)
        self.metadata = {self.text(): self.value(self.take("<I")[0]) for _ in range(entries)}
        self.tensors = {}
        for _ in range(tensors):
            name = self.text()
            dims = self.take(f"<{self.take('<I')[0]}Q")
            self.tensors[name] = (dims, *self.take("<IQ"))
        self.start = self.position + -self.position % 32

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return values

    def text(self) -> str:
        (length,) = self.take("<Q")
        self.position += length
        return self.data[self.position - length : self.position].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.take("<IQ")
            return [self.value(inner) for _ in range(count)]
        return self.take(_SCALARS[kind])[0]

    def weights(self, name: str) -> bytes:
        dims, kind, offset = self.tensors[name]
        elements = dims[0] * (dims[1] if len(dims) > 1 else 1)
        begin = self.start + offset
        return self.data[begin : begin + elements * (2 if kind == 1 else 4)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(write_model(tmp_path_factory.mktemp("m") / "a.gguf", seed=1, size_bytes=MIB).read_bytes())


def test_tensors_fill_the_file_exactly(small: Reader) -> None:
    """Offsets are aligned, follow each other without overlap, and the last tensor ends with the file."""
    end = 0
    for dims, kind, offset in small.tensors.values():
        assert offset == end
        assert offset % 32 == 0
        size = dims[0] * (dims[1] if len(dims) > 1 else 1) * (2 if kind == 1 else 4)
        end = offset + size + -size % 32
    assert small.start + end == len(small.data)


def test_tokenizer_is_complete(small: Reader) -> None:
    """Tokens, scores and types have one length, that of the embedding; every byte has its token."""
    tokens = small.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(small.metadata["tokenizer.ggml.scores"])
    assert len(tokens) == len(small.metadata["tokenizer.ggml.token_type"])
    assert small.tensors["token_embd.weight"][0][1] == len(tokens)
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens)
    assert "<|im_start|>" in small.metadata["tokenizer.chat_template"]


def test_all_weights_are_ordinary_numbers(small: Reader) -> None:
    """No infinity, no NaN, nothing large: a half that overflows would turn every answer into one token."""
    values = struct.unpack(f"<{len(small.weights('blk.0.ffn_up.weight')) // 2}e", small.weights("blk.0.ffn_up.weight"))
    assert 0.001 < max(abs(value) for value in values) < 0.1
    assert min(values) < 0 < max(values)
    assert abs(sum(values) / len(values)) < 0.002


def test_silent_tokens_have_no_weight(small: Reader) -> None:
    """Bytes and controls cannot win against a random row, so what the model says is valid text."""
    width = 2 * small.tensors["output.weight"][0][0]
    rows = small.weights("output.weight")
    index = small.metadata["tokenizer.ggml.tokens"].index("<0x41>")
    assert rows[index * width : (index + 1) * width] == bytes(width)
    spoken = small.metadata["tokenizer.ggml.tokens"].index("ba")
    assert any(rows[spoken * width : (spoken + 1) * width])


def test_seed_decides_weights_only(tmp_path: Path) -> None:
    """One seed gives one file, another the same shape and other weights: the pair that caches must tell apart."""
    one, again, other = (
        write_model(tmp_path / f"{name}.gguf", seed=seed, size_bytes=MIB).read_bytes()
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one == again
    assert len(one) == len(other)
    readers = Reader(one), Reader(other)
    assert readers[0].metadata == readers[1].metadata
    assert readers[0].tensors == readers[1].tensors
    for name in ("token_embd.weight", "blk.1.attn_v.weight", "output.weight"):
        assert readers[0].weights(name) != readers[1].weights(name)


@pytest.mark.parametrize("size", [SIZE_BYTES_MIN, MIB, 3 * MIB, 20 * MIB, 40 * MIB])
def test_size_is_met_from_below(tmp_path: Path, size: int) -> None:
    """The file is as large as asked for, within 5 %."""
    actual = write_model(tmp_path / "m.gguf", size_bytes=size).stat().st_size
    assert 0.95 * size <= actual <= size


def test_heads_divide_the_embedding() -> None:
    """A shape that the engine would refuse cannot come out."""
    for size in (SIZE_BYTES_MIN, 2 * MIB, 24 * MIB, SIZE_BYTES_MAX):
        shape = shape_for(size)
        assert shape.n_embd % shape.n_head == 0
        assert shape.n_embd // shape.n_head % 2 == 0


@pytest.mark.parametrize("size", [0, SIZE_BYTES_MIN - 1, SIZE_BYTES_MAX + 1])
def test_size_out_of_range(tmp_path: Path, size: int) -> None:
    """Sizes that make no sense are refused before anything is written."""
    with pytest.raises(ValueError, match="size_bytes must be between"):
        write_model(tmp_path / "m.gguf", size_bytes=size)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    """The file appears whole or not at all."""
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_model(target, size_bytes=MIB)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
