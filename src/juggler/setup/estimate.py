"""How much memory a GGUF model will want, from its head and the size of its files (memory.md section C). Pure.

A guess for the first configuration, on the safe side: what the program really takes depends on its build and on
options. All sizes are bytes.
"""

from juggler.setup.models import Model
from juggler.units import GIB, MIB

PROCESS_BYTES = 500 * MIB
"""A CUDA context with its libraries: 300 to 600 MB."""

PROJECTOR_EXTRA_BYTES = 1 * GIB
"""What a projector computes with, beside its weights."""

BATCH = 512
"""llama-server's default ``--ubatch-size``."""

SLOTS = 4
"""llama-server's default number of slots; each keeps its own window of a sliding layer."""

_WINDOW_BATCH = 2048
_F16_BYTES = 2

_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "llama4": 4, "exaone4": 4}
"""Of how many layers the last one sees everything, where the file does not tell (llama.cpp: ``src/models/``)."""


def kv_bytes(model: Model, context: int) -> int:
    """Keys and values of ``context`` tokens at 16 bits, for all layers."""
    head = model.head
    layers = head.layers
    heads = head.number("attention.head_count") or 1
    width = (head.number("embedding_length") or 0) // max(heads, 1)
    per_token = (head.number("attention.key_length") or width) + (head.number("attention.value_length") or width)
    kv_heads = head.per_layer("attention.head_count_kv", layers, heads)
    window = head.number("attention.sliding_window") or 0
    slides = _sliding_layers(model, layers) if window else [False] * layers
    windowed = min(context, window * SLOTS + _WINDOW_BATCH)
    tokens = (windowed if slide else context for slide in slides)
    return sum(count * own * per_token * _F16_BYTES for count, own in zip(tokens, kv_heads, strict=True))


def _sliding_layers(model: Model, layers: int) -> list[bool]:
    """Which layers see a window only: a list in the file, or every layer but the last of each period."""
    head = model.head
    pattern = head.values.get(f"{head.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and pattern:
        return [bool(pattern[layer % len(pattern)]) for layer in range(layers)]
    period = head.number("attention.sliding_window_pattern") or _PERIODS.get(head.architecture, 1)
    return [layer % period < period - 1 for layer in range(layers)]


def compute_bytes(model: Model) -> int:
    """The buffers for one batch, with flash attention."""
    words = model.head.lengths.get("tokenizer.ggml.tokens", 0)
    return 4 * BATCH * (words + 4 * (model.head.number("embedding_length") or 0))


def fixed_bytes(model: Model) -> int:
    """What is needed however few layers are on the GPU."""
    projector = model.projector_bytes + PROJECTOR_EXTRA_BYTES if model.projector is not None else 0
    return PROCESS_BYTES + compute_bytes(model) + projector


def footprint_bytes(model: Model, context: int) -> int:
    """Everything in one place."""
    return model.size_bytes + kv_bytes(model, context) + fixed_bytes(model)


def layers_that_fit(model: Model, context: int, budget_bytes: int) -> int:
    """How many layers (the output counts as one) fit into ``budget_bytes``, with everything else they need."""
    layers = model.head.layers + 1
    each = (model.size_bytes + kv_bytes(model, context)) / layers
    return max(0, min(layers, int((budget_bytes - fixed_bytes(model)) / each)))


def partial_bytes(model: Model, context: int, layers: int) -> tuple[int, int]:
    """Bytes on the GPU and in main memory with ``layers`` layers on the GPU."""
    whole = model.size_bytes + kv_bytes(model, context)
    share = whole * layers // (model.head.layers + 1)
    return share + fixed_bytes(model), whole - share


def trained_context(model: Model) -> int:
    """Tokens the model was made for; 4096 if it does not tell."""
    return model.head.number("context_length") or 4096
