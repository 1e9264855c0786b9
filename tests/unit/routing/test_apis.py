"""In whose shape a client of each API is told of errors."""

import pytest

from juggler.backends.registry import BACKENDS, api_for
from juggler.routing.apis import Api, api_of


@pytest.mark.parametrize(
    ("path", "api"),
    [
        (b"/", Api.OPENAI),
        (b"*", Api.OPENAI),
        (b"/v1/chat/completions", Api.OPENAI),
        (b"/completion", Api.OPENAI),
        (b"/v1/messages", Api.ANTHROPIC),
        (b"/v1/messages/count_tokens", Api.ANTHROPIC),
        (b"/llm/v1/messages", Api.ANTHROPIC),
        (b"/v1/messagesx", Api.OPENAI),
        (b"/api/chat", Api.OLLAMA),
        (b"/llm/api/generate", Api.OLLAMA),
        (b"/api", Api.OPENAI),
        (b"/sdapi/v1/txt2img", Api.A1111),
        (b"/img/sdapi/v1/options", Api.A1111),
        (b"/prompt", Api.COMFYUI),
        (b"/api/prompt", Api.COMFYUI),
        (b"/img/api/queue", Api.COMFYUI),
        (b"/history/1-2", Api.COMFYUI),
        (b"/object_info", Api.COMFYUI),
        (b"/upload/image", Api.COMFYUI),
        (b"/prompts", Api.OPENAI),
        (b"/queue/join", Api.OPENAI),
        (b"/api/v1/generate", Api.KOBOLDCPP),
        (b"/api/latest/model", Api.KOBOLDCPP),
        (b"/api/extra/generate/stream", Api.KOBOLDCPP),
        (b"/api/admin/reload_config", Api.KOBOLDCPP),
        (b"/\n/api/chat", Api.OLLAMA),
    ],
)
def test_by_path(path: bytes, api: Api) -> None:
    """Programs that imitate others answer each in its own words."""
    assert api_of(path) is api


@pytest.mark.parametrize(
    ("kind", "path", "api"),
    [
        ("comfyui", b"/api/chat", Api.COMFYUI),
        ("comfyui", b"/api/userdata/x", Api.COMFYUI),
        ("comfyui", b"/", Api.COMFYUI),
        ("sdwebui", b"/queue", Api.A1111),
        ("ollama", b"/api/queue", Api.OLLAMA),
        ("ollama", b"/api/v1/x", Api.OLLAMA),
        ("ollama", b"/", Api.OLLAMA),
        ("ollama", b"/v1/chat/completions", Api.OPENAI),
        ("ollama", b"/v1/messages", Api.ANTHROPIC),
        ("koboldcpp", b"/sdapi/v1/txt2img", Api.A1111),
        ("koboldcpp", b"/api/tags", Api.OLLAMA),
        ("llamacpp", b"/api/show", Api.OLLAMA),
        ("llamacpp", b"/v1/completions", Api.OPENAI),
        ("vllm", b"/v1/messages", Api.ANTHROPIC),
        ("command", b"/prompt", Api.COMFYUI),
    ],
)
def test_by_type(kind: str, path: bytes, api: Api) -> None:
    """The type decides where its program has one shape: ComfyUI and ollama both live below /api/."""
    assert kind in BACKENDS
    assert api_of(path, api_for(kind)) is api
