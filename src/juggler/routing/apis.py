"""Whose API a request speaks: in its shape errors are told. Pure.

A backend's type decides where one program has one shape for all of its routes; ComfyUI and ollama both live below
``/api/``. Programs that imitate others (koboldcpp, llama.cpp), those of type ``command``, and requests that no
endpoint serves are known by their path, below any prefix.
"""

import enum
import re


class Api(enum.Enum):
    """Whose clients read the answer."""

    OPENAI = "openai"
    """Also llama.cpp's and vLLM's own routes, and whatever else there is."""
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    A1111 = "a1111"
    """AUTOMATIC1111's web UI and Forge."""
    COMFYUI = "comfyui"
    KOBOLDCPP = "koboldcpp"


_ANTHROPIC = re.compile(rb"(?:/.*)?/v1/messages(?:/.*)?", re.DOTALL)
_BY_PATH = re.compile(
    rb"(?:/.*?)??/(?:(?P<A1111>sdapi/.*)"
    rb"|(?P<COMFYUI>(?:api/)?(?:prompt|queue|interrupt|free|system_stats|view"
    rb"|(?:history|object_info)(?:/.*)?|upload/(?:image|mask)))"
    rb"|(?P<KOBOLDCPP>api/(?:v1|latest|extra|admin)/.*)|(?P<OLLAMA>api/.*))",
    re.DOTALL,
)
"""Below as short a prefix as possible; in this order."""


def api_of(path: bytes, own: Api | None = None) -> Api:
    """The API of a request.

    Args:
        path: Of its target, raw, without the query: as the backend sees it, or as the client sent it.
        own: Of the program that serves it, if it has one shape for all; None: its path tells.
    """
    if own is Api.A1111 or own is Api.COMFYUI:
        return own
    if _ANTHROPIC.fullmatch(path):
        return Api.ANTHROPIC
    if own is Api.OLLAMA:
        return Api.OPENAI if path.startswith(b"/v1/") else Api.OLLAMA
    match = _BY_PATH.fullmatch(path)
    return Api[match.lastgroup] if match is not None and match.lastgroup else Api.OPENAI
