"""llama-server's options as one table, and the parser over it. Pure, except that values may name files.

The rules are those of llama.cpp b11434, ``common/arg.cpp`` (``common_params_parse_ex``), checked against its
executable: exact names only, underscores in long names read as dashes, the value is always the next word, the last
of repeated options wins with a warning, and the first thing wrong ends the program with status 1.

Options of llama-server that the wheel's ``CommonParams`` cannot express are unknown here, and refused like any other
unknown option: an option that is silently ignored would be worse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from juggler.llama_server import values

VERBOSITY_ALL = 2**31 - 1


class UsageError(Exception):
    """The command line is wrong; the message is what llama-server prints before it ends with status 1."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    ``parse`` turns the value into what is stored under ``target``; None makes it a flag that stores ``constant``,
    or False where it was given by one of its ``negative`` names.
    """

    names: tuple[str, ...]
    target: str
    """Dotted attribute of ``CommonParams``; targets that begin with ``@`` are settled in ``main``."""
    parse: Callable[[str], Any] | None = None
    negative: tuple[str, ...] = ()
    env: str | None = None
    constant: Any = True
    extends: bool = False
    """Repeated values add up (``--lora``, ``--api-key``) instead of replacing."""
    negative_constant: Any = False


@dataclass(slots=True)
class Parsed:
    """What a command line and an environment say."""

    values: dict[str, Any] = field(default_factory=dict)
    """Target to value."""
    warnings: list[str] = field(default_factory=list)


_CACHE_TYPES = {
    name: f"GGML_TYPE_{name.upper()}"
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
_cache_type = values.choice(_CACHE_TYPES, "Unsupported cache type: {}")
_FLASH = {
    **dict.fromkeys(values.TRUE_WORDS, "LLAMA_FLASH_ATTN_TYPE_ENABLED"),
    **dict.fromkeys(values.FALSE_WORDS, "LLAMA_FLASH_ATTN_TYPE_DISABLED"),
    **dict.fromkeys(("auto", "-1"), "LLAMA_FLASH_ATTN_TYPE_AUTO"),
}
_LOAD_MODES = {
    "auto": "LLAMA_LOAD_MODE_AUTO",
    "none": "LLAMA_LOAD_MODE_NONE",
    "mmap": "LLAMA_LOAD_MODE_MMAP",
    "mlock": "LLAMA_LOAD_MODE_MLOCK",
    "mmap+mlock": "LLAMA_LOAD_MODE_MMAP_MLOCK",
    "dio": "LLAMA_LOAD_MODE_DIRECT_IO",
}
_ROPE_SCALING = {name: f"LLAMA_ROPE_SCALING_TYPE_{name.upper()}" for name in ("none", "linear", "yarn", "longrope")}
_SPLIT_MODES = {name: f"LLAMA_SPLIT_MODE_{name.upper()}" for name in ("none", "layer", "row", "tensor")}
_POOLING = {name: f"LLAMA_POOLING_TYPE_{name.upper()}" for name in ("none", "mean", "cls", "last", "rank")}
_NUMA = {name: f"GGML_NUMA_STRATEGY_{name.upper()}" for name in ("distribute", "isolate", "numactl")}
_REASONING = {
    "none": "COMMON_REASONING_FORMAT_NONE",
    "auto": "COMMON_REASONING_FORMAT_AUTO",
    "deepseek": "COMMON_REASONING_FORMAT_DEEPSEEK",
    "deepseek-legacy": "COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY",
}

_int, _float, _str = values.integer, values.number, str

OPTIONS: tuple[Option, ...] = (
    # The server
    Option(("-h", "--help", "--usage"), "@help"),
    Option(("--version",), "@version"),
    Option(("-m", "--model"), "model.path", _str, env="LLAMA_ARG_MODEL"),
    Option(("-a", "--alias"), "@alias", values.comma_list, env="LLAMA_ARG_ALIAS"),
    Option(("--host",), "hostnames", values.comma_list, env="LLAMA_ARG_HOST"),
    Option(("--port",), "port", _int, env="LLAMA_ARG_PORT"),
    Option(("--reuse-port",), "reuse_port", env="LLAMA_ARG_REUSE_PORT"),
    Option(("--path",), "public_path", _str, env="LLAMA_ARG_STATIC_PATH"),
    Option(("--api-prefix",), "api_prefix", _str, env="LLAMA_ARG_API_PREFIX"),
    Option(("--api-key",), "api_keys", values.comma_list, env="LLAMA_API_KEY", extends=True),
    Option(("--api-key-file",), "api_keys", values.key_file, extends=True),
    Option(("--ssl-key-file",), "ssl_file_key", _str, env="LLAMA_ARG_SSL_KEY_FILE"),
    Option(("--ssl-cert-file",), "ssl_file_cert", _str, env="LLAMA_ARG_SSL_CERT_FILE"),
    Option(("-to", "--timeout"), "@timeout", _int, env="LLAMA_ARG_TIMEOUT"),
    Option(("--sse-ping-interval",), "sse_ping_interval", _int, env="LLAMA_ARG_SSE_PING_INTERVAL"),
    Option(("--threads-http",), "n_threads_http", _int, env="LLAMA_ARG_THREADS_HTTP"),
    Option(("--ui", "--webui"), "ui", negative=("--no-ui", "--no-webui"), env="LLAMA_ARG_UI"),
    Option(("--metrics",), "endpoint_metrics", env="LLAMA_ARG_ENDPOINT_METRICS"),
    Option(("--props",), "endpoint_props", env="LLAMA_ARG_ENDPOINT_PROPS"),
    Option(("--slots",), "endpoint_slots", negative=("--no-slots",), env="LLAMA_ARG_ENDPOINT_SLOTS"),
    Option(("--slot-save-path",), "slot_save_path", values.directory, env="LLAMA_ARG_SLOT_SAVE_PATH"),
    Option(("-sps", "--slot-prompt-similarity"), "slot_prompt_similarity", _float),
    Option(("--sleep-idle-seconds",), "sleep_idle_seconds", values.sleep_seconds),
    Option(("-v", "--verbose", "--log-verbose"), "verbosity", constant=VERBOSITY_ALL),
    Option(("-lv", "--verbosity", "--log-verbosity"), "verbosity", _int, env="LLAMA_ARG_LOG_VERBOSITY"),
    Option(("--log-disable",), "verbosity", constant=-1),
    Option(("--offline",), "offline", env="LLAMA_ARG_OFFLINE"),
    # Context, slots and their cache
    Option(("-c", "--ctx-size"), "n_ctx", _int, env="LLAMA_ARG_CTX_SIZE"),
    Option(("-np", "--parallel"), "n_parallel", values.parallel, env="LLAMA_ARG_N_PARALLEL"),
    Option(("-kvu", "--kv-unified"), "kv_unified", negative=("-no-kvu", "--no-kv-unified"), env="LLAMA_ARG_KV_UNIFIED"),
    Option(("-cram", "--cache-ram"), "cache_ram_mib", _int, env="LLAMA_ARG_CACHE_RAM"),
    Option(("--cache-prompt",), "cache_prompt", negative=("--no-cache-prompt",), env="LLAMA_ARG_CACHE_PROMPT"),
    Option(("--cache-reuse",), "n_cache_reuse", _int, env="LLAMA_ARG_CACHE_REUSE"),
    Option(
        ("--cache-idle-slots",),
        "cache_idle_slots",
        negative=("--no-cache-idle-slots",),
        env="LLAMA_ARG_CACHE_IDLE_SLOTS",
    ),
    Option(("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "n_ctx_checkpoints", _int),
    Option(("--swa-full",), "swa_full", env="LLAMA_ARG_SWA_FULL"),
    Option(("--context-shift",), "ctx_shift", negative=("--no-context-shift",), env="LLAMA_ARG_CONTEXT_SHIFT"),
    Option(("-ctk", "--cache-type-k"), "cache_type_k", _cache_type, env="LLAMA_ARG_CACHE_TYPE_K"),
    Option(("-ctv", "--cache-type-v"), "cache_type_v", _cache_type, env="LLAMA_ARG_CACHE_TYPE_V"),
    Option(
        ("-fa", "--flash-attn"),
        "flash_attn_type",
        values.choice(_FLASH, "error: unknown value for --flash-attn: '{}'\n"),
        env="LLAMA_ARG_FLASH_ATTN",
    ),
    Option(("--keep",), "n_keep", _int),
    # Loading and devices
    Option(("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers", values.gpu_layers, env="LLAMA_ARG_N_GPU_LAYERS"),
    Option(("-sm", "--split-mode"), "split_mode", values.choice(_SPLIT_MODES), env="LLAMA_ARG_SPLIT_MODE"),
    Option(("-ts", "--tensor-split"), "@tensor_split", values.proportions, env="LLAMA_ARG_TENSOR_SPLIT"),
    Option(("-mg", "--main-gpu"), "main_gpu", _int, env="LLAMA_ARG_MAIN_GPU"),
    Option(("-fit", "--fit"), "fit_params", values.switch("--fit"), env="LLAMA_ARG_FIT"),
    Option(("-fitc", "--fit-ctx"), "fit_params_min_ctx", _int, env="LLAMA_ARG_FIT_CTX"),
    Option(
        ("-kvo", "--kv-offload"),
        "no_kv_offload",
        negative=("-nkvo", "--no-kv-offload"),
        constant=False,
        negative_constant=True,
    ),
    Option(("--op-offload",), "no_op_offload", negative=("--no-op-offload",), constant=False, negative_constant=True),
    Option(("--repack",), "no_extra_bufts", negative=("-nr", "--no-repack"), constant=False, negative_constant=True),
    Option(("--no-host",), "no_host"),
    Option(("-lm", "--load-mode"), "load_mode", values.choice(_LOAD_MODES), env="LLAMA_ARG_LOAD_MODE"),
    Option(("--numa",), "numa", values.choice(_NUMA), env="LLAMA_ARG_NUMA"),
    Option(("--check-tensors",), "check_tensors"),
    Option(("--warmup",), "warmup", negative=("--no-warmup",)),
    Option(("-t", "--threads"), "cpuparams.n_threads", _int, env="LLAMA_ARG_THREADS"),
    Option(("-tb", "--threads-batch"), "cpuparams_batch.n_threads", _int),
    Option(("-b", "--batch-size"), "n_batch", _int, env="LLAMA_ARG_BATCH"),
    Option(("-ub", "--ubatch-size"), "n_ubatch", _int, env="LLAMA_ARG_UBATCH"),
    Option(("-cb", "--cont-batching"), "cont_batching", negative=("-nocb", "--no-cont-batching")),
    Option(("-mm", "--mmproj"), "mmproj.path", _str, env="LLAMA_ARG_MMPROJ"),
    Option(("--mmproj-offload",), "mmproj_use_gpu", negative=("--no-mmproj-offload",)),
    Option(("--image-min-tokens",), "image_min_tokens", _int),
    Option(("--image-max-tokens",), "image_max_tokens", _int),
    Option(("--lora",), "@lora", lambda text: [(name, 1.0) for name in values.comma_list(text)], extends=True),
    Option(("--lora-scaled",), "@lora", values.scaled, extends=True),
    Option(("--lora-init-without-apply",), "lora_init_without_apply"),
    Option(("--rope-scaling",), "rope_scaling_type", values.choice(_ROPE_SCALING), env="LLAMA_ARG_ROPE_SCALING_TYPE"),
    Option(("--rope-scale",), "@rope_scale", _float, env="LLAMA_ARG_ROPE_SCALE"),
    Option(("--rope-freq-base",), "rope_freq_base", _float, env="LLAMA_ARG_ROPE_FREQ_BASE"),
    Option(("--rope-freq-scale",), "rope_freq_scale", _float, env="LLAMA_ARG_ROPE_FREQ_SCALE"),
    Option(("--yarn-orig-ctx",), "yarn_orig_ctx", _int, env="LLAMA_ARG_YARN_ORIG_CTX"),
    Option(("--yarn-ext-factor",), "yarn_ext_factor", _float, env="LLAMA_ARG_YARN_EXT_FACTOR"),
    Option(("--yarn-attn-factor",), "yarn_attn_factor", _float, env="LLAMA_ARG_YARN_ATTN_FACTOR"),
    Option(("--yarn-beta-slow",), "yarn_beta_slow", _float, env="LLAMA_ARG_YARN_BETA_SLOW"),
    Option(("--yarn-beta-fast",), "yarn_beta_fast", _float, env="LLAMA_ARG_YARN_BETA_FAST"),
    # What it serves
    Option(("--embedding", "--embeddings"), "embedding", env="LLAMA_ARG_EMBEDDINGS"),
    Option(("--rerank", "--reranking"), "@reranking", env="LLAMA_ARG_RERANKING"),
    Option(("--pooling",), "pooling_type", values.choice(_POOLING), env="LLAMA_ARG_POOLING"),
    Option(("--jinja",), "use_jinja", negative=("--no-jinja",), env="LLAMA_ARG_JINJA"),
    Option(("--chat-template",), "chat_template", _str, env="LLAMA_ARG_CHAT_TEMPLATE"),
    Option(("--chat-template-file",), "chat_template", values.text_file, env="LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    Option(("--reasoning-format",), "reasoning_format", values.choice(_REASONING), env="LLAMA_ARG_THINK"),
    Option(
        ("--prefill-assistant",),
        "prefill_assistant",
        negative=("--no-prefill-assistant",),
        env="LLAMA_ARG_PREFILL_ASSISTANT",
    ),
    Option(("-sp", "--special"), "special"),
    Option(("-e", "--escape"), "escape", negative=("--no-escape",)),
    # Defaults of sampling
    Option(("-n", "--predict", "--n-predict"), "n_predict", _int, env="LLAMA_ARG_N_PREDICT"),
    Option(("-s", "--seed"), "sampling.seed", values.unsigned),
    Option(("--temp", "--temperature"), "sampling.temp", _float, env="LLAMA_ARG_TEMPERATURE"),
    Option(("--top-k",), "sampling.top_k", _int, env="LLAMA_ARG_TOP_K"),
    Option(("--top-p",), "sampling.top_p", _float, env="LLAMA_ARG_TOP_P"),
    Option(("--min-p",), "sampling.min_p", _float, env="LLAMA_ARG_MIN_P"),
    Option(("--typical", "--typical-p"), "sampling.typ_p", _float),
    Option(("--repeat-last-n",), "sampling.penalty_last_n", _int),
    Option(("--repeat-penalty",), "sampling.penalty_repeat", _float, env="LLAMA_ARG_REPEAT_PENALTY"),
    Option(("--presence-penalty",), "sampling.penalty_present", _float, env="LLAMA_ARG_PRESENCE_PENALTY"),
    Option(("--frequency-penalty",), "sampling.penalty_freq", _float, env="LLAMA_ARG_FREQUENCY_PENALTY"),
    Option(("--ignore-eos",), "sampling.ignore_eos"),
)


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Parsed:
    """Read environment, then command line; the latter wins.

    Args:
        arguments: Without the program's name.
        environ: ``LLAMA_ARG_*`` and ``LLAMA_API_KEY`` are looked up, nothing else.

    Raises:
        UsageError: With llama-server's own text.
    """
    parsed = Parsed()
    from_environment = _parse_environment(environ, parsed)
    by_name = {name: (option, True) for option in OPTIONS for name in option.names}
    by_name |= {name: (option, False) for option in OPTIONS for name in option.negative}
    seen: set[str] = set()
    fresh: set[str] = set()
    position = 0
    while position < len(arguments):
        name = arguments[position]
        position += 1
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name not in by_name:
            raise UsageError(f"error: invalid argument: {name}")
        if name in seen:
            parsed.warnings.append(
                f"DEPRECATED: argument '{name}' specified multiple times, "
                "use comma-separated values instead (only last value will be used)"
            )
        seen.add(name)
        option, positive = by_name[name]
        if option in from_environment and option.target not in fresh:
            parsed.warnings.append(
                f"warn: {option.env} environment variable is set, but will be overwritten by command line argument "
                f"{name}"
            )
            parsed.values.pop(option.target, None)
        fresh.add(option.target)
        if option.parse is None:
            parsed.values[option.target] = option.constant if positive else option.negative_constant
            continue
        if position >= len(arguments):
            raise _value_error(name, "expected value for argument", option)
        try:
            _store(parsed, option, arguments[position])
        except ValueError as error:
            raise _value_error(name, str(error), option) from None
        position += 1
    return parsed


def _parse_environment(environ: Mapping[str, str], parsed: Parsed) -> set[Option]:
    found = set()
    for option in OPTIONS:
        text = environ.get(option.env) if option.env else None
        if text is None:
            continue
        found.add(option)
        try:
            if option.parse is not None:
                _store(parsed, option, text)
            elif text in values.TRUE_WORDS:
                parsed.values[option.target] = option.constant
            elif text in values.FALSE_WORDS and option.negative:
                parsed.values[option.target] = option.negative_constant
        except ValueError as error:
            raise UsageError(f'error while handling environment variable "{option.env}": {error}\n') from None
    return found


def _store(parsed: Parsed, option: Option, text: str) -> None:
    assert option.parse is not None
    value = option.parse(text)
    if option.extends and option.target in parsed.values:
        value = [*parsed.values[option.target], *value]
    parsed.values[option.target] = value


def _value_error(name: str, reason: str, option: Option) -> UsageError:
    usage = ",  ".join((*option.names, *option.negative)) + ("" if option.parse is None else " VALUE")
    return UsageError(
        f'error while handling argument "{name}": {reason}\n\nusage:\n{usage}\n\nto show complete usage, run with -h'
    )


def usage() -> str:
    """All options, one a line."""
    lines = ["usage: juggler-llama-server -m MODEL [options]", ""]
    for option in OPTIONS:
        names = ", ".join((*option.names, *option.negative)) + ("" if option.parse is None else " VALUE")
        lines.append(f"  {names:60} {f'(env: {option.env})' if option.env else ''}".rstrip())
    return "\n".join(lines)
