"""Endpoints for the language models: names, prefixes, parameters, and a sentence for each. Pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from juggler.setup.estimate import trained_context
from juggler.setup.facts import Facts
from juggler.setup.place import Budget, Placed, place
from juggler.setup.planned import (
    Plan,
    PlannedBackend,
    PlannedEndpoint,
    PlannedServer,
    program_comment,
    program_values,
)
from juggler.setup.programs import Program
from juggler.units import format_size

MODELS_MAX = 12
"""Endpoints for models; the others are named in a remark. More would hide what matters."""

NAMES_MAX = 20
"""Listed in a remark."""

_TAKEN_SLUGS = frozenset({"api", "v1", "v2", "health", "props", "slots", "models", "completion", "metrics", "sdapi"})
"""First segments of paths that belong to whoever is at the root."""


def language_models(facts: Facts, plan: Plan, budget: Budget, ports: Iterator[int]) -> None:
    """One server for everything that llama-server (or koboldcpp, without it) can load; none if there is nothing."""
    kobold = facts.program("koboldcpp")
    program = facts.program("llamacpp") or kobold
    taken: set[str] = set()
    endpoints = _saved(facts, taken) if kobold is not None else []
    if program is not None:
        endpoints += _model_endpoints(facts, plan, budget, program, taken)
    if not endpoints:
        return
    used = {endpoint.backend for endpoint in endpoints}
    for one in (facts.program("llamacpp"), kobold):
        if one is not None and one.type in used:
            plan.backends.append(_backend(facts, budget, one))
    comments = ["Language models. Endpoints are tried from top to bottom; the first whose prefix fits is taken."]
    if any(endpoint.memory for endpoint in endpoints):
        comments.append(
            'Each "memory" is a guess from the size of the file and its context: correct it when you see what the '
            "model really takes (juggler ps, nvidia-smi)."
        )
    plan.servers.append(PlannedServer("LLM", next(ports), tuple(_with_names(endpoints)), tuple(comments)))


def _saved(facts: Facts, taken: set[str]) -> list[PlannedEndpoint]:
    """Endpoints for configurations that koboldcpp saved."""
    comment = "A configuration saved by koboldcpp. How much memory it takes is not known, so it is loaded alone."
    return [
        PlannedEndpoint(path.stem, "koboldcpp", _prefix(path.stem, taken), ("--config", str(path)), comments=(comment,))
        for path in facts.search.kcpps[:MODELS_MAX]
    ]


def _model_endpoints(
    facts: Facts, plan: Plan, budget: Budget, program: Program, taken: set[str]
) -> list[PlannedEndpoint]:
    """The fastest and largest models, the one for everybody last."""
    placed, too_large = [], []
    for model in facts.search.models:
        one = place(model, budget, on_gpu=not program.cpu_only)
        if one is not None:
            placed.append(one)
        else:
            too_large.append(model.name)
    if too_large:
        plan.remarks.append(f"too large for this machine: {_listed(too_large)}")
    placed.sort(key=lambda one: (not one.fast, -one.model.size_bytes))
    if len(placed) > MODELS_MAX:
        names = _listed([one.model.name for one in placed[MODELS_MAX:]])
        plan.remarks.append(f"{MODELS_MAX} models have an endpoint; these have none: {names}")
    placed = placed[:MODELS_MAX]
    default = next((one for one in placed if not one.model.is_embedding), None)
    others = [one for one in placed if one is not default]
    endpoints = [_endpoint(one, program, _prefix(one.model.name, taken)) for one in others]
    return endpoints + ([_endpoint(default, program, "")] if default is not None else [])


def _endpoint(one: Placed, program: Program, prefix: str) -> PlannedEndpoint:
    model = one.model
    kobold = program.type == "koboldcpp"
    file, context, layers = ("--model", "--contextsize", "--gpulayers") if kobold else ("-m", "-c", "-ngl")
    parameters = [file, str(model.path)]
    if model.projector is not None:
        parameters += ["--mmproj", str(model.projector)]
    parameters += [context, str(one.context)]
    if one.layers is not None:
        parameters += [layers, str(one.layers)]
    if model.is_embedding and not kobold:
        parameters.append("--embedding")
    comments = tuple(_comments(one, prefix))
    return PlannedEndpoint(model.name, program.type, prefix, tuple(parameters), one.memory, one.env, comments)


def _comments(one: Placed, prefix: str) -> list[str]:
    model = one.model
    parts = [f"{format_size(model.size_bytes)} of weights, context of {one.context} (it can {trained_context(model)})."]
    if model.projector is not None:
        parts.append(f"{model.projector.name} lies beside it: it takes pictures or sound.")
    if model.is_embedding:
        parts.append("It makes embeddings.")
    comments = [" ".join(parts)]
    if one.layers is not None:
        all_layers = model.head.layers + 1
        comments.append(f"Too large for the GPU: {one.layers} of {all_layers} layers go there, the rest is slow.")
    elif sum(name.startswith("gpu") for name in one.memory) > 1:
        comments.append("It fits on no GPU alone and is spread over all of them.")
    if one.env:
        comments.append("It sees one GPU only, so that the others stay free for other models.")
    if not prefix:
        which = "The largest model that is fast here" if one.fast else "No model is fast here"
        comments.append(f"{which}: this one takes everything that no prefix above takes.")
    return comments


def _backend(facts: Facts, budget: Budget, program: Program) -> PlannedBackend:
    comments = [program_comment(program)]
    parameters: tuple[str, ...] = ()
    if budget.gpus and not program.cpu_only:
        if program.type == "llamacpp":
            parameters = ("-ngl", "99")
            comments.append("-ngl 99: all layers go to the GPU, unless an endpoint says otherwise.")
        else:
            vendor = next(iter(budget.gpus.values())).vendor
            parameters = ("--gpulayers", "99", "--usecublas" if vendor == "NVIDIA" else "--usevulkan")
            comments.append("--gpulayers 99: all layers go to the GPU, unless an endpoint says otherwise.")
    others = [one.path for one in facts.programs if one.type == program.type and one is not program]
    if others:
        comments.append(f"There is also {' and '.join(others)}.")
    return PlannedBackend(program.type, program_values(program, *parameters), tuple(comments))


def _prefix(name: str, taken: set[str]) -> str:
    """A path for a model that nobody else has: ``/qwen3-30b-a3b-q4-k-m``."""
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"
    if slug in _TAKEN_SLUGS:
        slug = f"model-{slug}"
    prefix, number = f"/{slug}", 2
    while prefix in taken:
        prefix, number = f"/{slug}-{number}", number + 1
    taken.add(prefix)
    return prefix


def _with_names(endpoints: Sequence[PlannedEndpoint]) -> Iterator[PlannedEndpoint]:
    """The endpoints with names that differ: two folders may hold files of one name."""
    taken: set[str] = set()
    for endpoint in endpoints:
        name, number = endpoint.name[:150].strip() or "model", 2
        while name in taken:
            name, number = f"{endpoint.name[:150]} ({number})", number + 1
        taken.add(name)
        yield replace(endpoint, name=name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return ", ".join(names[:NAMES_MAX]) + more
