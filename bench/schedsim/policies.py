"""Every policy by its name."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from bench.schedsim.juggler_policy import Juggler
from bench.schedsim.policy import Policy
from bench.schedsim.rivals.large_model_proxy import LargeModelProxy, LargeModelProxyDefault
from bench.schedsim.rivals.llama_swap import LlamaSwap, LlamaSwapCosts, LlamaSwapDefault
from bench.schedsim.rivals.naive import Naive
from bench.schedsim.rivals.ollama import Ollama, OllamaDefault
from bench.schedsim.world import World

from juggler.scheduler.policy import Policy as Parameters

BASE = LlamaSwap.name
"""What everything is compared with."""

POLICIES: Mapping[str, type[Policy]] = {
    one.name: one
    for one in (
        LlamaSwap,
        Juggler,
        LargeModelProxy,
        Ollama,
        LlamaSwapCosts,
        LlamaSwapDefault,
        LargeModelProxyDefault,
        OllamaDefault,
        Naive,
    )
}


def maker(name: str, changes: Mapping[str, str]) -> Callable[[World], Policy]:
    """How to make a policy for a world.

    Args:
        name: Of ``POLICIES``.
        changes: Parameters of the juggler's that are not to have their defaults, as written on the command line.

    Raises:
        ValueError: There is no such policy, or no such parameter, or not with such a value.
    """
    if name not in POLICIES:
        raise ValueError(f"there is no policy {name!r}: it is one of {', '.join(POLICIES)}")
    if name != Juggler.name or not changes:
        return POLICIES[name]
    parameters = _changed(changes)
    return lambda world: Juggler(world, parameters)


def _changed(changes: Mapping[str, str]) -> Parameters:
    defaults = Parameters()
    known = {one.name for one in fields(Parameters)}
    values: dict[str, bool | float] = {}
    for name, text in changes.items():
        if name not in known:
            raise ValueError(f"the juggler's policy has no parameter {name!r}: it has {', '.join(sorted(known))}")
        if isinstance(getattr(defaults, name), bool):
            if text not in ("true", "false"):
                raise ValueError(f"{name} is true or false, not {text!r}")
            values[name] = text == "true"
        else:
            values[name] = float(text)
    return replace(defaults, **values)  # type: ignore[arg-type]  # names and kinds were checked
