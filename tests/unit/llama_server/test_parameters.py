"""Parsed options become the wheel's parameters."""

from pathlib import Path
from typing import Any

import pytest

from juggler.llama_server.main import DEFAULT_PORT, _parameters
from juggler.llama_server.options import parse

engine = pytest.importorskip("xllamacpp")


def parameters(*arguments: str) -> Any:
    return _parameters(engine, parse(arguments, {}))


def test_defaults_are_those_of_llama_server() -> None:
    """Port 8080, automatic slots, loopback."""
    plain = parameters("-m", "a.gguf")
    assert (plain.port, plain.n_parallel, list(plain.hostnames)) == (DEFAULT_PORT, -1, ["127.0.0.1"])


def test_every_kind_of_value_arrives(tmp_path: Path) -> None:
    """Numbers, texts, lists, constants, nested attributes and derived values are set."""
    result = parameters(
        *("-m", "a.gguf", "--host", "127.0.0.1,::1", "-c", "4096", "-np", "2", "-fa", "off", "-ctk", "q8_0"),
        *("--temp", "0.25", "-t", "3", "--no-slots", "--metrics", "--api-key", "k", "--alias", "x,y"),
        *("--lora-scaled", "l.gguf:0.5", "--rope-scale", "4", "-ts", "3,1", "--slot-save-path", str(tmp_path)),
        *("--load-mode", "none", "--timeout", "9"),
    )
    assert result.model.path == "a.gguf"
    assert list(result.hostnames) == ["127.0.0.1", "::1"]
    assert (result.n_ctx, result.n_parallel) == (4096, 2)
    assert result.flash_attn_type == engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    assert result.cache_type_k == engine.ggml_type.GGML_TYPE_Q8_0
    assert result.load_mode == engine.llama_load_mode.LLAMA_LOAD_MODE_NONE
    assert (result.sampling.temp, result.cpuparams.n_threads) == (0.25, 3)
    assert (result.endpoint_slots, result.endpoint_metrics) == (False, True)
    assert (list(result.api_keys), set(result.model_alias)) == (["k"], {"x", "y"})
    assert [(one.path, one.scale) for one in result.lora_adapters] == [("l.gguf", 0.5)]
    assert (result.rope_freq_scale, list(result.tensor_split)[:3]) == (0.25, [3.0, 1.0, 0.0])
    assert result.slot_save_path == f"{tmp_path}/"
    assert (result.timeout_read, result.timeout_write) == (9, 9)


def test_reranking_implies_embeddings_and_rank_pooling() -> None:
    """As llama-server has it."""
    result = parameters("-m", "a", "--reranking")
    assert result.embedding
    assert result.pooling_type == engine.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def test_constants_of_every_choice_exist() -> None:
    """No word of the tables stands for a constant the wheel does not have."""
    words = {
        "-ctk": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
        "-fa": ("on", "off", "auto"),
        "--load-mode": ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
        "--rope-scaling": ("none", "linear", "yarn"),
        "--split-mode": ("none", "layer", "row", "tensor"),
        "--pooling": ("none", "mean", "cls", "last", "rank"),
        "--numa": ("distribute", "isolate", "numactl"),
        "--reasoning-format": ("none", "auto", "deepseek", "deepseek-legacy"),
    }
    for option, values in words.items():
        for value in values:
            parameters("-m", "a", option, value)


def test_too_many_devices_are_refused() -> None:
    """A split over more devices than the engine knows is an error, not a crash."""
    with pytest.raises(ValueError, match="--tensor-split"):
        parameters("-m", "a", "-ts", ",".join("1" * 500))
