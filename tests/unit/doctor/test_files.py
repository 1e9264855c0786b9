"""Files that a command line names."""

import json
import os
from pathlib import Path

import pytest

from juggler.backends.base import BackendSettings
from juggler.doctor.files import file_findings, named_files
from juggler.doctor.findings import Grade
from juggler.ids import InstanceId
from tests.unit.survey.gguf_files import write_gguf


def look(*parameters: str, kind: str = "llamacpp", cwd: Path | None = None, **env: str) -> list[tuple[Grade, str, str]]:
    settings = BackendSettings(
        InstanceId("i"), "E", kind, parameters=parameters, env=env, cwd=str(cwd) if cwd is not None else None
    )
    return [(one.grade, one.message, one.hint or "") for one in file_findings(settings)]


def only(*parameters: str, kind: str = "llamacpp", cwd: Path | None = None, **env: str) -> tuple[Grade, str, str]:
    (finding,) = look(*parameters, kind=kind, cwd=cwd, **env)
    return finding


def test_words_that_name_files() -> None:
    """By the option before them, attached by ``=``, or by their ending; URLs and names of models are none."""
    line = "-m /a/x.gguf --mmproj=/b.gguf --config /c.kcpps y.gguf --chat-template-file t.jinja -c 4096"
    assert [(one.path, one.named_by) for one in named_files(line.split())] == [
        ("/a/x.gguf", "-m"),
        ("/b.gguf", "--mmproj"),
        ("/c.kcpps", "--config"),
        ("y.gguf", "--config"),
        ("t.jinja", "--chat-template-file"),
    ]
    assert named_files(["--model", "https://huggingface.co/a/b.gguf"]) == []
    assert named_files(["serve", "org/name", "--model", "org/name", "-hf", "org/name:Q4_K_M"]) == []
    assert (
        named_files(["--log-file", "/new.log", "--api-prefix", "/v1", "--slot-save-path", "/s", "--alias", "x"]) == []
    )
    named_elsewhere = ["-hfr", "org/name", "-hff", "x.gguf", "--alias", "y.gguf", "--served-model-name=z.gguf"]
    assert named_files(named_elsewhere) == []
    assert named_files(["--lora-dir", "/loras"])[0].directory


def test_all_is_well(tmp_path: Path) -> None:
    """One line for the lot, with their size."""
    write_gguf(tmp_path / "m.gguf", size_bytes=3 * 1024**2)
    write_gguf(tmp_path / "p.gguf", size_bytes=1024**2)
    grade, message, _ = only("-m", "m.gguf", "--mmproj", str(tmp_path / "p.gguf"), cwd=tmp_path)
    assert grade is Grade.OK
    assert message == "E: 2 files readable, 4.0 MiB"
    assert look("-c", "4096") == []


def test_missing_files(tmp_path: Path) -> None:
    """Which part of the path is missing; for a relative one, from where it was looked for."""
    (tmp_path / "models").mkdir()
    grade, message, hint = only("-m", str(tmp_path / "models" / "x.gguf"))
    assert (grade, hint) == (Grade.PROBLEM, f"{tmp_path / 'models'} holds no x.gguf")
    assert "does not exist" in message
    assert only("-m", str(tmp_path / "modles" / "deep" / "x.gguf"))[2] == f"{tmp_path} holds no modles"
    assert str(tmp_path) in only("-m", "x.gguf", cwd=tmp_path)[2]


def test_tildes_are_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell stands between the configuration and the program; a Python program may do it by itself."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_gguf(tmp_path / "m.gguf")
    grade, message, _ = only("-m", "~/m.gguf")
    assert grade is Grade.PROBLEM
    assert "`~`" in message
    assert only("--ckpt", "~/m.safetensors", kind="sdwebui")[0] is Grade.WARNING


def test_split_models(tmp_path: Path) -> None:
    """All parts count; a missing one is named; a later one is not the one to name."""
    names = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names[:2]:
        write_gguf(tmp_path / name)
    grade, message, _ = only("-m", names[0], cwd=tmp_path)
    assert grade is Grade.PROBLEM
    assert message.endswith(f"parts of {names[0]} are missing: {names[2]}")
    write_gguf(tmp_path / names[2])
    assert only("-m", names[0], cwd=tmp_path)[1] == "E: 1 file readable, 12.0 KiB"
    assert only("-m", names[1], cwd=tmp_path)[2] == f"name {names[0]}"


def test_damaged_models(tmp_path: Path) -> None:
    """A pointer of Git LFS, a download that broke off, an empty file, a directory."""
    (tmp_path / "lfs.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "not a usable GGUF file" in only("-m", "lfs.gguf", cwd=tmp_path)[1]
    write_gguf(tmp_path / "cut.gguf", tensor_offset=10_000_000)
    os.truncate(tmp_path / "cut.gguf", 1_000_000)
    assert "is incomplete: 976.6 KiB of at least 9.5 MiB" in only("-m", "cut.gguf", cwd=tmp_path)[1]
    (tmp_path / "empty.safetensors").write_text("")
    assert "is empty" in only("--ckpt", "empty.safetensors", kind="sdwebui", cwd=tmp_path)[1]
    (tmp_path / "dir.gguf").mkdir()
    assert "is a directory" in only("-m", "dir.gguf", cwd=tmp_path)[1]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_files_of_others(tmp_path: Path) -> None:
    """There, and not ours to read."""
    write_gguf(tmp_path / "m.gguf").chmod(0)
    assert "may not be read" in only("-m", "m.gguf", cwd=tmp_path)[1]
    (tmp_path / "closed").mkdir(mode=0)
    assert "cannot be read" in only("--lora-dir", "./closed", cwd=tmp_path)[1]


def test_files_of_others_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, where the system's answer has to be made up."""
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr("juggler.doctor.files.os.access", lambda path, mode: False)
    assert "may not be read" in only("-m", "m.gguf", cwd=tmp_path)[1]


def test_lists_and_scales(tmp_path: Path) -> None:
    """``a,b`` and ``a:0.5``, as llama.cpp takes adapters."""
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    assert only("--lora", "a.gguf,b.gguf", cwd=tmp_path)[0] is Grade.OK
    assert only("--lora-scaled", "./a.gguf:0.5", cwd=tmp_path)[0] is Grade.OK
    assert only("--lora", "a.gguf,c.gguf", cwd=tmp_path)[1] == "--lora: c.gguf does not exist"


def test_the_script_of_an_interpreter(tmp_path: Path) -> None:
    """ComfyUI is a Python and its main.py: in the working directory, or nowhere."""
    assert only("main.py", "--lowvram", kind="comfyui", cwd=tmp_path)[1] == "the script: main.py does not exist"
    (tmp_path / "main.py").write_text("print()\n")
    assert only("main.py", "--lowvram", kind="comfyui", cwd=tmp_path)[0] is Grade.OK


def test_models_in_variables(tmp_path: Path) -> None:
    """llama.cpp takes its model from the environment as well."""
    grade, message, _ = only(cwd=tmp_path, LLAMA_ARG_MODEL="gone.gguf", OTHER="x")
    assert grade is Grade.PROBLEM
    assert message == "the variable LLAMA_ARG_MODEL: gone.gguf does not exist"


def test_models_in_saved_configurations(tmp_path: Path) -> None:
    """koboldcpp's own files name the model; they are read as koboldcpp reads them, and need not be right."""
    config = tmp_path / "q.kcpps"
    config.write_text(json.dumps({"model_param": str(tmp_path / "gone.gguf"), "mmproj": "", "lora": ["https://x/y"]}))
    findings = look("--config", str(config), kind="koboldcpp")
    assert [grade for grade, _, _ in findings] == [Grade.OK, Grade.PROBLEM]
    assert findings[1][1] == f"q.kcpps (model_param): {tmp_path / 'gone.gguf'} does not exist"
    for text in ("not json", "[1]", '{"model_param": 3}'):
        config.write_text(text)
        assert [grade for grade, _, _ in look("--config", str(config), kind="koboldcpp")] == [Grade.OK]
