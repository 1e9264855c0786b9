"""Guesses of memory, against numbers that are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from juggler.memory.gguf_estimate import PROCESS_BYTES, PROJECTOR_EXTRA_BYTES
from juggler.setup.estimate import (
    compute_bytes,
    fixed_bytes,
    footprint_bytes,
    kv_bytes,
    layers_that_fit,
    partial_bytes,
    trained_context,
)
from juggler.units import GIB, KIB, MIB
from tests.unit.setup.make import model


def test_keys_and_values() -> None:
    """memory.md section C: 64 layers, 8 heads, 128 + 128, 32768 tokens, 16 bits make 8.0 GiB."""
    shape: dict[str, Any] = {"block_count": 64, "attention.key_length": 128, "attention.value_length": 128}
    assert kv_bytes(model("m", **shape), 32768) == 8 * GIB
    assert kv_bytes(model("m"), 1) == kv_bytes(model("m"), 256) == 256 * 128 * KIB


def test_keys_and_values_of_layers_that_differ() -> None:
    """A number of heads for each layer: none means no keys there (hybrids with recurrent layers)."""
    shape: dict[str, Any] = {"attention.head_count_kv": (8, 0) * 16}
    assert kv_bytes(model("m", **shape), 1024) == 64 * KIB * 1024


@pytest.mark.parametrize(
    ("architecture", "values", "full_layers"),
    [
        ("gemma3", {}, 5),
        ("gpt-oss", {}, 16),
        ("anything", {"attention.sliding_window_pattern": 4}, 8),
        ("anything", {"attention.sliding_window_pattern": (1, 1, 0)}, 10),
        ("llama", {}, 32),
    ],
)
def test_sliding_windows(architecture: str, values: dict[str, Any], full_layers: int) -> None:
    """Layers with a window keep four windows and a batch, not the whole context."""
    one = model("m", architecture=architecture, **{**values, "attention.sliding_window": 1024})
    per_layer = 4 * KIB
    assert kv_bytes(one, 32768) == per_layer * (full_layers * 32768 + (32 - full_layers) * (4 * 1024 + 2048))
    assert kv_bytes(one, 1024) == per_layer * 32 * 1024


def test_the_whole() -> None:
    """Weights, keys and values, buffers and the process; a projector with room to compute."""
    one = model("m", 8)
    assert compute_bytes(one) == 4 * 512 * (32000 + 4 * 4096)
    assert footprint_bytes(one, 8192) == 8 * GIB + GIB + compute_bytes(one) + PROCESS_BYTES
    seeing = replace(one, projector=Path("/p"), projector_bytes=900 * MIB)
    assert fixed_bytes(seeing) - fixed_bytes(one) == 900 * MIB + PROJECTOR_EXTRA_BYTES


def test_parts() -> None:
    """As many layers as fit, never more than there are; the two parts make up the whole."""
    one = model("m", 8)
    whole = footprint_bytes(one, 8192)
    assert layers_that_fit(one, 8192, whole) == 33
    assert layers_that_fit(one, 8192, 100 * GIB) == 33
    assert layers_that_fit(one, 8192, 0) == 0
    layers = layers_that_fit(one, 8192, whole // 2)
    on_gpu, in_ram = partial_bytes(one, 8192, layers)
    assert on_gpu <= whole // 2
    assert on_gpu + in_ram == whole


@pytest.mark.parametrize("number", [2**63, -1, float("inf"), float("nan"), 1e300, True])
def test_heads_that_say_nonsense(number: float) -> None:
    """They come from files in a folder of downloads: one of them must not stop a first configuration."""
    keys = ("block_count", "context_length", "attention.head_count_kv", "attention.key_length", "embedding_length")
    for key in keys:
        shape: dict[str, Any] = {key: number}
        odd = model("m", **shape)
        assert 0 < trained_context(odd) <= 2**31
        assert footprint_bytes(odd, 4096) > 0
        assert layers_that_fit(odd, 4096, 8 * GIB) >= 0
    lists: dict[str, Any] = {"attention.head_count_kv": (number,) * 32}
    assert kv_bytes(model("m", **lists), 4096) >= 0


def test_heads_that_say_little() -> None:
    """A file without any number still has its size."""
    bare = model("m", 1, block_count=0, context_length=0, embedding_length=0)
    assert footprint_bytes(bare, 4096) > GIB
    assert trained_context(bare) == 4096
    assert layers_that_fit(bare, 4096, 100 * GIB) == 1
