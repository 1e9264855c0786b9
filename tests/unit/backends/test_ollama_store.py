"""Models as an ollama server would find them on the disk."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.backends import ollama_store
from juggler.backends.ollama_store import ModelStore, models_folder, parts_of_name
from tests.ollama_files import write_model
from tests.unit.survey.gguf_files import LLAMA, Written

SHORT: dict[str, Written] = {"general.architecture": "llama", "llama.context_length": 8192}


def shown(store: Path, name: str, system: str = "") -> dict[str, object]:
    """What is told of a model that is there."""
    return shown_by(ModelStore(store), name, system)


def shown_by(store: ModelStore, name: str, system: str = "") -> dict[str, object]:
    model = store.find(name)
    assert model is not None
    document = store.show(model, system)
    assert document is not None
    return document


def test_models_are_listed_last_changed_first(tmp_path: Path) -> None:
    """Names as short as ollama makes them, whoever they are from; sizes of all layers."""
    write_model(tmp_path, "old", modified_ns=1)
    write_model(tmp_path, "new", tag="7b-q4", modified_ns=3 * 10**18)
    write_model(tmp_path, "mine", namespace="Me", modified_ns=2 * 10**18)
    write_model(tmp_path, "far", host="hf.co", namespace="o", modified_ns=10**18)
    found = ModelStore(tmp_path).models()
    assert [one.name for one in found] == ["new:7b-q4", "Me/mine:latest", "hf.co/o/far:latest", "old:latest"]
    manifest = tmp_path / "manifests/registry.ollama.ai/library/old/latest"
    layers = json.loads(manifest.read_text())
    assert found[-1].size_bytes == layers["config"]["size"] + layers["layers"][0]["size"]
    assert found[-1].modified_at == "1970-01-01T00:00:00.000000001Z"
    assert len(found[-1].digest) == 64
    assert found[-1].details() == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "1B",
        "quantization_level": "Q4_0",
    }


def test_without_a_store_nobody_knows(tmp_path: Path) -> None:
    """An empty list would say that there are no models; an empty store does."""
    with pytest.raises(OSError):
        ModelStore(tmp_path).models()
    (tmp_path / "manifests").mkdir()
    assert ModelStore(tmp_path).models() == []


def test_what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    """No JSON, no object, a configuration that is not there, names that are none, and other people's files."""
    good = write_model(tmp_path, "good")
    for name, held in (("text", "x"), ("list", "[]"), ("deep", "[" * 100_000), ("long", " " * 2**20 + "{}")):
        write_model(tmp_path, name).write_text(held)
    lost = write_model(tmp_path, "lost")
    lost.write_text(json.dumps(json.loads(good.read_text()) | {"config": {"digest": "../../../../etc/passwd"}}))
    lost = write_model(tmp_path, "lost2", config={"other": 1})
    digest = json.loads(lost.read_text())["config"]["digest"]
    (tmp_path / "blobs" / digest.replace(":", "-")).unlink()
    write_model(tmp_path, ".DS_Store")
    (good.parent / "a b").write_text(good.read_text())
    (good.parent / "folder").mkdir()
    (tmp_path / "manifests" / "README").write_text("x")
    assert [one.name for one in ModelStore(tmp_path).models()] == ["good:latest"]


def test_lists_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever somebody fills the folder with."""
    for number in range(6):
        write_model(tmp_path, f"m{number}")
    with monkeypatch.context() as patch:
        patch.setattr(ollama_store, "MODELS_MAX", 3)
        assert len(ModelStore(tmp_path).models()) == 3
    monkeypatch.setattr(ollama_store, "FOLDERS_MAX", 5)
    assert len(ModelStore(tmp_path).models()) < 3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("small", ("registry.ollama.ai", "library", "small", "latest")),
        ("Small:7B", ("registry.ollama.ai", "library", "small", "7b")),
        ("me/small", ("registry.ollama.ai", "me", "small", "latest")),
        ("hf.co/me/small:q4", ("hf.co", "me", "small", "q4")),
        ("https://h:5000/me/small", ("h:5000", "me", "small", "latest")),
        ("h:5000/me/small:x", ("h:5000", "me", "small", "x")),
    ],
)
def test_names_as_requests_write_them(name: str, parts: tuple[str, ...]) -> None:
    """What is left out is filled in, case does not count."""
    assert parts_of_name(name) == parts


@pytest.mark.parametrize("name", ["", "../../../etc/passwd", "a/b/c/d/e", "small@sha256:0", "other", "small:", ":"])
def test_names_of_nothing_find_nothing(tmp_path: Path, name: str) -> None:
    """Paths are made of what the folder holds, never of what a request says."""
    write_model(tmp_path)
    assert ModelStore(tmp_path).find(name) is None


def test_details_of_a_model(tmp_path: Path) -> None:
    """Everything its layers and the head of its file tell, and nothing more."""
    params = {"num_ctx": 131072, "stop": ["<|a|>", 'b"'], "temperature": 0.7, "top_k": 1e6, "min_p": 0.00001, "x": True}
    layers = {
        "license": "MIT",
        "template": "{{ .System }}{{ .Prompt }}",
        "system": "Be brief.",
        "params": json.dumps(params),
        "messages": '[{"role": "user", "content": "hi"}]',
    }
    values = {**LLAMA, "general.name": "Secret", "tokenizer.chat_template": "{{ x }}", "llama.rope.freq_base": 10000.0}
    write_model(tmp_path, layers=layers, gguf=values, config={"requires": "0.20.0"})
    document = shown(tmp_path, "SMALL")
    info = document.pop("model_info")
    assert isinstance(info, dict)
    assert info["llama.context_length"] == 131072
    assert info["llama.rope.freq_base"] == 10000.0
    assert info["tokenizer.ggml.tokens"] is None
    assert {"general.name", "tokenizer.chat_template"}.isdisjoint(info)
    lines = str(document.pop("parameters")).split("\n")
    assert [line.split(maxsplit=1) for line in lines] == [
        ["num_ctx", "131072"],
        ["stop", '"<|a|>"'],
        ["stop", '"b\\""'],
        ["temperature", "0.7"],
        ["top_k", "1e+06"],
        ["min_p", "1e-05"],
        ["x", "true"],
    ]
    assert all(len(line.split()[0]) < 30 and line[30] == " " for line in lines)
    assert document == {
        "license": "MIT",
        "template": "{{ .System }}{{ .Prompt }}",
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "hi"}],
        "modified_at": "2023-11-14T22:13:20.123456789Z",
        "requires": "0.20.0",
        "details": {
            "parent_model": "/blobs/parent",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "1B",
            "quantization_level": "Q4_0",
        },
    }
    assert shown(tmp_path, "small", "Be long.")["system"] == "Be long."


def test_a_template_is_not_guessed(tmp_path: Path) -> None:
    """Without one of its own a model has ollama's, or that of its file, which the program would choose."""
    write_model(tmp_path, "plain", gguf=SHORT)
    write_model(tmp_path, "chat", gguf={**SHORT, "tokenizer.chat_template": "{{ x }}" * 1000})
    assert shown(tmp_path, "plain")["template"] == "{{ .Prompt }}"
    assert "template" not in shown(tmp_path, "chat")


def test_no_details_without_the_files(tmp_path: Path) -> None:
    """Half of them might mislead: the file of the model or another layer is missing, or is no GGUF file."""
    store = ModelStore(tmp_path)
    write_model(tmp_path, "tensors", gguf=None)
    write_model(tmp_path, "other", gguf=None, layers={"model": "no GGUF"})
    path = write_model(tmp_path, "torn", layers={"license": "L"})
    digest = json.loads(path.read_text())["layers"][1]["digest"]
    (tmp_path / "blobs" / digest.replace(":", "-")).unlink()
    for name in ("tensors", "other", "torn"):
        model = store.find(name)
        assert model is not None
        assert store.show(model) is None


def test_heads_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are long, and never change; no more of them are kept than a bound."""
    monkeypatch.setattr(ollama_store, "HEADS_KEPT", 2)
    store = ModelStore(tmp_path, clock=itertools.count().__next__)
    for number in range(4):
        write_model(tmp_path, f"m{number}", gguf={**SHORT, "llama.context_length": number})
        shown_by(store, f"m{number}")
    assert len(store._heads) == 2
    monkeypatch.setattr(ollama_store, "read_head", None)
    assert shown_by(store, "m3")["model_info"]


def test_those_who_poll_share_a_list(tmp_path: Path) -> None:
    """For a second; then what has changed is seen."""
    now = 10.0
    store = ModelStore(tmp_path, clock=lambda: now)
    write_model(tmp_path, "one")
    assert len(store.models()) == 1
    write_model(tmp_path, "two")
    now += ollama_store.LIST_KEPT_S / 2
    assert len(store.models()) == 1
    now += ollama_store.LIST_KEPT_S / 2
    assert len(store.models()) == 2


def test_where_the_models_are(tmp_path: Path) -> None:
    """As ollama finds them with the same variables."""
    home = {"USERPROFILE" if os.name == "nt" else "HOME": str(tmp_path)}
    assert models_folder(home, None) == tmp_path / ".ollama" / "models"
    assert models_folder({**home, "OLLAMA_MODELS": ' "/m" '}, None) == Path("/m")
    assert models_folder({"OLLAMA_MODELS": "m"}, str(tmp_path)) == tmp_path / "m"
    assert models_folder({}, None) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
KEYS = ["mediaType", "digest", "size", "from", "config", "layers", "model_families", "remote_host", "context_length"]
ODD = st.dictionaries(st.sampled_from([*KEYS, "stop", "num_ctx", "model_format"]), JSON)


@given(ODD, ODD, JSON, JSON)
def test_whatever_the_files_hold_is_bearable(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object], config: dict[str, object],
    params: object, messages: object,
) -> None:  # fmt: skip
    """Nothing in them makes a list fail, and whatever is told is JSON."""
    folder = tmp_path_factory.mktemp("store")
    layers = {"params": json.dumps(params), "messages": json.dumps(messages)}
    write_model(folder, "odd", layers=layers, config=config)
    changed = write_model(folder, "changed", layers=layers)
    changed.write_text(json.dumps(json.loads(changed.read_text()) | changes))
    store = ModelStore(folder)
    for model in store.models():
        json.dumps([model.name, model.details(), model.modified_at, store.show(model)], allow_nan=False)
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        assert store.find("odd") is None  # Go would not read it
    else:
        assert store.find("odd") is not None


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "NaN", "-Infinity"])
def test_numbers_that_are_none(tmp_path: Path, number: str) -> None:
    """Go refuses them, and no client could read them."""
    path = write_model(tmp_path)
    path.write_text(path.read_text().replace('"schemaVersion": 2', f'"schemaVersion": {number}'))
    assert ModelStore(tmp_path).models() == []


def test_dates_that_are_none(tmp_path: Path) -> None:
    """Clocks of machines and of file systems may say anything."""
    write_model(tmp_path)
    [model] = ModelStore(tmp_path).models()
    assert dataclasses.replace(model, modified_ns=-(10**18)).modified_at == "1970-01-01T00:00:00.000000000Z"
    assert dataclasses.replace(model, modified_ns=10**21).modified_at == "9999-12-31T23:59:59.000000000Z"
