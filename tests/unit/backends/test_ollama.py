"""Type ``ollama``: plan, probes, unloading, hints and traffic, without a server."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from juggler.backends.base import Address, LaunchPlan, ProbeResult, Response, StopStep
from juggler.backends.ollama import OllamaBackend
from juggler.backends.ollama_models import ORDER_AGAIN_S, QUIET_S, SETTLE_S, loaded_models
from juggler.errors import StartFailed
from juggler.routing.traffic import TrafficClass
from juggler.testing.virtual_time import run_virtual
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings

ADDRESS = Address("127.0.0.1", 9000)
PS, GENERATE = "GET /api/ps", "POST /api/generate"
KOBOLDCPP = {"result": "KoboldCpp", "version": "1.116.1"}


@pytest.fixture
def binary(tmp_path: Path) -> str:
    file = tmp_path / "ollama"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def backend_for(
    *parameters: str,
    binary: str | None = None,
    attach_to: str | None = None,
    env: dict[str, str] | None = None,
    unloading: bool = True,
    stop_signal: str | None = None,
) -> OllamaBackend:
    return OllamaBackend(
        settings(
            "ollama",
            *parameters,
            binary=binary,
            attach_to=attach_to,
            env=env,
            model_unloading=unloading,
            stop_signal=stop_signal,
        )
    )


def planned(binary: str, *parameters: str, env: dict[str, str] | None = None, **environ: str) -> LaunchPlan:
    return backend_for(*parameters, binary=binary, env=env).plan(ADDRESS, environ)


# -------------------------------------------------------------------- start


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ("serve",)),
        (("serve",), ("serve",)),
        (("start",), ("start",)),
        (("wrapped.py", "serve"), ("wrapped.py", "serve")),
        (("--verbose",), ("serve", "--verbose")),
    ],
)
def test_serve_is_added_where_it_is_missing(binary: str, given: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """The operator may write the command or leave it out; nothing else is changed."""
    assert planned(binary, *given).argv == (binary, *expected)


def test_address_goes_into_a_full_copy_of_the_environment(binary: str) -> None:
    """OLLAMA_HOST is ours, whoever set it; all else passes: HOME holds the key and the models."""
    plan = planned(binary, env={"OLLAMA_HOST": "0.0.0.0:1"}, OLLAMA_HOST="h", HOME="/h", CUDA_VISIBLE_DEVICES="1")
    assert plan.env == {
        "OLLAMA_HOST": "127.0.0.1:9000",
        "HOME": "/h",
        "CUDA_VISIBLE_DEVICES": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NOPRUNE": "1",
    }
    assert backend_for(binary=binary).plan(Address("::1", 9000), {}).env["OLLAMA_HOST"] == "[::1]:9000"


def test_own_defaults_give_way_to_the_operators(binary: str) -> None:
    """Set in `env` or in the juggler's environment, they stay; empty means ollama's own default there."""
    plan = planned(binary, env={"OLLAMA_KEEP_ALIVE": "10m"}, OLLAMA_NOPRUNE="", OLLAMA_KEEP_ALIVE="1h")
    assert (plan.env["OLLAMA_KEEP_ALIVE"], plan.env["OLLAMA_NOPRUNE"]) == ("10m", "")


def test_one_polite_signal_and_all_the_time(binary: str) -> None:
    """It stops on the first signal; more of them change nothing. The operator may name another one."""
    assert planned(binary).stop_ladder == (StopStep("SIGTERM", 10.0),)
    other = backend_for(binary=binary, stop_signal="SIGINT").plan(ADDRESS, {})
    assert other.stop_ladder == (StopStep("SIGINT", 10.0),)


def test_missing_program(tmp_path: Path) -> None:
    """The default program is looked up on PATH, and its absence is explained."""
    with pytest.raises(StartFailed, match="ollama"):
        backend_for().plan(ADDRESS, {"PATH": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("env", "attach_to", "inherited", "expected"),
    [
        ({}, None, None, 4),
        ({"OLLAMA_NUM_PARALLEL": "2"}, None, None, 2),
        ({"OLLAMA_NUM_PARALLEL": ' "8" '}, None, "3", 8),
        ({"OLLAMA_NUM_PARALLEL": "0"}, None, None, 4),
        ({"OLLAMA_NUM_PARALLEL": "-1"}, None, None, 4),
        ({"OLLAMA_NUM_PARALLEL": "many"}, None, None, 4),
        ({}, None, "3", 3),
        ({}, "http://127.0.0.1:11434", "3", 4),
    ],
)
def test_concurrency(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], attach_to: str | None, inherited: str | None, expected: int
) -> None:
    """As many as ollama is told to run at a time; what we inherit says nothing about somebody else's server."""
    monkeypatch.delenv("OLLAMA_NUM_PARALLEL", raising=False)
    if inherited is not None:
        monkeypatch.setenv("OLLAMA_NUM_PARALLEL", inherited)
    assert backend_for(env=env, attach_to=attach_to).default_concurrency == expected


def test_capabilities_follow_the_settings() -> None:
    """Loads are lazy, lists are answered while unloaded; without unloading only a stop frees the memory."""
    one = backend_for(binary="/x", attach_to="http://127.0.0.1:1").capabilities
    assert (one.can_start, one.can_attach, one.unload, one.reload) == (True, True, "async", "lazy")
    assert one.answers_when_unloaded
    assert not one.work_outlives_request
    assert not backend_for(attach_to="http://127.0.0.1:1").capabilities.can_start
    other = backend_for(unloading=False).capabilities
    assert (other.unload, other.reload, other.answers_when_unloaded) == ("none", "start", False)


# -------------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(200, {"version": "0.33.0"}), ProbeResult.READY),
        (answer(200, {"hello": 1}), ProbeResult.WRONG_SERVER),
        (answer(200, {"version": 7}), ProbeResult.WRONG_SERVER),
        (answer(200, [1]), ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), ProbeResult.WRONG_SERVER),
        (answer(404, text="404 page not found"), ProbeResult.WRONG_SERVER),
        (answer(401, text=""), ProbeResult.NOT_YET),
        (answer(403, text=""), ProbeResult.NOT_YET),
        (answer(502, text="bad gateway"), ProbeResult.NOT_YET),
        (ConnectionRefusedError(), ProbeResult.NOT_YET),
        (TimeoutError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """Ready is its version; somebody else is recognised, a gate in front of it is not mistaken for somebody else."""
    caller = FakeCaller({"GET /api/version": response})
    assert await backend_for().probe(caller) is expected
    assert caller.calls == ["GET /api/version"]


@pytest.mark.parametrize(
    ("other", "expected", "identity"),
    [
        (answer(200, KOBOLDCPP), ProbeResult.WRONG_SERVER, None),
        (answer(404, text="404 page not found"), ProbeResult.READY, "ollama 0.7.0"),
        (answer(200, ["KoboldCpp"]), ProbeResult.READY, "ollama 0.7.0"),
    ],
)
async def test_koboldcpp_is_not_taken_for_ollama(other: Answer, expected: ProbeResult, identity: str | None) -> None:
    """It answers ollama's routes as version 0.7.0; a real 0.7.0 does not know its question."""
    caller = FakeCaller({"GET /api/version": answer(200, {"version": "0.7.0"}), "GET /api/extra/version": other})
    assert await backend_for().probe(caller) is expected
    assert await backend_for().identify(caller) == identity


async def test_identify() -> None:
    """Program and version; None for others, and the caller's errors pass."""
    assert await backend_for().identify(FakeCaller({"GET /api/version": answer(200, {"version": "0.33.0"})})) == (
        "ollama 0.33.0"
    )
    assert await backend_for().identify(FakeCaller({"GET /api/version": answer(404, text="")})) is None
    with pytest.raises(ConnectionRefusedError):
        await backend_for().identify(FakeCaller({}))


async def test_nobody_is_asked_whether_it_is_busy() -> None:
    """No route tells; our own count is enough."""
    nobody = FakeCaller({})
    assert not await backend_for().busy(nobody)
    await backend_for().wake(nobody)
    assert nobody.calls == []


# -------------------------------------------------------------------- what it holds


def listed(*entries: tuple[str, int, int]) -> Response:
    return answer(200, {"models": [{"name": n, "model": n, "size": s, "size_vram": v} for n, s, v in entries]})


@pytest.mark.parametrize(
    "response",
    [
        answer(500, {"error": "x"}),
        answer(200, text="<html>"),
        answer(200, [1]),
        answer(200, {}),
        answer(200, {"models": "none"}),
        answer(200, {"models": [{"size": 1}]}),
        answer(200, {"models": ["a"]}),
    ],
)
async def test_nonsense_is_not_an_empty_list(response: Response) -> None:
    """An answer that cannot be read never counts as "nothing is loaded"."""
    with pytest.raises(OSError, match="/api/ps"):
        await loaded_models(FakeCaller({PS: response}))


async def test_entries_are_read_tolerantly() -> None:
    """Unknown keys pass, missing sizes are 0, no list is an empty one."""
    document = {"models": [{"model": "a", "size": 9, "size_vram": 4, "new": {}}, {"name": "b"}]}
    models = await loaded_models(FakeCaller({PS: answer(200, document)}))
    assert [(m.name, m.size_bytes, m.vram_bytes, m.spilled) for m in models] == [("a", 9, 4, True), ("b", 0, 0, False)]
    assert await loaded_models(FakeCaller({PS: answer(200, {"models": None})})) == []


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([[("a", 8, 8)]], []),
        ([[("a", 8, 4)], [("a", 8, 2)]], [("a", logging.WARNING)]),
        ([[("a", 8, 0)]], [("a", logging.INFO)]),
        ([[("a", 8, 8)], [("b", 8, 0), ("c", 8, 8)]], [("b", logging.WARNING)]),
    ],
)
async def test_models_beside_the_gpu_are_told_once(
    runs: list[list[tuple[str, int, int]]], expected: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Ollama says nothing when the memory is short; a warning only where a GPU has been seen in use."""
    caplog.set_level(logging.INFO, "juggler.backends.ollama")
    backend = backend_for()
    for models in runs:
        await backend.before_stop(FakeCaller({PS: listed(*models)}))
    assert [(record.getMessage().split()[1], record.levelno) for record in caplog.records] == expected


async def test_a_silent_server_can_be_stopped() -> None:
    """The last look never stands in the way."""
    for failure in (ConnectionResetError(), TimeoutError(), answer(200, text="?")):
        await backend_for().before_stop(FakeCaller({PS: failure}))


# -------------------------------------------------------------------- unload, in virtual time


class Holding(FakeCaller):
    """A server that gives each model up a while after the order; refuses or ignores as told."""

    def __init__(self, *models: str, vram: int = 5, takes_s: float = 0.3) -> None:
        super().__init__({PS: self._list, GENERATE: self._order})
        self.models = list(models)
        self.habits: dict[str, Answer] = {}
        self.ordered: list[str] = []
        self._vram, self._takes_s = vram, takes_s

    def _list(self, _body: bytes | None) -> Response:
        return listed(*((name, 5, self._vram) for name in self.models))

    def _order(self, body: bytes | None) -> Response:
        assert body is not None
        order = json.loads(body)
        assert set(order) == {"model", "keep_alive"}, "a prompt would make it a request"
        assert order["keep_alive"] == 0
        name = order["model"]
        self.ordered.append(name)
        habit = self.habits.get(name)
        if isinstance(habit, BaseException):
            raise habit
        if isinstance(habit, Response):
            return habit
        asyncio.get_running_loop().call_later(self._takes_s, self.give_up, name)
        return answer(200, {"model": name, "done": True, "done_reason": "unload"})

    def give_up(self, name: str) -> None:
        if name in self.models:
            self.models.remove(name)


def timed(scenario: Callable[[], Coroutine[None, None, bool]]) -> tuple[bool, float]:
    """What it returned, and after how many seconds."""

    async def run() -> tuple[bool, float]:
        began = asyncio.get_running_loop().time()
        return await scenario(), asyncio.get_running_loop().time() - began

    return run_virtual(run())


def test_every_model_is_ordered_out_and_the_memory_waited_for() -> None:
    """An empty list is not yet free memory: ollama itself watches it come back for up to 1.5 s."""
    server = Holding("a", "b")
    verified, took_s = timed(lambda: backend_for().unload(server))
    assert verified
    assert sorted(server.ordered) == ["a", "b"]
    assert SETTLE_S <= took_s <= SETTLE_S + 1


def test_without_gpu_memory_it_is_quick() -> None:
    """Nothing on a device: only a moment, for a load that nobody waits for any more."""
    for server in (Holding("a", vram=0), Holding()):
        verified, took_s = timed(lambda server=server: backend_for().unload(server))  # type: ignore[misc]
        assert verified
        assert QUIET_S <= took_s <= QUIET_S + 1


@pytest.mark.parametrize(
    "refusal",
    [answer(404, {"error": "model 'a' not found"}), answer(500, {"error": "no"}), ConnectionResetError("reset")],
)
def test_one_refusal_does_not_keep_the_others(refusal: Answer, caplog: pytest.LogCaptureFixture) -> None:
    """Prototype bug 31: the rest is unloaded all the same; the failure is told, and early."""
    server = Holding("a", "b", "c")
    server.habits["a"] = refusal
    verified, took_s = timed(lambda: backend_for().unload(server))
    assert not verified
    assert server.models == ["a"]
    assert took_s < 2 * ORDER_AGAIN_S
    assert "still holds a" in caplog.text
    assert ("any more" in caplog.text) is (isinstance(refusal, Response) and refusal.status == 404)


def test_a_model_that_has_gone_meanwhile_is_unloaded() -> None:
    """404, and not listed any more: that is as good as an order that was carried out."""
    server = Holding("a", "b")

    def gone(_body: bytes | None) -> Response:
        server.models.clear()
        return answer(404, {"error": "model 'a' not found"})

    server.answers[GENERATE] = gone
    assert timed(lambda: backend_for().unload(server))[0]


def test_models_that_appear_meanwhile_go_as_well() -> None:
    """A load that was not listed yet when we looked first."""
    server = Holding("a")

    async def scenario() -> bool:
        asyncio.get_running_loop().call_later(1.0, server.models.append, "late")
        return await backend_for().unload(server)

    verified, took_s = timed(scenario)
    assert verified
    assert server.ordered == ["a", "late"]
    assert took_s >= 1.0 + SETTLE_S


def test_an_order_that_was_taken_back_is_given_again() -> None:
    """A request with a ``keep_alive`` of its own revives a model that was ordered out."""
    server = Holding("a")
    server.habits["a"] = answer(200, {"done": True})  # and nothing happens

    async def scenario() -> bool:
        asyncio.get_running_loop().call_later(1.0, server.habits.clear)
        return await backend_for().unload(server)

    assert timed(scenario)[0]
    assert server.ordered == ["a", "a"]


def test_an_order_that_waits_is_no_refusal() -> None:
    """It waits for a load to end, in versions that list those; the model goes when it has been loaded."""
    server = Holding("a")
    server.habits["a"] = TimeoutError()

    async def scenario() -> bool:
        asyncio.get_running_loop().call_later(12, server.give_up, "a")
        return await backend_for().unload(server)

    assert timed(scenario)[0]


def test_refusals_count_in_a_row() -> None:
    """A server that took an order in between is not given up."""
    server = Holding("a")
    refusal, taken = answer(503, {"error": "busy"}), answer(200, {"done": True})

    async def scenario() -> bool:
        loop = asyncio.get_running_loop()
        server.habits["a"] = refusal
        loop.call_later(ORDER_AGAIN_S / 2, server.habits.update, {"a": taken})
        loop.call_later(ORDER_AGAIN_S * 3 / 2, server.habits.update, {"a": refusal})
        loop.call_later(ORDER_AGAIN_S * 5 / 2, server.give_up, "a")
        return await backend_for().unload(server)

    assert timed(scenario)[0]
    assert len(server.ordered) == 3


@pytest.mark.parametrize(("attached", "least_s", "most_s"), [(False, 20, 30), (True, 45, 59)])
def test_what_does_not_go_is_given_up(
    attached: bool, least_s: float, most_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Below the supervisor's minute; earlier where a stop can follow."""
    server = Holding("a")
    server.habits["a"] = answer(200, {"done": True})
    backend = backend_for()
    backend.attached = attached
    verified, took_s = timed(lambda: backend.unload(server))
    assert not verified
    assert least_s <= took_s <= most_s
    assert "still holds a: requests of others may be running" in caplog.text


@pytest.mark.parametrize("where", [PS, GENERATE])
def test_silence_is_no_consent(where: str) -> None:
    """A server that does not answer in time has not freed anything."""
    server = Holding("a")
    server.answers[where] = TimeoutError()
    assert not timed(lambda: backend_for().unload(server))[0]


def test_a_dead_server_is_told_at_once() -> None:
    """Refused connections are the supervisor's business."""
    with pytest.raises(ConnectionRefusedError):
        timed(lambda: backend_for().unload(FakeCaller({})))


def test_unloading_switched_off() -> None:
    """With ``model_unloading`` false nothing is asked of it."""
    server = Holding("a")
    assert not timed(lambda: backend_for(unloading=False).unload(server))[0]
    assert server.calls == []


# -------------------------------------------------------------------- hints, traffic


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("Error: $HOME is not defined", "HOME in `env`"),
        ("Error: unknown flag: --port", "(--port)"),
        ("Error: unknown shorthand flag: 'p' in -p", "`env`"),
        ('Error: unknown command "llama3" for "ollama serve"', "`parameters` empty"),
        ("Error: accepts 0 arg(s), received 2", "`parameters` empty"),
        ("Error: listen tcp 127.0.0.1:9000: bind: address already in use", "another start"),
        ("Error: mkdir /models/blobs: permission denied", "may not use /models/blobs"),
        ("Error: open /root/.ollama/id_ed25519: permission denied", "may not use /root/.ollama/id_ed25519"),
        ("Error: write /models/x: no space left on device", "disk"),
        ("llama-server binary not found (checked: /usr/lib/ollama/llama-server). Run 'cmake", "lib/ollama"),
        ("cudaMalloc failed: out of memory", "memory"),
    ],
)
def test_hints(line: str, part: str) -> None:
    """Known refusals each get a sentence that says what to do."""
    assert part in (backend_for().hint_for(['time=1 level=INFO msg="server config"', line]) or "")


def test_no_hint_for_ordinary_lines() -> None:
    """A clean log gives none."""
    assert backend_for().hint_for(['level=INFO msg="Listening on 127.0.0.1:1 (version 0.33.0)"']) is None


WORK_PATHS = (
    *("/api/generate", "/api/chat", "/api/embed", "/api/embeddings"),
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
    *("/v1/audio/transcriptions", "/v2/unheard-of"),
)
LIGHT = (
    *("GET /", "HEAD /", "GET /api/version", "HEAD /api/version", "GET /api/tags", "HEAD /api/tags", "GET /api/ps"),
    *("GET /api/status", "GET /v1/models", "GET /v1/models/x", "HEAD /api/blobs/sha256:1", "OPTIONS /api/chat"),
    *("POST /api/show", "POST /api/pull", "POST /api/push", "POST /api/create", "POST /api/copy", "POST /api/me"),
    *("POST /api/blobs/sha256:1", "POST /api/signout", "POST /api/experimental/web_search", "DELETE /api/delete"),
)


@pytest.mark.parametrize("path", WORK_PATHS)
def test_inference_is_work(path: str) -> None:
    """Whatever may load a model, and whatever is unknown."""
    assert OllamaBackend.traffic.classify(b"POST", path.encode()) is TrafficClass.WORK


@pytest.mark.parametrize("line", LIGHT)
def test_everything_else_is_light(line: str) -> None:
    """Lists, downloads and deletions need no memory and start nothing."""
    method, path = line.encode().split()
    assert OllamaBackend.traffic.classify(method, path) is TrafficClass.LIGHT


@pytest.mark.parametrize("path", [b"/debug/pprof/", b"/debug/pprof/heap", b"/debug/vars"])
def test_profiles_are_not_shown(path: bytes) -> None:
    """They would come from the server's own memory."""
    for method in (b"GET", b"HEAD", b"POST"):
        assert OllamaBackend.traffic.classify(method, path) is TrafficClass.BLOCKED


def test_what_is_loaded_is_about_this_moment() -> None:
    """An old list of loaded models would be a lie; an old list of all models is not."""
    decide = OllamaBackend.traffic.decide
    assert decide(b"GET", b"/api/ps").volatile
    assert not decide(b"GET", b"/api/tags").volatile
    assert not decide(b"GET", b"/api/version").volatile


def test_doctor_can_ask_the_program() -> None:
    """Both end at once, without a server."""
    assert OllamaBackend.version_arguments == ("--version",)
    assert OllamaBackend.help_arguments == ("serve", "--help")


def test_what_it_says_before_its_first_start() -> None:
    """n8n tests a connection by the root, Open WebUI by the version; both are light, so they may be answered."""
    traffic = OllamaBackend.traffic
    assert traffic.placeholders[b"/"].body == b"Ollama is running"
    assert json.loads(traffic.placeholders[b"/api/version"].body)["version"]
    for path in traffic.placeholders:
        assert traffic.decide(b"GET", path)[:2] == (TrafficClass.LIGHT, False)
