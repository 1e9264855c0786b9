"""What is told on the terminal."""

from pathlib import Path

from juggler.setup.models import ModelSearch
from juggler.setup.plan import make_plan
from juggler.setup.summary import found_text, plan_text
from tests.unit.setup.make import card, facts, model, seen

DEFAULT = Path("config.json")


def test_what_was_found() -> None:
    """One label per kind, long lists summed up, nothing that steers a terminal."""
    search = ModelSearch(
        models=[model("m")],
        folders=[Path("/models")],
        left_out=[f"x{number}.gguf: incomplete" for number in range(12)],
        unreadable=[Path("/closed\x1b[2J")],
        cut_short="it took too long",
    )
    text = found_text(facts(gpus=(card(),), search=search, servers=(seen(11434, "ollama", "ollama 0.33"),)))
    assert "  programs   /usr/bin/llama-server (version: 7777 (abc))\n" in text
    assert "  servers    ollama 0.33 at http://127.0.0.1:11434\n" in text
    assert "  models     1 GGUF in 1 folder\n" in text
    assert "and 4 more" in text
    assert "/closed?[2J" in text
    assert "took too long; name a folder with --models" in text
    assert "GPU 0: NVIDIA X0, 24.0 GiB" in text
    assert "memory     64.0 GiB" in text


def test_what_was_written() -> None:
    """The ports, what to mind, and commands that work as printed."""
    found = facts(model("m"), servers=(seen(8188, None),))
    text = plan_text(make_plan(found), DEFAULT, default=DEFAULT)
    assert "Wrote config.json: 1 endpoint on 1 port." in text
    assert "http://localhost:8021  LLM: m" in text
    assert "  - port 8188 is taken" in text
    assert "  juggler serve   serve it" in text


def test_commands_name_what_is_not_usual() -> None:
    """Another file, quoted for the shell, and another port of the control listener."""
    found = facts(programs=(), control_port=9000)
    text = plan_text(make_plan(found), Path("my config.yaml"), default=DEFAULT)
    assert "juggler doctor --config 'my config.yaml'" in text
    assert "juggler ps --url http://127.0.0.1:9000" in text
