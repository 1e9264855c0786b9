"""How much memory a GGUF model will want, from its head and the size of its files (memory.md section C). Pure.

A guess for the first configuration, on the safe side: what the program really takes depends on its build and on
options. All sizes are bytes.
"""

from juggler.memory import gguf_estimate
from juggler.memory.gguf_estimate import PROCESS_BYTES, PROJECTOR_EXTRA_BYTES, GgufOptions
from juggler.setup.models import Model

_DEFAULTS = GgufOptions()
"""llama-server's own: four slots, 16 bit caches, flash attention."""


def kv_bytes(model: Model, context: int) -> int:
    """Keys and values of ``context`` tokens at 16 bits, for all layers."""
    return gguf_estimate.kv_bytes(model.head, context, _DEFAULTS)


def compute_bytes(model: Model) -> int:
    """The buffers for one batch, with flash attention."""
    return gguf_estimate.compute_bytes(model.head, 0, _DEFAULTS)


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
    return gguf_estimate.trained_context(model.head)
