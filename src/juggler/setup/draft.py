"""The plan as a document with comments and with examples of what was not found. Pure."""

from juggler import __version__
from juggler.setup.document import Block, Entry, Listing, Scalar, Value
from juggler.setup.facts import CONTROL_PORT, Facts
from juggler.setup.planned import Plan, PlannedBackend, PlannedEndpoint, PlannedServer, program_values
from juggler.survey.containers import Containers
from juggler.units import GIB

_HEADER = (
    f"Written by `juggler init` {__version__} for this machine. Change what you like: `juggler check` finds mistakes, "
    "`juggler doctor` says what does not work here, docs/configuration.md explains every key."
)

_EXAMPLES: dict[str, dict[str, Scalar | tuple[Scalar, ...]]] = {
    "llamacpp": {"binary": "llama-server", "default_parameters": ("-ngl", "99", "-fa", "on")},
    "koboldcpp": {"binary": "/path/to/koboldcpp-linux-x64"},
    "sdwebui": {"attach_to": "http://localhost:7860", "binary": "/path/to/stable-diffusion-webui-forge/webui.sh"},
    "comfyui": {
        "binary": "/path/to/ComfyUI/venv/bin/python",
        "default_parameters": ("main.py",),
        "cwd": "/path/to/ComfyUI",
    },
    "ollama": {"attach_to": "http://localhost:11434"},
    "vllm": {"binary": "/path/to/venv/bin/vllm"},
}
_EXAMPLE_MODELS = {
    "llamacpp": ("-m", "/path/to/model.gguf", "-c", "16384"),
    "vllm": ("serve", "owner/model-name"),
}


def make_document(plan: Plan, facts: Facts) -> Block:
    """The whole configuration."""
    entries: list[Entry] = []
    if plan.pools:
        comments = (
            "Memory that models share, one pool per GPU: what fits together stays loaded together.",
            *plan.pool_comments,
        )
        pools = Block(tuple(Entry(name, _size(size)) for name, size in plan.pools.items()))
        entries.append(Entry("memory", Block((Entry("pools", pools),)), comments))
    if plan.control_port != CONTROL_PORT:
        port = plan.control_port
        comment = f"The dashboard and API: http://127.0.0.1:{port}. The usual port, {CONTROL_PORT}, is taken."
        entries.append(Entry("control", Block((Entry("port", port),)), (comment,)))
    entries.append(Entry("backends", _backends(plan, facts)))
    host = _host_comment(facts.containers)
    servers = tuple(_server(one, facts, host if number == 0 else ()) for number, one in enumerate(plan.servers))
    entries.append(Entry("servers", Listing(servers)))
    header = [_HEADER]
    if not plan.pools:
        header.append(
            "No GPU memory is known: models share main memory as far as their needs are known; `memory` changes that."
        )
    return Block(tuple(entries), (_warmup(plan),), tuple(header), "Load an endpoint before anybody asks for it:")


def _backends(plan: Plan, facts: Facts) -> Block:
    here = {backend.name for backend in plan.backends}
    examples = []
    for name, values in _EXAMPLES.items():
        if name not in here:
            program = facts.program(name)
            shown = values if program is None else program_values(program)
            examples.append(Entry(name, Block(tuple(Entry(key, value) for key, value in shown.items()))))
    return Block(
        tuple(_backend(one) for one in plan.backends),
        tuple(examples),
        examples_title="Not in use here; take the marks off and correct the paths to use them:",
    )


def _backend(backend: PlannedBackend) -> Entry:
    values = Block(tuple(Entry(key, value) for key, value in backend.values.items()))
    return Entry(backend.name, values, backend.comments)


def _host_comment(containers: Containers) -> tuple[str, ...]:
    if containers.inside:
        return ('This is a container: published ports do not reach its localhost. For them write "0.0.0.0".',)
    if not containers.likely:
        return ()
    address = containers.host_address
    instead = f'"{address}" (them alone) or "0.0.0.0" (every network)' if address else '"0.0.0.0" (every network)'
    return (f"Clients in containers cannot reach localhost: for them write {instead}.",)


def _server(server: PlannedServer, facts: Facts, host: tuple[str, ...]) -> Block:
    examples = (_endpoint(_example(facts)),) if server.endpoints[0].backend == "demo" else ()
    endpoints = Listing(tuple(_endpoint(one) for one in server.endpoints), examples)
    entries = (
        Entry("name", server.name),
        Entry("host", "localhost", host),
        Entry("port", server.port),
        Entry("endpoints", endpoints),
    )
    return Block(entries, comments=server.comments)


def _example(facts: Facts) -> PlannedEndpoint:
    """An endpoint for the operator to complete, on a program that is there if one is."""
    kind = "vllm" if facts.program("vllm") is not None and facts.program("llamacpp") is None else "llamacpp"
    comment = "An endpoint of yours, once its backend is there. It stands first: the one below takes all the rest."
    return PlannedEndpoint("My model", kind, "/my-model", _EXAMPLE_MODELS[kind], comments=(comment,))


def _endpoint(endpoint: PlannedEndpoint) -> Block:
    values: dict[str, Value] = {"name": endpoint.name}
    if endpoint.prefix:
        values |= {"path_prefix": endpoint.prefix, "strip_prefix": True}
    values["backend"] = endpoint.backend
    if endpoint.parameters:
        values["parameters"] = endpoint.parameters
    if endpoint.memory:
        values["memory"] = Block(tuple(Entry(name, _size(size)) for name, size in endpoint.memory.items()))
    if endpoint.env:
        values["env"] = Block(tuple(Entry(name, value) for name, value in endpoint.env.items()))
    return Block(tuple(Entry(key, value) for key, value in values.items()), comments=endpoint.comments)


def _warmup(plan: Plan) -> Entry:
    server = plan.servers[0]
    entry = Block((Entry("server", server.name), Entry("endpoint", server.endpoints[-1].name)))
    return Entry("warmup", Listing((entry,)))


def _size(size_bytes: int) -> str:
    """As the reader takes it back: tenths of a GiB."""
    return f"{size_bytes / GIB:.1f}GiB"
