"""Heads of GGUF files: read as they are, never trusted."""

import contextlib
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.demo.models import write_model
from juggler.survey import gguf
from juggler.survey.gguf import GgufHead, NotGguf, is_later_part, parts_of, plain_stem, read_head
from tests.unit.survey.gguf_files import LLAMA, head, write_gguf


def test_a_model_says_what_it_is(tmp_path: Path) -> None:
    """Numbers by their short key, lengths of lists, and that llama-server can load it."""
    found = read_head(write_gguf(tmp_path / "m.gguf"))
    assert found.architecture == "llama"
    assert found.number("block_count") == 32
    assert found.number("no_such_key") is None
    assert found.lengths["tokenizer.ggml.tokens"] == 3
    assert found.is_language_model
    assert not found.is_projector


def test_the_models_of_the_demo_can_be_read(tmp_path: Path) -> None:
    """Files that a real llama.cpp loads: complete by their own account, to within the last tensor."""
    path = write_model(tmp_path / "real.gguf", size_bytes=1_000_000)
    found = read_head(path)
    assert found.is_language_model
    assert path.stat().st_size // 2 < found.least_bytes <= path.stat().st_size


def test_an_incomplete_file_is_shorter_than_it_must_be(tmp_path: Path) -> None:
    """A download that was cut off holds its head, but not its last tensor."""
    path = write_gguf(tmp_path / "m.gguf", tensor_offset=1_000_000)
    assert path.stat().st_size > read_head(path).least_bytes > 1_000_000
    with path.open("r+b") as file:
        file.truncate(500_000)
    assert read_head(path).least_bytes > path.stat().st_size


@pytest.mark.parametrize(
    "values",
    [
        {"general.architecture": "clip", "general.type": "mmproj"},
        {"general.architecture": "llama", "general.type": "adapter", "tokenizer.ggml.model": "x"},
        {"general.architecture": "flux"},
    ],
)
def test_what_is_no_language_model(tmp_path: Path, values: dict[str, str]) -> None:
    """Projectors, adapters and image models are no models for llama-server."""
    found = read_head(write_gguf(tmp_path / "m.gguf", values))
    assert not found.is_language_model
    assert found.is_projector == (values["general.architecture"] == "clip")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin"),
        (b"version https://git-lfs.github.com/spec/v1\n", "does not begin"),
        (b"GG", "ends in the middle"),
        (b"GGUF\x01\0\0\0" + b"\0" * 16, "version 1"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "impossible"),
        (head(LLAMA)[:200], "ends in the middle"),
        (b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\x01" + b"\0" * 7 + b"\0" * 8 + b"\x63\0\0\0", "unknown kind"),
    ],
)
def test_what_is_no_gguf(tmp_path: Path, data: bytes, words: str) -> None:
    """Each kind of wrong file is said to be what it is."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(NotGguf, match=words):
        read_head(path)


def test_long_heads_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary larger than the first read; and a head longer than any is refused."""
    values = {**LLAMA, "tokenizer.ggml.tokens": [f"token{number}" for number in range(2000)]}
    path = write_gguf(tmp_path / "m.gguf", values)
    monkeypatch.setattr(gguf, "_FIRST_READ_BYTES", 100)
    assert read_head(path).lengths["tokenizer.ggml.tokens"] == 2000
    monkeypatch.setattr(gguf, "HEAD_BYTES_MAX", 5000)
    with pytest.raises(NotGguf, match="longer than any"):
        read_head(path)


MIXTURE = {**LLAMA, "llama.attention.head_count_kv": [8, 0] * 16, "llama.rope.freq_base": 1e6, "llama.x": True}
TENSORS = {
    "token_embd.weight": 0,
    "blk.0.ffn_up_exps.weight": 1000,
    "blk.0.ffn_gate_exps.weight": 3000,
    "blk.1.ffn_down_exps.weight": 4000,
    "blk.1.attn_k.weight": 9000,
    "output.weight": 9500,
}
"""A mixture of experts: every kind of value and of tensor that is looked at."""


def test_sizes_of_the_tensors_that_matter(tmp_path: Path) -> None:
    """Each reaches to the next, in whatever order they are listed; the last one's size is not told."""
    path = tmp_path / "m.gguf"
    for tensors in (TENSORS, dict(reversed(TENSORS.items()))):
        path.write_bytes(head(MIXTURE, tensors=tensors))
        found = read_head(path)
        assert found.token_embedding_bytes == 1000
        assert found.expert_bytes == {0: 3000, 1: 5000}
        assert found.has_output
        assert found.per_layer("attention.head_count_kv", 4, 1) == [8, 0, 8, 0]
    path.write_bytes(head(LLAMA, tensors={"token_embd.weight": 0, "blk.0.attn_k.weight": 7}))
    assert not read_head(path).has_output


def test_a_head_of_a_large_model_is_read_in_no_time(tmp_path: Path) -> None:
    """150 000 words and 280 000 merges: 25 ms where it was measured."""

    def words(key: str, count: int) -> bytes:
        name = struct.pack("<Q", len(key)) + key.encode()
        return name + struct.pack("<IIQ", 9, 8, count) + (struct.pack("<Q", 8) + b"token123") * count

    path = tmp_path / "m.gguf"
    path.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2)
        + words("tokenizer.ggml.tokens", 150_000)
        + words("tokenizer.ggml.merges", 280_000)
    )
    began = time.process_time()
    found = read_head(path)
    assert time.process_time() - began < 1.0, "more than ten times what a slow machine takes"
    assert found.lengths == {"tokenizer.ggml.tokens": 150_000, "tokenizer.ggml.merges": 280_000}
    assert not found.values, "long lists are not kept"


@pytest.mark.parametrize("count", [2**26, 2**26 + 1, 2**63])
def test_promises_of_a_hostile_head_cost_little(tmp_path: Path, count: int) -> None:
    """Lists and strings of a size that no file has: refused, without the memory or the time to hold them."""
    path = tmp_path / "m.gguf"
    start = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    for value in (
        struct.pack("<IIQ", 9, 8, count),
        struct.pack("<IIQ", 9, 10, count),
        struct.pack("<IQ", 8, count),
        struct.pack("<IIQIIQ", 9, 9, 1, 9, 9, 1),
    ):
        path.write_bytes(start + value + b"\0" * 4096)
        with pytest.raises(NotGguf):
            read_head(path)


def test_many_lists_of_a_hostile_head_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them small enough by itself: the sum is bounded as well."""
    monkeypatch.setattr(gguf, "ITEMS_KEPT", 100)
    monkeypatch.setattr(gguf, "STRINGS_MAX", 100)
    lists = {f"numbers{number}": [1] * 40 for number in range(5)}
    found = read_head(write_gguf(tmp_path / "m.gguf", {**LLAMA, **lists}))
    assert [key for key in found.values if key.startswith("numbers")] == ["numbers0", "numbers1"]
    assert found.lengths["numbers4"] == 40
    words = {f"words{number}": ["x"] * 40 for number in range(5)}
    with pytest.raises(NotGguf, match="impossible"):
        read_head(write_gguf(tmp_path / "n.gguf", {**LLAMA, **words}))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_heads_never_do_worse_than_be_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any byte may be wrong and the file may end anywhere: the answer is a head or ``NotGguf``."""
    whole = bytearray(head(MIXTURE, tensors=TENSORS))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(NotGguf):
        found = read_head(path)
        assert isinstance(found, GgufHead)
        sizes = [found.token_embedding_bytes, found.least_bytes, *found.expert_bytes.values()]
        assert all(size >= 0 for size in sizes)
        assert len(found.per_layer("attention.head_count_kv", found.layers, 1)) == found.layers


def test_lists_per_layer() -> None:
    """One number for all layers, or a number for each."""
    one = GgufHead({"general.architecture": "x", "x.heads": 4})
    assert one.per_layer("heads", 3, 9) == [4, 4, 4]
    each = GgufHead({"general.architecture": "x", "x.heads": (4, 0, 4)})
    assert each.per_layer("heads", 3, 9) == [4, 0, 4]
    assert each.per_layer("others", 2, 9) == [9, 9]


def test_split_models() -> None:
    """All parts by the name of any; the first is the one to load."""
    second = Path("/m/big-00002-of-00003.gguf")
    assert [part.name for part in parts_of(second)] == [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert is_later_part(second)
    assert not is_later_part(parts_of(second)[0])
    assert plain_stem(second) == "big"
    assert parts_of(Path("/m/small.gguf")) == [Path("/m/small.gguf")]
    assert plain_stem(Path("/m/small.gguf")) == "small"
