"""What an owner tells: reports to the engine, and lines to the log."""

import logging
import shlex
from collections.abc import Sequence
from typing import Protocol

from juggler.backends.base import Address, Backend
from juggler.backends.secrets import SECRET_NAME, value_behind_secret_name
from juggler.errors import BackendError, StartFailed
from juggler.ids import InstanceId

_log = logging.getLogger("juggler.lifecycle")


class Reports(Protocol):
    """What the owner tells. Always called from the loop, synchronously; must neither block nor raise."""

    def instance_ready(
        self,
        instance: InstanceId,
        generation: int,
        upstream_address: Address,
        *,
        attached: bool = False,
        soft_unload: bool | None = None,
    ) -> None:
        """A start, an attach or a wake is done: the instance may get traffic at this address.

        Args:
            attached: Somebody else runs the server.
            soft_unload: Whether it can free its memory and stay, as is known now.
        """
        ...

    def attachable(self, instance: InstanceId) -> None:
        """Nothing is running for the instance, and the server it would attach to answers."""
        ...

    def not_attached(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        """There was nothing to attach to. The last report of the generation."""
        ...

    def start_failed(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        """A start or a wake has failed. Its process may still hold memory; ``stopped`` follows when it is gone."""
        ...

    def unloaded(self, instance: InstanceId, generation: int) -> None:
        """The weights are freed, the process stays."""
        ...

    def unload_failed(self, instance: InstanceId, generation: int, detail: str) -> None:
        """The process stays, its weights probably too; ``detail`` is half a sentence for the log."""
        ...

    def stopped(self, instance: InstanceId, generation: int) -> None:
        """Nothing of this generation is left. The last report of each generation."""
        ...

    def exited(self, instance: InstanceId, generation: int, error: BackendError) -> None:
        """The main process ended by itself, other than during a start or wake; ``stopped`` follows."""
        ...

    def busy_probed(self, instance: InstanceId, generation: int, busy: bool) -> None:
        """The backend's own word on whether it works; False if it could not be asked."""
        ...


def masked_command(argv: Sequence[str]) -> str:
    """The command as a shell would take it, with the values of flags such as ``--api-key`` replaced by ``***``."""
    masked: list[str] = []
    hide_next = False
    for argument in argv:
        value = value_behind_secret_name(argument)
        named = argument.startswith("-") and "=" not in argument
        secret = named and SECRET_NAME.search(argument.lstrip("-")) is not None
        if hide_next:
            masked.append("***")
            hide_next = False
        elif value:
            masked.append(shlex.quote(argument.removesuffix(value)) + "***")
        else:
            masked.append(shlex.quote(argument))
            hide_next = secret
    return " ".join(masked)


def log_failure(instance: InstanceId, error: BackendError) -> None:
    """One record: the message, the hint, and the process's last lines below."""
    lines = [error.message, *([f"hint: {error.hint}"] if error.hint else []), *error.log_tail]
    _log.error("%s: %s", instance, "\n    ".join(lines))


def as_backend_error(error: Exception, backend: Backend, what: str, log_tail: Sequence[str]) -> BackendError:
    """Whatever went wrong with a backend as an error that names its endpoint.

    Args:
        error: Caught from a hook or a launcher; a mistake in the module is logged with its traceback.
        what: Half a sentence: ``"could not be started"``.
        log_tail: The last lines of the process, for errors that do not carry them.
    """
    settings = backend.settings
    if isinstance(error, BackendError):
        if error.endpoint is None:  # a launcher knows of no endpoints; the text must name it all the same
            error.endpoint, error.message = settings.endpoint_name, f"{settings.endpoint_name}: {error.message}"
            error.args = (error.message,)
        error.phase = error.phase or "starting"
        return error
    if not isinstance(error, OSError):
        _log.error("%s: the %s module failed", settings.instance, backend.type_name, exc_info=error)
    return StartFailed(
        f"{settings.endpoint_name}: its {backend.type_name} server {what}: {str(error) or type(error).__name__}",
        endpoint=settings.endpoint_name,
        phase="starting",
        log_tail=log_tail,
    )
