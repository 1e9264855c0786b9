"""Facts to plan from, without any disk."""

from pathlib import Path
from typing import Any

from juggler.setup.facts import Facts
from juggler.setup.models import Model, ModelSearch
from juggler.setup.programs import Program
from juggler.setup.servers import Seen
from juggler.survey.gguf import GgufHead
from juggler.survey.gpu import Gpu
from juggler.survey.gpus import Gpus
from juggler.survey.memory import MainMemory
from juggler.survey.servers import Identity
from juggler.units import GIB

LLAMA_SERVER = Program("llamacpp", "/usr/bin/llama-server", "in PATH", version="version: 7777 (abc)")
KOBOLDCPP = Program("koboldcpp", "/home/u/koboldcpp", "in /home/u")


def model(name: str, size_gib: float = 8.0, *, architecture: str = "llama", **values: Any) -> Model:
    """A model of 32 layers with 8 heads of keys and values, 128 wide: 128 KiB of them per token."""
    shape = {
        "block_count": 32,
        "embedding_length": 4096,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "context_length": 131072,
        **values,
    }
    head = GgufHead(
        {"general.architecture": architecture, **{f"{architecture}.{key}": value for key, value in shape.items()}},
        {"tokenizer.ggml.tokens": 32000},
    )
    return Model(Path(f"/models/{name}.gguf"), int(size_gib * GIB), head)


def card(index: int = 0, gib: int = 24, vendor: str = "NVIDIA") -> Gpu:
    return Gpu(vendor, index, f"{vendor} X{index}", gib * GIB, 0)


def seen(port: int, kind: str | None, text: str = "Server 1.0") -> Seen:
    return Seen(port, "127.0.0.1", Identity(kind, text) if kind is not None else None, None)


def facts(
    *models: Model, gpus: tuple[Gpu, ...] = (), programs: tuple[Program, ...] = (LLAMA_SERVER,), **more: Any
) -> Facts:
    """A machine with 64 GiB."""
    search = more.pop("search", None) or ModelSearch(models=list(models))
    return Facts(programs, search, gpus=Gpus(gpus), memory=MainMemory(64 * GIB, 60 * GIB), **more)
