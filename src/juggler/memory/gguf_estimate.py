"""How much memory a program of the llama.cpp family takes for a GGUF model, before it was ever started. Pure.

Formulas: memory.md section C, which was checked against llama.cpp's own log. What is computed is what the program asks
for; what it really takes depends on its build, and is measured once it runs. All sizes are bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from juggler.memory.footprint import MemoryEstimate
from juggler.survey.gguf import GgufHead
from juggler.units import GIB, MIB

PROCESS_BYTES = 500 * MIB
"""A CUDA context with its libraries: 300 to 600 MB."""

PROJECTOR_EXTRA_BYTES = 1 * GIB
"""What a projector computes with, beside its weights."""

HOST_BYTES = 300 * MIB
"""The process itself, its staging and output buffers."""

PADDING = 256
"""llama.cpp rounds contexts up to this many tokens."""

CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 1.0625,
    "q5_1": 0.75,
    "q5_0": 0.6875,
    "q4_1": 0.625,
    "q4_0": 0.5625,
    "iq4_nl": 0.5625,
}
"""Bytes per element of a KV cache, by the names of ``--cache-type-k``."""

_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "llama4": 4, "exaone4": 4}
"""Of how many layers the last one sees everything, where the file does not tell (llama.cpp: ``src/models/``)."""


@dataclass(frozen=True, slots=True)
class GgufOptions:
    """What of a command line decides about memory."""

    context: int = 0
    """Tokens of all slots together; 0: what the model was made for."""
    gpu_layers: int | None = None
    """Layers on GPUs, the output layer counting as one; None: all."""
    cpu_expert_layers: int = 0
    """The first so many layers keep their experts in main memory."""
    key_bytes: float = 2.0
    value_bytes: float = 2.0
    slots: int = 4
    batch: int = 2048
    micro_batch: int = 512
    flash_attention: bool = True
    kv_on_gpu: bool = True
    projector_on_gpu: bool = True


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """A model as it lies on the disk."""

    heads: Sequence[GgufHead]
    """Of every part; the first describes the model."""
    size_bytes: int
    """Of all parts together."""
    projector_bytes: int = 0
    draft: "GgufFiles | None" = None


def estimate(files: GgufFiles, options: GgufOptions) -> MemoryEstimate:
    """What the program will take with these files and options."""
    head = files.heads[0]
    context = options.context or trained_context(head)
    layers = max(head.layers, 1)
    on_gpu = layers + 1 if options.gpu_layers is None else max(0, min(options.gpu_layers, layers + 1))
    weights = files.size_bytes - _staying_on_cpu(files.heads)
    first = layers + 1 - on_gpu  # the last ones go to the GPU: of those before it no experts are to be kept off
    experts = sum(
        size
        for part in files.heads
        for layer, size in part.expert_bytes.items()
        if first <= layer < options.cpu_expert_layers
    )
    weights_gpu = max(0, weights * on_gpu // (layers + 1) - experts)
    kv = kv_bytes(head, context, options) + recurrent_bytes(head, options.slots)
    kv_gpu = kv * min(on_gpu, layers) // layers if options.kv_on_gpu else 0
    gpu = PROCESS_BYTES + compute_bytes(head, context, options) + weights_gpu + kv_gpu
    ram = HOST_BYTES + files.size_bytes - weights_gpu + kv - kv_gpu
    if files.projector_bytes:
        projector = files.projector_bytes + PROJECTOR_EXTRA_BYTES
        gpu, ram = (gpu + projector, ram) if options.projector_on_gpu else (gpu, ram + projector)
    if files.draft is not None:
        draft = estimate(files.draft, GgufOptions(context=context, slots=options.slots))
        gpu, ram = gpu + draft.gpu_bytes - PROCESS_BYTES, ram + draft.ram_bytes - HOST_BYTES
    return MemoryEstimate(
        gpu, ram, note=f"{context} tokens of context, {min(on_gpu, layers)} of {layers} layers on GPU"
    )


def kv_bytes(head: GgufHead, context: int, options: GgufOptions) -> int:
    """Keys and values of ``context`` tokens, for all layers that attend."""
    layers = head.layers
    heads = head.number("attention.head_count") or 1
    width = (head.number("embedding_length") or 0) // max(heads, 1)
    keys = (head.number("attention.key_length") or width) * options.key_bytes
    values = (head.number("attention.value_length") or width) * options.value_bytes
    kv_heads = head.per_layer("attention.head_count_kv", layers, heads)
    window = head.number("attention.sliding_window") or 0
    slides = sliding_layers(head, layers) if window else [False] * layers
    whole = _padded(context)
    windowed = min(whole, _padded(window * options.slots + options.batch))
    tokens = (windowed if slide else whole for slide in slides)
    return int(sum(count * own * (keys + values) for count, own in zip(tokens, kv_heads, strict=True)))


def recurrent_bytes(head: GgufHead, sequences: int) -> int:
    """The state of layers that do not attend (Mamba and its kin), 32 bits each."""
    inner, state = head.number("ssm.inner_size") or 0, head.number("ssm.state_size") or 0
    if not inner:
        return 0
    groups, kernel = head.number("ssm.group_count") or 0, head.number("ssm.conv_kernel") or 1
    layers = sum(not count for count in head.per_layer("attention.head_count_kv", head.layers, 0))
    each = (kernel - 1) * (inner + 2 * groups * state) + state * inner
    return 4 * max(0, each) * sequences * layers


def compute_bytes(head: GgufHead, context: int, options: GgufOptions) -> int:
    """The buffers for one micro batch."""
    words = head.lengths.get("tokenizer.ggml.tokens", 0)
    size = 4 * options.micro_batch * (words + 4 * (head.number("embedding_length") or 0))
    if not options.flash_attention:
        size += 4 * options.micro_batch * context * (head.number("attention.head_count") or 1)
    return size


def sliding_layers(head: GgufHead, layers: int) -> list[bool]:
    """Which layers see a window only: a list in the file, or every layer but the last of each period."""
    pattern = head.values.get(f"{head.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and pattern:
        return [bool(pattern[layer % len(pattern)]) for layer in range(layers)]
    period = head.number("attention.sliding_window_pattern") or _PERIODS.get(head.architecture, 1)
    return [layer % period < period - 1 for layer in range(layers)]


def trained_context(head: GgufHead) -> int:
    """Tokens the model was made for; 4096 if it does not tell."""
    return head.number("context_length") or 4096


def _padded(tokens: int) -> int:
    return (tokens + PADDING - 1) // PADDING * PADDING


def _staying_on_cpu(heads: Sequence[GgufHead]) -> int:
    """The table of token embeddings is looked up on the CPU, unless it is the output layer as well."""
    if any(head.has_output for head in heads):
        return sum(head.token_embedding_bytes for head in heads)
    return 0
