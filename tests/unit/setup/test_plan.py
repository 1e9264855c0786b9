"""What the configuration says, given what was found; every plan is read back by our own reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.config.effect import not_in_effect
from juggler.config.load import LoadedConfig, load_text
from juggler.config.resolve import resolve
from juggler.setup.document import Format, render
from juggler.setup.draft import make_document
from juggler.setup.facts import Facts
from juggler.setup.language import MODELS_MAX
from juggler.setup.models import ModelSearch
from juggler.setup.plan import make_plan
from juggler.setup.programs import Program
from juggler.survey.containers import Containers
from tests.unit.setup.make import KOBOLDCPP, LLAMA_SERVER, card, facts, model, seen

WEBUI = Program("sdwebui", "/home/u/forge/webui.sh", "in /home/u/forge", folder=Path("/home/u/forge"))
OTHER_WEBUI = Program("sdwebui", "/home/u/a1111/webui.sh", "in /home/u/a1111", folder=Path("/home/u/a1111"))
COMFYUI = Program(
    "comfyui", "/home/u/ComfyUI/venv/bin/python", "in /home/u/ComfyUI", ("main.py",), Path("/home/u/ComfyUI")
)
OLLAMA = Program("ollama", "/usr/bin/ollama", "in PATH")
VLLM = Program("vllm", "/usr/bin/vllm", "in PATH")


def written(found: Facts) -> tuple[LoadedConfig, str]:
    """The configuration as read back, in both forms alike, and its JSON text."""
    plan = make_plan(found)
    document = make_document(plan, found)
    forms: tuple[Format, ...] = ("json", "yaml")
    texts = {form: render(document, form) for form in forms}
    loaded = {form: load_text(texts[form], f"config.{form}", form) for form in forms}
    assert loaded["json"].config == loaded["yaml"].config
    assert loaded["json"].warnings == loaded["yaml"].warnings == ()
    return loaded["json"], texts["json"]


def config(found: Facts) -> dict[str, Any]:
    dumped: dict[str, Any] = json.loads(written(found)[0].config.model_dump_json(exclude_defaults=True))
    return dumped


def test_an_empty_machine() -> None:
    """The demo, so that ``serve`` works at once, and examples of everything else."""
    found = facts(programs=())
    loaded, text = written(found)
    assert list(loaded.config.backends) == ["demo"]
    assert [one.name for one in loaded.config.servers] == ["Demo"]
    assert loaded.config.servers[0].port == 8021
    assert loaded.config.servers[0].host == "localhost"
    assert not_in_effect(loaded) == []
    for kind in ("llamacpp", "koboldcpp", "sdwebui", "comfyui", "ollama", "vllm"):
        assert f'// "{kind}": {{' in text
    assert '// "name": "My model"' in text.replace("//     ", "// ")


def test_the_examples_for_an_empty_machine_work() -> None:
    """With their marks taken off, the reader takes them; the example stands above the endpoint that takes all."""
    _, text = written(facts(programs=()))
    lines = []
    for line in text.splitlines():
        bare = line.lstrip().removeprefix("// ")
        code = bare.lstrip()[:1] in ('"', "{", "}", "]", "-", "[") and line.lstrip().startswith("// ")
        lines.append(line.replace("// ", "", 1) if code else line)
    loaded = load_text("\n".join(lines))
    assert set(loaded.config.backends) == {"demo", "llamacpp", "koboldcpp", "sdwebui", "comfyui", "ollama", "vllm"}
    assert [one.name for one in loaded.config.servers[0].endpoints] == ["My model", "Demo"]
    assert loaded.config.warmup[0].endpoint == "Demo"
    assert loaded.warnings == ()


def test_models_on_one_gpu() -> None:
    """The largest takes what no prefix takes; each has its footprint; all layers go to the GPU."""
    found = facts(model("Qwen3-8B-Q4_K_M", 5), model("gemma-3-27b_it Q5", 18), model("tiny", 0.5), gpus=(card(),))
    loaded, text = written(found)
    (server,) = loaded.config.servers
    assert [(one.name, one.path_prefix, one.strip_prefix) for one in server.endpoints] == [
        ("Qwen3-8B-Q4_K_M", "/qwen3-8b-q4-k-m", True),
        ("tiny", "/tiny", True),
        ("gemma-3-27b_it Q5", "", False),
    ]
    assert server.endpoints[0].parameters == ["-m", "/models/Qwen3-8B-Q4_K_M.gguf", "-c", "32768"]
    backend = loaded.config.backends["llamacpp"]
    assert (backend.binary, backend.default_parameters) == ("/usr/bin/llama-server", ["-ngl", "99"])
    resolved = resolve(loaded)
    assert resolved.pools is not None
    assert list(resolved.pools) == ["gpu0"]
    assert all(instance.memory is not None for instance in resolved.instances)
    for reason in ("in PATH: version: 7777", "18.0 GiB of weights", "is a guess", "-ngl 99: all layers", "24.0 GiB"):
        assert reason in text


def test_a_model_that_is_too_large_for_the_gpu() -> None:
    """Its layers are counted, its memory is declared on both sides, and that is said."""
    loaded, text = written(facts(model("big", 40), model("monster", 200), gpus=(card(),)))
    (endpoint,) = loaded.config.servers[0].endpoints
    assert endpoint.parameters[-2] == "-ngl"
    assert 0 < int(endpoint.parameters[-1]) < 33
    assert isinstance(endpoint.memory, dict)
    assert set(endpoint.memory) == {"gpu0", "ram"}
    assert "Too large for the GPU" in text
    assert "monster" in make_plan(facts(model("monster", 200), gpus=(card(),))).remarks[0]


def test_projectors_and_embeddings() -> None:
    """Given to the program with the options that it takes."""
    seeing = replace(model("seeing", 8), projector=Path("/models/mmproj.gguf"), projector_bytes=10**9)
    vectors = model("vectors", 0.3, architecture="bert", context_length=512)
    loaded, text = written(facts(seeing, vectors, gpus=(card(),)))
    assert [one.parameters for one in loaded.config.servers[0].endpoints] == [
        ["-m", "/models/vectors.gguf", "-c", "512", "--embedding"],
        ["-m", "/models/seeing.gguf", "--mmproj", "/models/mmproj.gguf", "-c", "32768"],
    ]
    assert "mmproj.gguf lies beside it" in text


def test_embeddings_alone_take_no_catch_all() -> None:
    """A chat client must not end up at a model that makes vectors."""
    endpoints = config(facts(model("v", 0.3, architecture="bert")))["servers"][0]["endpoints"]
    assert [one["path_prefix"] for one in endpoints] == ["/v"]


def test_two_gpus() -> None:
    """Each model sees one; the variables say which."""
    endpoints = config(facts(model("a"), model("b"), gpus=(card(0), card(1))))["servers"][0]["endpoints"]
    assert sorted(one["env"]["CUDA_VISIBLE_DEVICES"] for one in endpoints) == ["0", "1"]
    assert sorted(name for one in endpoints for name in one["memory"]) == ["gpu0", "gpu1"]


def test_koboldcpp_without_llama_server() -> None:
    """It takes GGUF files too, with its own options, and the configurations it saved itself."""
    search = ModelSearch(models=[model("m")], kcpps=[Path("/models/Qwen 3.kcpps")])
    loaded, _ = written(facts(programs=(KOBOLDCPP,), gpus=(card(),), search=search))
    backend = loaded.config.backends["koboldcpp"]
    assert backend.default_parameters == ["--gpulayers", "99", "--usecublas"]
    assert [(one.path_prefix, one.parameters[:2]) for one in loaded.config.servers[0].endpoints] == [
        ("/qwen-3", ["--config", "/models/Qwen 3.kcpps"]),
        ("", ["--model", "/models/m.gguf"]),
    ]


def test_koboldcpp_beside_llama_server() -> None:
    """Its saved configurations are its own, models go to llama-server; without either it is an example."""
    search = ModelSearch(models=[model("m")], kcpps=[Path("/models/q.kcpps")])
    both = config(facts(programs=(LLAMA_SERVER, KOBOLDCPP), search=search))
    assert set(both["backends"]) == {"llamacpp", "koboldcpp"}
    assert [one["backend"] for one in both["servers"][0]["endpoints"]] == ["koboldcpp", "llamacpp"]
    loaded, text = written(facts(model("m"), programs=(LLAMA_SERVER, KOBOLDCPP)))
    assert list(loaded.config.backends) == ["llamacpp"]
    assert f'// "koboldcpp": {{"binary": "{KOBOLDCPP.path}"}}' in text
    lone = make_plan(facts(programs=(), search=ModelSearch(kcpps=[Path("/q.kcpps")])))
    assert "koboldcpp itself was not found" in lone.remarks[0]


def test_web_uis_have_their_own_ports() -> None:
    """Started where nothing runs; two installations are two backends."""
    loaded, _ = written(facts(programs=(WEBUI, OTHER_WEBUI, COMFYUI, OLLAMA)))
    assert [(one.name, one.port) for one in loaded.config.servers] == [
        ("Stable Diffusion (forge)", 8021),
        ("Stable Diffusion (a1111)", 8022),
        ("ComfyUI", 8023),
        ("Ollama", 8024),
    ]
    backends = loaded.config.backends
    assert backends["sdwebui-2"].type == "sdwebui"
    assert backends["sdwebui-2"].binary == OTHER_WEBUI.path
    comfyui = backends["comfyui"]
    assert (comfyui.binary, comfyui.default_parameters, comfyui.cwd) == (COMFYUI.path, ["main.py"], "/home/u/ComfyUI")


def test_two_checkouts_of_one_name() -> None:
    """Beside each other in different folders: their servers need names of their own, and long ones fit."""
    folders = [Path("/home/u/ComfyUI"), Path("/home/u/AI/ComfyUI"), Path("/home/u") / ("x" * 250)]
    found = facts(programs=tuple(replace(COMFYUI, folder=folder) for folder in folders))
    names = [server["name"] for server in config(found)["servers"]]
    assert names[:2] == ["ComfyUI (ComfyUI)", "ComfyUI (ComfyUI) 2"]
    assert len(names) == 3


def test_servers_that_run() -> None:
    """Attached to; while a web UI does not run, the one installation there is can be started instead."""
    running = (seen(7861, "sdwebui"), seen(8188, "comfyui"), seen(11434, "ollama", "ollama 0.33"), seen(8000, "vllm"))
    loaded, text = written(facts(programs=(WEBUI, COMFYUI, OLLAMA, VLLM), servers=running))
    found = {name: (one.attach_to, one.binary) for name, one in loaded.config.backends.items()}
    assert found == {
        "sdwebui": ("http://127.0.0.1:7861", WEBUI.path),
        "comfyui": ("http://127.0.0.1:8188", COMFYUI.path),
        "ollama": ("http://127.0.0.1:11434", None),
        "vllm": ("http://127.0.0.1:8000", None),
    }
    assert "ollama 0.33 answers on port 11434" in text
    two = config(facts(programs=(WEBUI, OTHER_WEBUI), servers=running[:1]))
    assert two["backends"] == {"sdwebui": {"attach_to": "http://127.0.0.1:7861"}}


def test_servers_that_are_no_help() -> None:
    """Strangers, and programs whose memory nobody can free, are remarked upon, never attached to."""
    running = (seen(8188, None), seen(5001, "koboldcpp", "KoboldCpp 1.116"), seen(8080, "llamacpp"))
    plan = make_plan(facts(programs=(), servers=running))
    assert [backend.name for backend in plan.backends] == ["demo"]
    assert any("port 8188 is taken; what answers there does not say that it is comfyui" in one for one in plan.remarks)
    assert any("KoboldCpp 1.116 runs on port 5001" in one for one in plan.remarks)
    assert any("runs on port 8080" in one for one in plan.remarks)


def test_vllm_needs_a_model() -> None:
    """An installation alone makes no endpoint, and the reason is told; its path stands in the example."""
    found = facts(programs=(VLLM,))
    assert any("vLLM" in one for one in make_plan(found).remarks)
    assert f'// "vllm": {{"binary": "{VLLM.path}"}}' in written(found)[1]


def test_a_build_for_the_processor_alone() -> None:
    """Beside a GPU its models take main memory, and no layers are asked for."""
    program = replace(LLAMA_SERVER, cpu_only=True)
    loaded, _ = written(facts(model("m"), programs=(program,), gpus=(card(),)))
    assert loaded.config.backends["llamacpp"].default_parameters == []
    memory = loaded.config.servers[0].endpoints[0].memory
    assert isinstance(memory, dict)
    assert list(memory) == ["ram"]


def test_without_a_gpu() -> None:
    """Nothing is declared: the machine is asked when it runs."""
    loaded, text = written(facts(model("m")))
    assert loaded.config.memory.pools == "auto"
    assert loaded.config.servers[0].endpoints[0].memory is None
    assert "models share main memory" in text


def test_many_models() -> None:
    """A dozen get an endpoint, the fast ones first; the others are named."""
    found = facts(*(model(f"m{number:02}", 1 + number) for number in range(30)), gpus=(card(),))
    plan = make_plan(found)
    endpoints = plan.servers[0].endpoints
    assert len(endpoints) == MODELS_MAX
    assert all("-ngl" not in endpoint.parameters for endpoint in endpoints)
    assert any("these have none: m" in remark for remark in plan.remarks)


def test_names_that_collide() -> None:
    """Two folders with files of one name, and names that make one prefix or one that belongs to the root."""
    one, two = model("m"), replace(model("m"), path=Path("/other/m.gguf"))
    endpoints = config(facts(one, two, model("M!", 7), model("v1", 6)))["servers"][0]["endpoints"]
    assert sorted(endpoint["name"] for endpoint in endpoints) == ["M!", "m", "m (2)", "v1"]
    assert sorted(endpoint.get("path_prefix", "") for endpoint in endpoints) == ["", "/m", "/m-2", "/model-v1"]


def test_ports_that_are_taken() -> None:
    """Others are used, and the control listener's is told."""
    found = facts(programs=(), ports=(9001, 9002), control_port=9000)
    loaded, text = written(found)
    assert loaded.config.servers[0].port == 9001
    assert resolve(loaded).control is not None
    assert '"control": {"port": 9000}' in text
    assert any("9000" in remark for remark in make_plan(found).remarks)


@pytest.mark.parametrize(
    ("containers", "words"),
    [
        (Containers(), None),
        (Containers(bridges=(("docker0", "172.17.0.1"),)), '"172.17.0.1" (them alone)'),
        (Containers(programs=("podman",)), '"0.0.0.0" (every network)'),
        (Containers(inside=True), "This is a container"),
    ],
)
def test_containers(containers: Containers, words: str | None) -> None:
    """A comment beside the host, where there may be clients in containers."""
    text = written(facts(programs=(), containers=containers))[1]
    assert ("ontainer" in text) == (words is not None)
    assert (words or "") in text


names = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable() and "/" not in text and text.strip())


@given(
    st.lists(st.tuples(names, st.floats(0.01, 120), st.booleans()), max_size=20),
    st.lists(st.integers(3, 80), max_size=3),
    st.lists(st.sampled_from([LLAMA_SERVER, KOBOLDCPP, WEBUI, OTHER_WEBUI, COMFYUI, OLLAMA, VLLM]), unique=True),
    st.lists(st.sampled_from(["sdwebui", "comfyui", "ollama", "vllm", "koboldcpp", "llamacpp", None]), unique=True),
    st.lists(names, max_size=3),
)
def test_any_machine_gets_a_configuration_without_mistakes(
    models: list[tuple[str, float, bool]],
    gpus: list[int],
    programs: list[Program],
    running: list[str | None],
    saved: list[str],
) -> None:
    """Whatever was found, and however it is called: no error and no warning, in both forms."""
    made = [model(name, size, architecture="bert" if vectors else "llama") for name, size, vectors in models]
    found = facts(
        gpus=tuple(card(number, gib) for number, gib in enumerate(gpus)),
        programs=tuple(programs),
        search=ModelSearch(models=made, kcpps=[Path(f"/m/{name}.kcpps") for name in saved]),
        servers=tuple(seen(5000 + number, kind) for number, kind in enumerate(running)),
    )
    loaded, _ = written(found)
    assert loaded.config.servers
    assert not [one for one in not_in_effect(loaded) if one.severity != "note"]
