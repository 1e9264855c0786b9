"""Which files a start will read, and what they will take, by the operator's own command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from juggler.backends.base import Address, Backend, BackendSettings
from juggler.backends.registry import create
from juggler.demo.models import write_model
from juggler.ids import InstanceId
from juggler.units import MIB


def backend(kind: str, *parameters: str, **more: Any) -> Backend:
    return create(BackendSettings(InstanceId("x"), endpoint_name="x", type=kind, parameters=parameters, **more))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.gguf", size_bytes=4 * MIB)


def names(found: tuple[Path, ...]) -> list[str]:
    return [path.name for path in found]


def test_llamacpp_names_everything_that_it_reads(tmp_path: Path, model: Path) -> None:
    for name in ("p.gguf", "d.gguf", "l1.gguf", "l2.gguf"):
        (tmp_path / name).write_bytes(b"x")
    found = backend(
        "llamacpp", "-m", str(model), "--mmproj", "p.gguf", "-md", "d.gguf", "--lora", "l1.gguf,l2.gguf",
        cwd=str(tmp_path),
    ).model_files()  # fmt: skip
    assert names(found) == ["m.gguf", "p.gguf", "d.gguf", "l1.gguf", "l2.gguf"]
    assert backend("llamacpp", "-m", str(tmp_path / "none.gguf")).model_files() == ()
    assert backend("llamacpp", "-hf", "owner/name").model_files() == ()
    assert names(backend("llamacpp", env={"LLAMA_ARG_MODEL": str(model)}).model_files()) == ["m.gguf"]


def test_all_parts_and_behind_links(tmp_path: Path) -> None:
    """As Hugging Face's cache has them: links into a folder of blobs."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number in (1, 2):
        (blobs / f"b{number}").write_bytes(b"x")
        (tmp_path / f"m-{number:05d}-of-00002.gguf").symlink_to(blobs / f"b{number}")
    found = backend("llamacpp", "-m", str(tmp_path / "m-00001-of-00002.gguf")).model_files()
    assert names(found) == ["b1", "b2"]


def test_llamacpp_options_change_the_estimate(model: Path) -> None:
    def gpu(*parameters: str, **more: Any) -> int:
        found = backend("llamacpp", "-m", str(model), *parameters, **more).memory_estimate()
        assert found is not None
        return found.gpu_bytes

    base = gpu("-c", "16384")
    assert gpu("-c", "65536") > base
    assert gpu("-c", "16384", "-ctk", "q8_0", "-ctv", "q8_0") < base
    assert gpu("-c", "16384", "-nkvo") < base
    assert gpu("-c", "16384", "-ngl", "0") < base
    assert gpu("-c", "16384", "--device", "none") == gpu("-c", "16384", "-ngl", "0")
    assert gpu("-c", "16384", "-ngl", "auto") == gpu("-c", "16384", "-ngl", "99") == base
    assert gpu("-c", "4096", "-c", "16384") == base, "the last one wins"
    assert gpu(env={"LLAMA_ARG_CTX_SIZE": "65536"}) == gpu("-c", "65536")


def test_llamacpp_knows_when_it_does_not_know(tmp_path: Path, model: Path) -> None:
    assert backend("llamacpp", "-m", str(tmp_path / "none.gguf")).memory_estimate() is None
    assert backend("llamacpp", "-hf", "owner/name").memory_estimate() is None
    assert backend("llamacpp", "-m", str(model), "-ot", "exps=CPU").memory_estimate() is None
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    assert backend("llamacpp", "-m", str(tmp_path / "junk.gguf")).memory_estimate() is None


@pytest.mark.parametrize("options", [("-dev", "CUDA1"), ("--main-gpu", "1"), ("-ts", "0,1")])
def test_llamacpp_that_is_told_which_gpu_to_use_sees_all_of_them(
    model: Path, options: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers count among all GPUs of the machine: with one of them alone ``--device CUDA1`` is an error."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    placed = {"A": "b", "CUDA_VISIBLE_DEVICES": "GPU-1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    address = Address("127.0.0.1", 1)
    one = backend("llamacpp", "-m", str(model), *options, binary=sys.executable, kv_cache_saving=False)
    assert one.memory_estimate() is None
    env = one.plan(address, placed).env
    assert (env.get("CUDA_VISIBLE_DEVICES"), env.get("CUDA_DEVICE_ORDER"), env["A"]) == ("2,3", None, "b")
    other = backend("llamacpp", "-m", str(model), binary=sys.executable, kv_cache_saving=False)
    assert placed.items() <= other.plan(address, placed).env.items()


def test_koboldcpp(tmp_path: Path, model: Path) -> None:
    line = backend(
        "koboldcpp", "--model", str(model), "--contextsize", "16384", "--gpulayers", "99", "--flashattention"
    )
    found = line.memory_estimate()
    assert found is not None
    settings = tmp_path / "s.kcpps"
    document = {"model_param": str(model), "contextsize": 16384, "gpulayers": 99, "flashattention": True}
    settings.write_text(json.dumps(document))
    for other in (
        backend("koboldcpp", "--config", str(settings)),
        backend("koboldcpp", str(settings)),
        backend("koboldcpp", str(model), "--contextsize=16384", "--gpulayers", "99", "--flashattention"),
    ):
        assert other.memory_estimate() == found, other.settings.parameters
        assert names(other.model_files()) == ["m.gguf"]
    without = backend("koboldcpp", str(model), "--contextsize", "16384", "--gpulayers", "0").memory_estimate()
    assert without is not None
    assert without.gpu_bytes < found.gpu_bytes + 10**9


def test_koboldcpp_with_other_models_is_not_guessed_at(tmp_path: Path, model: Path) -> None:
    (tmp_path / "sd.safetensors").write_bytes(b"x")
    line = backend("koboldcpp", str(model), "--sdmodel", str(tmp_path / "sd.safetensors"))
    assert line.memory_estimate() is None
    assert names(line.model_files()) == ["m.gguf", "sd.safetensors"]
    assert backend("koboldcpp", "--config", str(tmp_path / "none.kcpps")).memory_estimate() is None
    assert backend("koboldcpp", "--config", str(tmp_path / "none.kcpps")).model_files() == ()


def test_vllm_takes_a_share(tmp_path: Path) -> None:
    def share(*parameters: str) -> float | None:
        found = backend("vllm", *parameters).memory_estimate()
        return found.gpu_fraction if found is not None else None

    assert share("m") == 0.92
    assert share("serve", "m", "--gpu-memory-utilization", "0.5") == 0.5
    assert share("m", "--gpu_memory_utilization=0.4") == 0.4
    assert share("m", "--gpu-memory-utilization", "much") is None
    assert share("m", "--gpu-memory-utilization", "3") is None
    assert share("m", "--kv-cache-memory-bytes", "4G") is None


@pytest.mark.parametrize("option", ["--tensor-parallel-size", "--tensor_parallel_size", "-tp", "-pp", "-dp"])
def test_vllm_on_several_gpus_is_not_placed_on_one(option: str) -> None:
    """Its share is taken of each of them: as the footprint of one GPU it would be started with that one alone."""
    assert backend("vllm", "serve", "m", option, "2").memory_estimate() is None
    assert backend("vllm", "serve", "m", f"{option}=2").memory_estimate() is None
    assert backend("vllm", "serve", "m", option, "1").memory_estimate() is not None


def test_vllm_reads_what_the_index_lists(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "c.safetensors", "x.bin"):
        (tmp_path / name).write_bytes(b"x")
    assert names(backend("vllm", "serve", str(tmp_path)).model_files()) == [f"{one}.safetensors" for one in "abc"]
    (tmp_path.parent / "secret").write_bytes(b"x")
    index = {"weight_map": {"1": "b.safetensors", "2": "a.safetensors", "3": "../secret", "4": 7}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names(backend("vllm", "--model", str(tmp_path)).model_files()) == ["b.safetensors", "a.safetensors"]
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert len(backend("vllm", str(tmp_path)).model_files()) == 3
    assert backend("vllm", "owner/name").model_files() == ()
    assert backend("vllm", "a\0b").model_files() == ()


@pytest.mark.parametrize("kind", ["sdwebui", "comfyui", "ollama", "command", "demo"])
def test_others_say_that_they_do_not_know(kind: str) -> None:
    one = backend(kind, attach_to="http://127.0.0.1:1") if kind == "ollama" else backend(kind)
    assert one.model_files() == ()
    assert one.memory_estimate() is None
