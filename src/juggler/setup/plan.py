"""What the configuration shall say, given what was found. Pure.

Each decision carries its reason, which becomes a comment.
"""

import itertools
from collections.abc import Container, Iterator

from juggler.setup.facts import CONTROL_PORT, Facts
from juggler.setup.language import language_models
from juggler.setup.place import Budget
from juggler.setup.planned import (
    BackendValues,
    Plan,
    PlannedBackend,
    PlannedEndpoint,
    PlannedServer,
    program_comment,
    program_values,
)
from juggler.setup.programs import Program
from juggler.setup.servers import Seen

_OWN_PORT = {"sdwebui": "Stable Diffusion", "comfyui": "ComfyUI", "ollama": "Ollama", "vllm": "vLLM"}
"""Types whose pages and clients expect to be at the root of a port (clients.md section 4.1), and their names."""

_TITLE_CHARS_MAX = 100
"""Of a server's name, which holds a folder's name where there are several; names have room for 200."""


def make_plan(facts: Facts) -> Plan:
    """Decide everything."""
    plan = Plan(control_port=facts.control_port)
    budget = Budget(facts)
    ports = iter(facts.ports)
    language_models(facts, plan, budget, ports)
    for kind, title in _OWN_PORT.items():
        _own_port(facts, plan, kind, title, ports)
    if not plan.servers:
        _demo(plan, ports)
    used = {pool for server in plan.servers for endpoint in server.endpoints for pool in endpoint.memory}
    for name, (size, comment) in budget.pools.items():
        if name != "ram" or name in used:
            plan.pools[name] = size
            plan.pool_comments.append(comment)
    plan.remarks += _remarks(facts)
    return plan


def _own_port(facts: Facts, plan: Plan, kind: str, title: str, ports: Iterator[int]) -> None:
    """A port for the server that runs, or else one for each installation that can be started."""
    installed = [one for one in facts.programs if one.type == kind]
    seen = facts.server(kind)
    if seen is not None:
        own = installed[0] if len(installed) == 1 and kind in ("sdwebui", "comfyui") else None
        _add(facts, plan, title, _attached(kind, seen, own), ports)
    elif kind != "vllm":  # vLLM serves one model, and nobody but the operator knows which
        for number, program in enumerate(installed, start=1):
            name = kind if number == 1 else f"{kind}-{number}"
            folder = program.folder.name if program.folder is not None else str(number)
            _add(facts, plan, title if len(installed) == 1 else f"{title} ({folder})", _started(name, program), ports)


def _attached(kind: str, seen: Seen, own: Program | None) -> PlannedBackend:
    text = seen.identity.text if seen.identity is not None else kind
    comments = [f"{text} answers on port {seen.port}. The juggler uses it, frees its memory, and never ends it."]
    values: BackendValues = {"attach_to": seen.url}
    if kind == "vllm":
        comments.append(
            "That needs --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1: `juggler doctor` says if it has them."
        )
    if own is not None:
        comments.append("While it does not run, the juggler starts this installation instead.")
        values |= program_values(own)
    return PlannedBackend(kind, values, tuple(comments))


def _started(name: str, program: Program) -> PlannedBackend:
    values = program_values(program)
    if name != program.type:
        values = {"type": program.type, **values}
    comment = f"{program_comment(program)} The juggler starts it when a request needs it."
    return PlannedBackend(name, values, (comment,))


def _add(facts: Facts, plan: Plan, title: str, backend: PlannedBackend, ports: Iterator[int]) -> None:
    plan.backends.append(backend)
    title = _unique(title[:_TITLE_CHARS_MAX], {server.name for server in plan.servers})
    comments = ["Its pages and clients expect it at the root of a port, so it has one of its own."]
    if Budget(facts).gpus:
        comments.append('Without "memory" it is given the whole first GPU: declare it once you know what it takes.')
    endpoint = PlannedEndpoint(title, backend.name)
    plan.servers.append(PlannedServer(title, next(ports), (endpoint,), tuple(comments)))


def _unique(title: str, taken: Container[str]) -> str:
    """With a number behind it where two checkouts' folders have one name."""
    numbered = (f"{title} {number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([title], numbered) if one not in taken)


def _demo(plan: Plan, ports: Iterator[int]) -> None:
    comment = "Nothing to serve was found here. This simulated server shows how it works; put yours in its place."
    plan.backends.append(PlannedBackend("demo", {}, (comment,)))
    endpoint = PlannedEndpoint("Demo", "demo", comments=("Open it in a browser, or POST to /sdapi/v1/txt2img.",))
    plan.servers.append(PlannedServer("Demo", next(ports), (endpoint,)))


def _remarks(facts: Facts) -> list[str]:
    remarks = []
    for seen in facts.servers:
        if seen.identity is None:
            who = f" by {seen.holder}" if seen.holder is not None else ""
            remarks.append(f"port {seen.port} is taken{who}; what answers there does not say that it is {seen.usual}")
        elif seen.identity.type in ("llamacpp", "koboldcpp"):
            unless = ", unless it has `--admin`" if seen.identity.type == "koboldcpp" else ""
            remarks.append(
                f"{seen.identity.text} runs on port {seen.port}. The juggler cannot free its memory{unless}: end it, "
                "and let the juggler start it when a request needs it"
            )
    if facts.program("vllm") is not None and facts.server("vllm") is None:
        remarks.append("vLLM is installed, but it needs to know its model: see the example in the file")
    if facts.program("llamacpp") is not None and not facts.search.models:
        remarks.append("llama-server is installed, but no model was found: name your folder with --models")
    if facts.search.kcpps and facts.program("koboldcpp") is None:
        remarks.append("there are configurations saved by koboldcpp, but koboldcpp itself was not found")
    if facts.control_port != CONTROL_PORT:
        remarks.append(f"port {CONTROL_PORT} is taken: the dashboard is on {facts.control_port}")
    return remarks + [f"the GPU could not be asked: {trouble}" for trouble in facts.gpus.troubles]
