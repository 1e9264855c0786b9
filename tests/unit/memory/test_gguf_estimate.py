"""Estimates against figures that were worked out by hand from memory.md section C."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.memory.gguf_estimate import (
    HOST_BYTES,
    PROCESS_BYTES,
    PROJECTOR_EXTRA_BYTES,
    GgufFiles,
    GgufOptions,
    compute_bytes,
    estimate,
    kv_bytes,
    recurrent_bytes,
)
from juggler.survey.gguf import GgufHead
from juggler.units import GIB, KIB, MIB

SHAPE = {
    "block_count": 32,
    "embedding_length": 4096,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
    "context_length": 32768,
}


def head(architecture: str = "llama", /, more: dict[str, Any] | None = None, **values: Any) -> GgufHead:
    keys = {f"{architecture}.{key}": value for key, value in {**SHAPE, **values}.items()}
    return GgufHead({"general.architecture": architecture, **keys}, {"tokenizer.ggml.tokens": 32000}, **(more or {}))


def files(one: GgufHead | None = None, size: int = 8 * GIB, **more: Any) -> GgufFiles:
    return GgufFiles([one or head()], size, **more)


def test_the_figure_of_the_fact_sheet() -> None:
    """64 layers, 8 heads of keys and values, 128 + 128, 32768 tokens, 16 bits: 8.0 GiB."""
    shape: dict[str, Any] = {"block_count": 64, "attention.key_length": 128, "attention.value_length": 128}
    assert kv_bytes(head(**shape), 32768, GgufOptions()) == 8 * GIB


def test_quantized_caches() -> None:
    options = GgufOptions(key_bytes=1.0625, value_bytes=0.5625)
    assert kv_bytes(head(), 1024, options) == 1024 * 32 * 8 * 128 * (1.0625 + 0.5625)


def test_contexts_are_padded() -> None:
    assert kv_bytes(head(), 1000, GgufOptions()) == kv_bytes(head(), 1024, GgufOptions())


def test_the_whole_on_the_gpu() -> None:
    found = estimate(files(), GgufOptions(context=8192))
    assert found.gpu_bytes == 8 * GIB + GIB + compute_bytes(head(), 8192, GgufOptions()) + PROCESS_BYTES
    assert found.ram_bytes == HOST_BYTES


def test_half_of_the_layers() -> None:
    whole = estimate(files(), GgufOptions(context=8192))
    half = estimate(files(), GgufOptions(context=8192, gpu_layers=16))
    assert half.ram_bytes == HOST_BYTES + 8 * GIB - 8 * GIB * 16 // 33 + GIB // 2
    assert half.gpu_bytes + half.ram_bytes == whole.gpu_bytes + whole.ram_bytes


def test_all_on_the_cpu() -> None:
    none = estimate(files(), GgufOptions(context=8192, gpu_layers=0))
    assert none.ram_bytes == HOST_BYTES + 9 * GIB
    assert none.gpu_bytes < GIB


def test_context_zero_is_what_the_model_was_made_for() -> None:
    assert estimate(files(), GgufOptions()) == estimate(files(), GgufOptions(context=32768))


def test_the_token_table_stays_on_the_cpu_where_there_is_an_output_layer() -> None:
    tied = head(more={"token_embedding_bytes": 500 * MIB})
    own = head(more={"token_embedding_bytes": 500 * MIB, "has_output": True})
    options = GgufOptions(context=4096)
    assert estimate(files(tied), options).gpu_bytes - estimate(files(own), options).gpu_bytes == 500 * MIB


def test_experts_in_main_memory() -> None:
    """``--n-cpu-moe 16``: half of the experts."""
    moe = head(more={"expert_bytes": dict.fromkeys(range(32), 100 * MIB)})
    with_all = estimate(files(moe), GgufOptions(context=4096))
    some = estimate(files(moe), GgufOptions(context=4096, cpu_expert_layers=16))
    assert with_all.gpu_bytes - some.gpu_bytes == some.ram_bytes - with_all.ram_bytes == 1600 * MIB


def test_experts_of_layers_that_are_not_on_the_gpu_are_not_taken_off_twice() -> None:
    """Of 32 layers the last 16 are on the GPU, and the experts of the first 16 were to stay off it: they are."""
    moe = head(more={"expert_bytes": dict.fromkeys(range(32), 100 * MIB)})
    half = estimate(files(moe), GgufOptions(context=4096, gpu_layers=17))
    same = estimate(files(moe), GgufOptions(context=4096, gpu_layers=17, cpu_expert_layers=16))
    assert same == half
    less = estimate(files(moe), GgufOptions(context=4096, gpu_layers=17, cpu_expert_layers=20))
    assert half.gpu_bytes - less.gpu_bytes == 400 * MIB


def test_projector_and_draft() -> None:
    plain = estimate(files(), GgufOptions(context=4096))
    seeing = estimate(files(projector_bytes=900 * MIB), GgufOptions(context=4096))
    assert seeing.gpu_bytes - plain.gpu_bytes == 900 * MIB + PROJECTOR_EXTRA_BYTES
    on_cpu = estimate(files(projector_bytes=900 * MIB), GgufOptions(context=4096, projector_on_gpu=False))
    assert on_cpu.gpu_bytes == plain.gpu_bytes
    drafted = estimate(files(draft=files(size=GIB)), GgufOptions(context=4096))
    assert drafted.gpu_bytes > plain.gpu_bytes + GIB


def test_without_flash_attention_the_scores_are_kept() -> None:
    options = GgufOptions(flash_attention=False)
    extra = compute_bytes(head(), 8192, options) - compute_bytes(head(), 8192, GgufOptions())
    assert extra == 4 * 512 * 8192 * 32


def test_windows_and_recurrent_layers() -> None:
    window: dict[str, Any] = {"attention.sliding_window": 1024}
    windowed = head("gemma3", **window)
    assert kv_bytes(windowed, 32768, GgufOptions()) == 4 * KIB * (5 * 32768 + 27 * (4 * 1024 + 2048))
    recurrent: dict[str, Any] = {
        "attention.head_count_kv": (8, 0) * 16,
        "ssm.inner_size": 8192,
        "ssm.state_size": 128,
        "ssm.conv_kernel": 4,
        "ssm.group_count": 8,
    }
    hybrid = head(**recurrent)
    assert kv_bytes(hybrid, 1024, GgufOptions()) == 1024 * 16 * 4 * KIB
    assert recurrent_bytes(hybrid, 2) == 4 * 16 * 2 * (3 * (8192 + 2 * 8 * 128) + 128 * 8192)
    assert recurrent_bytes(head(), 2) == 0


NUMBER = st.integers(-5, 2**64) | st.floats() | st.booleans() | st.lists(st.integers(0, 99), max_size=4).map(tuple)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*SHAPE, "ssm.inner_size", "ssm.state_size", "attention.sliding_window", "ssm.conv_kernel"]),
        NUMBER,
    ),
    st.integers(0, 2**31),
    st.integers(0, 2**31) | st.none(),
)
def test_hostile_heads_only_give_odd_numbers(values: dict[str, Any], context: int, layers: int | None) -> None:
    found = estimate(files(head(**values)), GgufOptions(context=context, gpu_layers=layers))
    assert found.gpu_bytes >= 0
    assert found.ram_bytes >= 0


@pytest.mark.parametrize("size", [0, 1, 10**15])
def test_any_size(size: int) -> None:
    assert estimate(files(size=size), GgufOptions(context=4096)).gpu_bytes > 0
