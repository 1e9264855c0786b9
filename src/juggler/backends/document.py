"""``docs/backends.md``: what the modules say of themselves, and what a user must know besides.

``python -m juggler.backends.document`` writes the page; a test compares it with the one that is there. The table and
the routes come from the code, so that they cannot say anything else than it does.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from juggler.backends.base import Backend, BackendSettings, Capabilities, HttpCall
from juggler.backends.registry import BACKENDS
from juggler.ids import InstanceId
from juggler.routing.traffic import TrafficClass

PAGE = Path(__file__).parents[3] / "docs" / "backends.md"


@dataclass(frozen=True, slots=True)
class _Section:
    """What the code does not say of a type."""

    title: str
    text: str
    example: str
    """An entry of ``backends`` that ``juggler check`` accepts."""
    variant: tuple[str, ...] = ()
    """Parameters (for `command`: hooks) with which the program can do more; shown as a second row."""


_SECTIONS = {
    "llamacpp": _Section(
        "llama.cpp",
        """`binary` is `llama-server`. `--host`, `--port` and `--slot-save-path` are ours; everything else of your
command line stays as it is, so that an option the build no longer knows ends its start: the answer then names the
option and its replacement. llama.cpp cannot free its model and stay, so it is stopped; before that the KV cache
of every slot is saved, and restored after the next start, unless `kv_cache_saving` of the endpoint is false.
Files are bound to the exact weights, options and build; `kv_cache.quota` bounds them. A server that you run
yourself can be fronted with type `command` and `attach_to`; declare its `memory`, which it never gives back.
Give it an `--alias`: `/v1/models` names it before the first start then, so that clients can choose it.""",
        '{"llamacpp": {"binary": "/opt/llama.cpp/llama-server", "default_parameters": ["-ngl", "99", "-fa", "on"]}}',
    ),
    "sdwebui": _Section(
        "Stable Diffusion web UI: A1111 and Forge",
        """`binary` is `webui.sh`, or `launch.py`, which runs with the Python of the environment beside it.
`--port`, `--listen`, `--share` and their like are taken out, also of `COMMANDLINE_ARGS`, wherever that is set;
`--api` is added unless you say `--nowebui`. The model is unloaded with `unload-checkpoint` when the web UI is
idle by its own account (jobs, its queue, gradio's), and loaded with `reload-checkpoint` before the next request.
To attach, the web UI must run with `--api` or `--nowebui`; give the `--api-auth` it was started with in
`parameters`. Under a stripped `path_prefix` `--subpath` is set.""",
        '{"sdwebui": {"attach_to": "http://localhost:7860", "binary": "~/stable-diffusion-webui-forge/webui.sh"}}',
    ),
    "koboldcpp": _Section(
        "koboldcpp",
        """`binary` is the one-file program, or a Python with `koboldcpp.py` as first parameter. A `.kcpps` file,
wherever you name it, is read and handed over as a private copy in which the address is ours; a URL for `--config`
and `--routermode` are refused. Passwords that koboldcpp prints are masked. It frees its models and stays only in
administration mode (`--admin`, with the password in `--adminpassword`), also where it is attached; otherwise it
is stopped. While its models are away nothing is forwarded to it.""",
        '{"koboldcpp": {"binary": "/opt/koboldcpp-linux-x64", "default_parameters": ["--config", "/models/a.kcpps"]}}',
        ("--admin",),
    ),
    "comfyui": _Section(
        "ComfyUI",
        """`binary` is ComfyUI's Python, with `main.py` in `default_parameters` and its folder as `cwd`; or
`main.py` itself, then the Python of the environment beside it is taken. `--listen`, `--port` and
`--disable-auto-launch` are ours. A job outlives its request: ComfyUI counts as busy until its queue is empty.
Models are freed with `/free`, which ComfyUI does when it gets to it, so the effect is looked for. `/ws` stays
open through everything and keeps nothing loaded. A client that opens `/ws` before anything else (Open WebUI)
needs `"traffic": [{"match": "GET /ws", "class": "start"}]`.""",
        '{"comfyui": {"binary": "~/ComfyUI/venv/bin/python", "default_parameters": ["main.py"], "cwd": "~/ComfyUI"}}',
    ),
    "ollama": _Section(
        "ollama",
        """`binary` is `ollama`; `serve` is added. Its address is set in the environment (`OLLAMA_HOST`), and
`OLLAMA_KEEP_ALIVE=-1` and `OLLAMA_NOPRUNE=1` unless you set them. One server may hold several models: when the
memory is wanted, all are unloaded through its API, whatever `keep_alive` their clients asked for, and the list of
loaded models is watched until it is empty. What is left is a process without models.

While it does not run, clients still find their models, and nothing is started for it. What they asked before is
answered as it was (`X-Juggler: cached`): lists, and details of a model to the same body, until a model is made,
copied or removed through the juggler. Where a request would start it (`binary`), there are further answers, read from
its folder of models as it would read them (`OLLAMA_MODELS`, else `~/.ollama/models`; `X-Juggler: files`): `/api/tags`,
`/v1/models`, and `/api/show` without `capabilities` and `modelfile`, which only the program itself can tell. Without
`attach_to` it is also known that nothing is loaded: `/api/ps` is empty, and an order to unload (`keep_alive: 0` without
a prompt) is obeyed already (`X-Juggler: placeholder`). Nothing loads a model to unload it. Downloads need the program:
`juggler load` starts it. A server that is merely attached to has its earlier answers only.""",
        '{"ollama": {"attach_to": "http://localhost:11434", "binary": "/usr/local/bin/ollama"}}',
    ),
    "vllm": _Section(
        "vLLM",
        """`binary` is `vllm`; `serve` is added. `--host`, `--port` and TLS are ours. Instead of being stopped it
sleeps: `--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1` are set, unless `model_unloading` is false (needed
where vLLM cannot sleep: without CUDA). Level 1 keeps the weights in RAM; `"unload": "POST /sleep?level=2"` drops
them and reads them again at the wake. The routes of the development mode are closed to clients. An attached
server sleeps only if it was started with the same two settings.""",
        '{"vllm": {"binary": "/opt/vllm/bin/vllm", "default_parameters": ["serve", "org/model"]}}',
    ),
    "command": _Section(
        "Any HTTP server",
        """`{host}` and `{port}` are replaced in parameters and environment. `ready_path` says when it may get
requests (without it: when it answers at all), `unload` and `wake` are calls that free and load its model, `busy`
asks whether it still works. Each call may name the statuses it expects; `busy_when` is a condition on the JSON
answer, such as `queue.running > 0` or `state != "idle"`. Without `unload` the server is stopped.

Nothing is known of its routes: GET, HEAD and OPTIONS are light and do not start it, everything else is work. Where
a GET is to start it (a file server, a page with an API behind it) say so:
`"traffic": [{"match": "GET /*", "class": "work"}]`, or `"start"` for what only has to bring it up.""",
        '{"images": {"type": "command", "binary": "/opt/images/server", "default_parameters": ["--port", "{port}"], '
        '"ready_path": "/health", "unload": "POST /unload", "wake": {"path": "/load", "expect": [200, 202]}, '
        '"busy": {"path": "/jobs", "busy_when": "running > 0"}}}',
        ("unload", "wake", "busy"),
    ),
    "demo": _Section(
        "Simulated image backend",
        "Comes with the juggler, for `juggler demo` and for trying things out.",
        '{"demo": {}}',
    ),
}

_CLASSES = {
    TrafficClass.WORK: "loads the model",
    TrafficClass.START: "loads the model, then is light",
    TrafficClass.LIGHT: "light",
    TrafficClass.HELD_OPEN: "held open",
    TrafficClass.BLOCKED: "closed to clients (403)",
}

_HEAD = """# Backends

<!-- Generated by `python -m juggler.backends.document`. -->

What each type of backend can do, what it needs, and which of its routes load a model. Keys are explained in
[configuration.md](configuration.md).

* **unload**: how the memory is freed while the process stays: `sync` (the answer means done), `async` (looked for), or
  not at all, then the process is stopped. An unload is verified; if it cannot be, a server of ours is stopped, and an
  attached one is reported by name.
* **reload**: by a start, by the next request (`lazy`), or by a call before it (`explicit`).
* **asked if busy**: the program's own word counts before its memory is taken, besides the requests we know of.
* **answers unloaded**: polls and lists are forwarded although the model is not loaded.
* **at a time**: requests handed over at once unless `concurrency` says otherwise; the rest waits here, in order.
"""

_TRAFFIC_HEAD = """Rules of `traffic` in the configuration come first, then those of the type, top to bottom. What no
rule names: GET, HEAD and OPTIONS are light, everything else loads the model. *Light* requests are forwarded while the
backend answers; while it does not, a GET is answered from the last good reply (`X-Juggler: cached`, `Age`), unless the
route is marked *of the moment*, else with 503 and `Retry-After`. A POST that is marked *a question* is treated as a
GET is: the same body, byte for byte, gets the last good reply to it. *Held open* is light and never counts as use. A
few routes have an answer for the time before any (`X-Juggler: placeholder`, or `files`: see ollama).

Our own errors have the shape of the API that was called: OpenAI's, Anthropic's (`/v1/messages`), ollama's,
koboldcpp's, A1111's or ComfyUI's, by the type of the backend where that has one shape, else by the path; each with a
`juggler` object beside it. Whoever prefers text to JSON (`Accept`) gets text, a browser that opens a page gets a page.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_table(), "", "## Routes", "", _TRAFFIC_HEAD, *_sections()]).rstrip() + "\n"


def examples() -> dict[str, str]:
    """Type to the entry of ``backends`` that the page shows."""
    return {name: section.example for name, section in _SECTIONS.items()}


def _table() -> list[str]:
    columns = "type | start | attach | unload | reload | needs idle | asked if busy | answers unloaded | KV kept | UI"
    lines = [f"| {columns} | at a time |", "|---" * 11 + "|"]
    for name in BACKENDS:
        lines.append(_row(f"`{name}`", _example_of(name, ())))
        variant = _SECTIONS[name].variant
        if variant:
            lines.append(_row(f"`{name}` with `{' '.join(variant)}`", _example_of(name, variant)))
    return lines


def _example_of(name: str, parameters: tuple[str, ...]) -> Backend:
    settings = BackendSettings(InstanceId(name), name, name, binary="program")
    if name == "command" and parameters:
        hook = HttpCall("POST", "/hook")
        settings = replace(settings, unload=hook, wake=hook, busy=hook)
    else:
        settings = replace(settings, parameters=parameters)
    return BACKENDS[name](settings)


def _row(title: str, backend: Backend) -> str:
    can: Capabilities = backend.capabilities
    cells = (
        title,
        _mark(can.can_start),
        _mark(can.can_attach),
        "stop" if can.unload == "none" else can.unload,
        can.reload,
        _mark(can.unload_needs_idle),
        _mark(can.work_outlives_request),
        _mark(can.answers_when_unloaded),
        _mark(can.keeps_kv),
        _mark(backend.has_ui),
        str(backend.default_concurrency),
    )
    return "| " + " | ".join(cells) + " |"


def _mark(flag: bool) -> str:
    return "yes" if flag else "-"


def _sections() -> list[str]:
    lines: list[str] = []
    for name, kind in BACKENDS.items():
        section = _SECTIONS[name]
        lines += ["", f"## `{name}`: {section.title}", "", section.text, "", "```json"]
        lines += [f'"backends": {section.example}', "```"]
        if kind.traffic.rules:
            lines += ["", "| route | |", "|---|---|"]
        for rule in kind.traffic.rules:
            moment = ", of the moment" if rule.volatile else ", a question" if rule.question else ""
            moment += ", but an order to unload is light" if rule.light_if is not None else ""
            lines.append(f"| `{rule.match.replace('|', chr(92) + '|')}` | {_CLASSES[rule.traffic]}{moment} |")
        for path, placeholder in kind.traffic.placeholders.items():
            lines.append(f"| `GET\\|HEAD {path.decode()}` | light, `{placeholder.body.decode()}` before any answer |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
