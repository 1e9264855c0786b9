"""``juggler-llama-server``: llama.cpp's own HTTP server, from a Python wheel, under llama-server's command line.

The wheel ``xllamacpp`` contains the real server but no program. This adds command line, signals and exit statuses,
as llama-server has them (llama.cpp b11434, ``tools/server/server.cpp``):

* exit 1: bad argument, port taken, model that cannot be loaded; the reason is on stderr;
* exit 3: the wheel is not installed (ours alone);
* a signal while the model loads ends the process at once (until our line "listening on" is out);
* afterwards the first SIGTERM or SIGINT ends it with status 0 as soon as nothing is being generated, a second one
  with status 1 at once.

One difference: llama-server stops generating on the first signal and then waits for its clients to hang up, we let
running generations finish. The wheel's destructor would do as llama-server does, but it keeps the interpreter lock
while it waits (seen with 2026.10.11549), so that a second signal could never be handled. Hence no destructor runs:
nothing needs flushing, and the operating system frees memory and devices.

Imports are few on purpose: the time from start to first answer is the price of every swap.
"""

import os
import select
import signal
import sys
from types import ModuleType
from typing import Any, NoReturn

from juggler.llama_server.options import Parsed, UsageError, parse, usage

DEFAULT_PORT = 8080
_POLL_S = 1.5
"""Between two looks at the slots. The server notices that a client hung up when nothing happened for a second
(seen with 2026.10.11549), and each look is something that happens: looking more often would keep it generating."""
_ENUMS = {
    "cache_type_k": "ggml_type",
    "cache_type_v": "ggml_type",
    "flash_attn_type": "llama_flash_attn_type",
    "load_mode": "llama_load_mode",
    "rope_scaling_type": "llama_rope_scaling_type",
    "split_mode": "llama_split_mode",
    "pooling_type": "llama_pooling_type",
    "reasoning_format": "common_reasoning_format",
    "numa": "ggml_numa_strategy",
}


def main() -> None:
    """Run the server until a signal; never returns normally."""
    try:
        parsed = parse(sys.argv[1:], os.environ)
    except UsageError as error:
        _end(1, str(error))
    if "@help" in parsed.values:
        sys.stdout.write(usage() + "\n")
        _end(0)
    for warning in parsed.warnings:
        sys.stderr.write(warning + "\n")
    # Until the server stands, a signal shall end the process although the wheel does not return to Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    engine = _load_engine()
    if "@version" in parsed.values:
        _end(0, _version(engine))
    if not parsed.values.get("model.path"):
        _end(1, "error: --model is required")
    try:
        parameters = _parameters(engine, parsed)
    except (AttributeError, TypeError, ValueError, AssertionError) as error:
        _end(1, f"error: {error}")
    server = _open(engine, parameters)
    _Shutdown(server, parameters).wait()


def _load_engine() -> ModuleType:
    try:
        import xllamacpp
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) and error.name == "xllamacpp" else f" ({error})"
        _end(
            3,
            f"error: juggler-llama-server needs the llama.cpp engine: pip install 'model-juggler[engine]'{reason}",
        )
    engine: ModuleType = xllamacpp
    return engine


def _version(engine: ModuleType) -> str:
    wheel = str(engine.__version__)
    build = wheel.rsplit(".", 1)[-1]
    info = engine.BUILD_INFO
    return f"version: {build} (xllamacpp {wheel})\nbuilt with {info['compiler']} for {info['build_target']}"


def _parameters(engine: ModuleType, parsed: Parsed) -> Any:
    """``CommonParams`` of the wheel, with llama-server's defaults where the structure's own differ."""
    wanted = {"port": DEFAULT_PORT, "n_parallel": -1, **parsed.values}
    parameters = engine.CommonParams()
    for target, value in wanted.items():
        if target.startswith("@"):
            continue
        if target in _ENUMS:
            value = getattr(getattr(engine, _ENUMS[target]), value)
        holder, name = parameters, target
        if "." in target:
            first, name = target.split(".")
            holder = getattr(parameters, first)
        setattr(holder, name, value)
    if "@alias" in wanted:
        parameters.model_alias = set(wanted["@alias"])
    if "@timeout" in wanted:
        parameters.timeout_read = parameters.timeout_write = wanted["@timeout"]
    if "@reranking" in wanted:
        parameters.embedding = True
        parameters.pooling_type = engine.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if "@rope_scale" in wanted:
        parameters.rope_freq_scale = 1.0 / wanted["@rope_scale"] if wanted["@rope_scale"] else 0.0
    if "@tensor_split" in wanted:
        split = list(parameters.tensor_split)
        if len(wanted["@tensor_split"]) > len(split):
            raise ValueError(f"--tensor-split: at most {len(split)} devices")
        parameters.tensor_split = [*wanted["@tensor_split"], *split[len(wanted["@tensor_split"]) :]]
    if "@lora" in wanted:
        adapters = []
        for path, scale in wanted["@lora"]:
            adapter = engine.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = path, scale
            adapters.append(adapter)
        parameters.lora_adapters = adapters
    return parameters


def _open(engine: ModuleType, parameters: Any) -> Any:
    """The running server; blocks until the model is loaded (the port answers 503 meanwhile)."""
    try:
        return engine.Server(parameters)
    except Exception as error:
        _end(1, f"error: {error}")


class _Shutdown:
    """Waits for signals, and for running generations between the first signal and the end."""

    def __init__(self, server: Any, parameters: Any) -> None:
        self._server = server
        self._parameters = parameters

    def wait(self) -> None:
        """Never returns: ends the process."""
        # The server's own threads do not block signals, so any thread may be the one to catch one. The handler in C
        # writes to this pipe from wherever it runs; waiting in the main thread by other means could sleep through it.
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        sys.stderr.write(f"juggler-llama-server: listening on {self._server.listening_address}\n")
        sys.stderr.flush()
        os.read(readable, 1)
        while self._generating():
            if select.select([readable], [], [], _POLL_S)[0]:
                _end(1)
        _end(0)

    def _generating(self) -> bool:
        """Whether a slot works. Without means to know, False: the operator asked for the end."""
        if self._parameters.endpoint_metrics:
            text = str(self._server.handle_metrics())
            return any(
                float(line.split()[1]) > 0
                for line in text.splitlines()
                if line.startswith(("llamacpp:requests_processing ", "llamacpp:requests_deferred "))
            )
        if not self._parameters.endpoint_slots:
            return False
        try:
            # A look at the slots would wake a sleeping server, and load the model once more just to end.
            if self._parameters.sleep_idle_seconds > 0 and self._get("/props").get("is_sleeping"):
                return False
            return any(slot.get("is_processing") for slot in self._get("/slots"))
        except (OSError, ValueError, AttributeError):
            return False

    def _get(self, path: str) -> Any:
        # By hand, because importing http.client would take as long as everything else about an idle shutdown. An
        # HTTP/1.0 request is answered without chunks and with the connection closed.
        import json
        import socket

        host, _, port = str(self._server.listening_address).partition("://")[2].rpartition(":")
        host = host.strip("[]")
        keys = self._parameters.api_keys
        request = f"GET {self._parameters.api_prefix}{path} HTTP/1.0\r\n"
        request += f"Authorization: Bearer {keys[0]}\r\n\r\n" if keys else "\r\n"
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, int(port)), timeout=1) as connection:
            connection.sendall(request.encode())
            answer = b""
            while data := connection.recv(65536):
                answer += data
        return json.loads(answer.partition(b"\r\n\r\n")[2])


def _end(status: int, message: str = "") -> NoReturn:
    """Leave without destructors; see the module's docstring."""
    if message:
        sys.stderr.write(message.rstrip("\n") + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
