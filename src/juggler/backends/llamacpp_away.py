"""What is known of a llama.cpp server while it is not running: the name of its model, if the operator gave it one.

Clients offer what ``/v1/models`` names; with nothing in it nobody could choose the model that a request would load.
With ``--alias`` its name is certain. Without, each version of llama.cpp makes another one of the file's
(``server.cpp``, ``server-context.cpp``), and a name that is not there any more after the start is worse than none.
"""

import json
import time
from collections.abc import Sequence

from juggler.backends.base import BackendSettings
from juggler.backends.command_line import has_option, option_value
from juggler.routing.stand_in import Question, StandInAnswer

_MODELS = frozenset({"-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo"})
"""Without one of them it is a router, with as many models as it finds."""

_LISTS = frozenset((b"/v1/models", b"/models"))


def certain_alias(settings: BackendSettings) -> str | None:
    """The one name that the server will give to its model."""
    parameters: Sequence[str] = settings.parameters
    if settings.attach_to is not None or not has_option(parameters, _MODELS):
        return None
    alias = option_value(parameters, {"-a", "--alias"}) or settings.env.get("LLAMA_ARG_ALIAS", "")
    return alias if alias and "," not in alias else None  # of a list, versions differ in which is the name


class LlamaCppAway:
    """Answers for one server that is started here.

    Args:
        alias: From ``certain_alias``.
        prefix: ``--api-prefix``.
    """

    def __init__(self, alias: str, prefix: str = "") -> None:
        self._alias = alias
        self._lists = frozenset(prefix.encode() + path for path in _LISTS)

    def knows(self, method: bytes, path: bytes) -> bool:
        return method in (b"GET", b"HEAD") and path in self._lists

    async def answer(self, question: Question) -> StandInAnswer | None:
        """As the program's own, whose ``created`` is the time of the question, too; ``meta`` is known to it alone."""
        card = {"id": self._alias, "object": "model", "created": int(time.time()), "owned_by": "llamacpp"}
        return StandInAnswer(json.dumps({"object": "list", "data": [card]}).encode(), "placeholder")
