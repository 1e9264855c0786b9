"""Where things are looked for."""

from pathlib import Path

from juggler.setup.places import USUAL_PORTS, Surroundings

HOME = Path("/home/u")


def test_the_operators_folders_come_first() -> None:
    """Then the usual ones."""
    folders = Surroundings({}, HOME, (Path("/data/gguf"),)).all_model_folders()
    assert folders[0] == Path("/data/gguf")
    assert {HOME / "models", HOME / ".lmstudio/models", HOME / ".cache/llama.cpp", Path("/models")} <= set(folders)
    assert HOME / ".cache/huggingface/hub" in folders


def test_variables_move_the_caches() -> None:
    """Those that llama.cpp, Hugging Face and the desktop know."""
    folders = Surroundings({"LLAMA_CACHE": "/c", "HF_HUB_CACHE": "/h"}, HOME).all_model_folders()
    assert {Path("/c"), Path("/h")} <= set(folders)
    moved = Surroundings({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/x"}, HOME).all_model_folders()
    assert {Path("/hf/hub"), Path("/x/llama.cpp")} <= set(moved)


def test_the_system_can_be_left_alone() -> None:
    """Nothing outside the home directory then."""
    around = Surroundings({}, HOME, system=False)
    assert all(HOME in (folder, *folder.parents) for folder in around.all_model_folders() + around.project_folders())


def test_ports_of_the_programs() -> None:
    """As backends.md names their defaults."""
    assert USUAL_PORTS[11434] == "ollama"
    assert set(USUAL_PORTS.values()) == {"ollama", "sdwebui", "comfyui", "koboldcpp", "vllm", "llamacpp"}
