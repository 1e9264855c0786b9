"""What koboldcpp's models will take: from its command line, its settings files and the heads of the models. Blocking.

Only a text model with its projector and draft is reckoned up; with image, speech or music models beside it nothing is
estimated, for their sizes do not follow from a head.
"""

from pathlib import Path

from juggler.backends.base import BackendSettings
from juggler.backends.gguf_model import estimate_files, existing
from juggler.backends.koboldcpp_config import Configured, configured
from juggler.backends.koboldcpp_options import split
from juggler.errors import StartFailed
from juggler.memory.footprint import MemoryEstimate
from juggler.memory.gguf_estimate import CACHE_BYTES, GgufOptions

DEFAULT_CONTEXT = 8192
"""``--contextsize`` of recent versions (koboldcpp.py); 4096 in early ones, for which it is a safe guess."""

_CACHES = {"0": 2.0, "1": CACHE_BYTES["q8_0"], "2": CACHE_BYTES["q4_0"], "3": 2.0}
"""Bytes per element by ``--quantkv``: f16, q8, q4, bf16."""

_TEXT_MODELS = ("--mmproj", "--draftmodel")
_OTHER_MODELS = (
    "--sdmodel",
    "--sdt5xxl",
    "--sdclip1",
    "--sdclip2",
    "--sdclipl",
    "--sdclipg",
    "--sdvae",
    "--whispermodel",
    "--ttsmodel",
    "--embeddingsmodel",
    "--musicllm",
    "--musicdiffusion",
)


def model_files(settings: BackendSettings) -> tuple[Path, ...]:
    """See ``Backend.model_files``."""
    config = _read(settings)
    if config is None:
        return ()
    names = [config.model, *(_name(config, option) for option in (*_TEXT_MODELS, *_OTHER_MODELS))]
    return existing(_path(settings, name) for name in names if name)


def memory_estimate(settings: BackendSettings) -> MemoryEstimate | None:
    """See ``Backend.memory_estimate``."""
    config = _read(settings)
    if config is None or not config.model or any(_name(config, option) for option in _OTHER_MODELS):
        return None
    layers = _number(config, "--gpulayers", -1)
    each = _CACHES.get(str(_number(config, "--quantkv", 0)), 2.0)
    options = GgufOptions(
        context=max(0, _number(config, "--contextsize", DEFAULT_CONTEXT)),
        gpu_layers=layers if layers >= 0 else None,
        key_bytes=each,
        value_bytes=each,
        slots=1,
        flash_attention=config.flag("--flashattention"),
    )
    projector, draft = (_name(config, option) for option in _TEXT_MODELS)
    return estimate_files(
        _path(settings, config.model),
        options,
        projector=_path(settings, projector) if projector else None,
        draft=_path(settings, draft) if draft else None,
    )


def _read(settings: BackendSettings) -> Configured | None:
    try:
        return configured(settings, split(settings.parameters))
    except StartFailed:
        return None  # said when it is started


def _name(config: Configured, option: str) -> str:
    value = config.value(option)
    return value if isinstance(value, str) else ""


def _number(config: Configured, option: str, default: int) -> int:
    """A whole number: text on the command line, a number in a file; -1 and the like included."""
    value = config.value(option)
    try:
        return int(value) if isinstance(value, (int, str)) else default
    except ValueError:
        return default


def _path(settings: BackendSettings, name: str) -> Path:
    return Path(settings.cwd or ".") / name
