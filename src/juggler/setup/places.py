"""Where things usually are: tables, and what of them holds for this user."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USUAL_PORTS = {
    11434: "ollama",
    7860: "sdwebui",
    7861: "sdwebui",
    8188: "comfyui",
    5001: "koboldcpp",
    8000: "vllm",
    8080: "llamacpp",
}
"""Default ports and whose they are (backends.md sections 2 to 7)."""

_PROJECT_FOLDERS = ("", "AI", "ai", "apps", "code", "comfy", "dev", "git", "projects", "repos", "sd", "src", "tools")
"""Below the home directory, where people clone repositories; ``comfy`` is the default of comfy-cli."""

_PACKAGE_FOLDERS = ("StabilityMatrix/Data/Packages", ".local/share/StabilityMatrix/Packages")
_SYSTEM_FOLDERS = ("/opt", "/srv")

_MODEL_FOLDERS = (
    *("models", "Models", "llm", "LLM", "AI/models", "ai/models", "Downloads", "llama.cpp/models", "koboldcpp"),
    *("text-generation-webui/models", "text-generation-webui/user_data/models"),
    *(".lmstudio/models", ".cache/lm-studio/models"),  # LM Studio, now and before 0.3
    *(".local/share/nomic.ai/GPT4All", "jan/llamacpp/models", ".local/share/Jan/data/llamacpp/models"),
)
_SYSTEM_MODEL_FOLDERS = ("/models", "/opt/models", "/srv/models", "/mnt/models", "/data/models")


@dataclass(frozen=True)
class Surroundings:
    """Whose machine is looked through, and where."""

    environ: Mapping[str, str]
    home: Path
    model_folders: tuple[Path, ...] = ()
    """Named by the operator; looked through first."""
    ports: tuple[int, ...] = tuple(USUAL_PORTS)
    system: bool = True
    """Whether folders outside the home directory are looked through as well."""

    @property
    def search_path(self) -> str | None:
        return self.environ.get("PATH")

    def project_folders(self) -> list[Path]:
        """Folders that may hold programs, each in a folder of its own."""
        folders = [self.home / name for name in (*_PROJECT_FOLDERS, *_PACKAGE_FOLDERS)]
        return folders + [Path(name) for name in _SYSTEM_FOLDERS if self.system]

    def all_model_folders(self) -> list[Path]:
        """Folders that may hold models, the operator's first."""
        cache = Path(self.environ.get("XDG_CACHE_HOME") or self.home / ".cache")
        hub = self.environ.get("HF_HUB_CACHE")
        hub_home = Path(self.environ.get("HF_HOME") or cache / "huggingface")
        folders = [
            *self.model_folders,
            *(self.home / name for name in _MODEL_FOLDERS),
            Path(self.environ.get("LLAMA_CACHE") or cache / "llama.cpp"),  # llama.cpp: common/common.cpp
            Path(hub) if hub else hub_home / "hub",  # huggingface_hub: constants.py
        ]
        return folders + [Path(name) for name in _SYSTEM_MODEL_FOLDERS if self.system]
