"""Settings for clients: the right names, and addresses that reach the juggler from where the client runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from juggler.backends.registry import BACKENDS
from juggler.config.resolve import Pair, ResolvedEndpoint, ResolvedServer
from juggler.control import connect
from juggler.control.connect import CONTAINER_HOST, Reach, connections, lan_address, reach_of, with_host
from juggler.control.subject import Subject
from juggler.ids import EndpointId, InstanceId

LAN = "192.168.1.5"


@pytest.fixture(autouse=True)
def lan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "lan_address", lambda: LAN)


def told(
    kind: str = "llamacpp",
    *,
    host: str = "0.0.0.0",
    prefix: str = "",
    seen_as: str | None = "localhost",
    addresses: list[tuple[str, int]] | None = None,
    tls: bool = False,
) -> dict[str, Any]:
    """What is told of one endpoint of this type."""
    name = EndpointId("S/e")
    endpoint = ResolvedEndpoint(name, "e", "S", prefix, True, InstanceId("S/e"), kind, 0, 60.0)
    pair = Pair(Path("cert.pem"), Path("key.pem")) if tls else None
    server = ResolvedServer("S", host, 8080, (endpoint,), pair)
    listeners = {"S": SimpleNamespace(addresses=addresses)} if addresses else {}
    subject = SimpleNamespace(config=SimpleNamespace(servers=[server]), listeners=listeners)
    return connections(cast(Subject, subject), seen_as)


def settings(answer: dict[str, Any], client: str) -> dict[str, str]:
    (one,) = [each for each in answer["clients"] if each["client"] == client]
    return {setting["name"]: setting["value"] for setting in one["settings"]}


def note(answer: dict[str, Any], client: str) -> str:
    (one,) = [each for each in answer["clients"] if each["client"] == client]
    return one["note"] or ""


@pytest.mark.parametrize(
    ("kind", "client", "expected"),
    [
        ("llamacpp", "OpenAI libraries", {"OPENAI_BASE_URL": f"http://{LAN}:8080/p/v1", "OPENAI_API_KEY": "none"}),
        ("vllm", "SillyTavern (text completion)", {"API Type": "vLLM", "API URL": f"http://{LAN}:8080/p"}),
        ("koboldcpp", "Cline, Roo Code", {"API Provider": "OpenAI Compatible", "Base URL": f"http://{LAN}:8080/p/v1",
                                          "API Key": "none"}),
        ("ollama", "Open WebUI (Ollama)", {"OLLAMA_BASE_URL": f"http://{CONTAINER_HOST}:8080/p"}),
        ("comfyui", "Open WebUI (images, ComfyUI)", {"ENABLE_IMAGE_GENERATION": "true",
                                                     "IMAGE_GENERATION_ENGINE": "comfyui",
                                                     "COMFYUI_BASE_URL": f"http://{CONTAINER_HOST}:8080/p"}),
        ("llamacpp", "LibreChat", {"baseURL": f"http://{CONTAINER_HOST}:8080/p/v1", "apiKey": "none",
                                   "models.fetch": "true"}),
        ("command", "OpenAI libraries", {"OPENAI_BASE_URL": f"http://{LAN}:8080/p/v1", "OPENAI_API_KEY": "none"}),
    ],
)  # fmt: skip
def test_names_and_values(kind: str, client: str, expected: dict[str, str]) -> None:
    assert settings(told(kind, prefix="/p"), client) == expected


@pytest.mark.parametrize("kind", sorted(BACKENDS))
def test_every_type_has_a_client_and_no_value_is_a_sentence(kind: str) -> None:
    """What is copied is what belongs into the field, without blanks but in the names that menus offer."""
    answer = told(kind)
    assert answer["clients"]
    for one in answer["clients"]:
        for setting in one["settings"]:
            menu = setting["name"] in ("Chat Completion Source", "API Provider")
            assert menu or " " not in setting["value"]


def test_image_servers_get_no_settings_for_chats() -> None:
    for kind in ("sdwebui", "demo", "comfyui"):
        assert not [one for one in told(kind)["clients"] if "OpenAI" in one["client"]]


def test_one_that_only_this_machine_reaches() -> None:
    """The loopback address for all, and a warning that says what to do."""
    answer = told(host="127.0.0.1", seen_as="192.168.1.9")
    assert settings(answer, "Open WebUI (OpenAI)")["OPENAI_API_BASE_URL"] == "http://127.0.0.1:8080/v1"
    assert "see the warning" in note(answer, "Open WebUI (OpenAI)")
    (warning,) = answer["warnings"]
    assert warning.startswith("S listens on 127.0.0.1 only")
    assert told(host="localhost")["warnings"]


def test_one_that_listens_on_one_address_of_many() -> None:
    """A container's name for its host leads to another address, where nobody listens: the address itself does it."""
    answer = told(host="192.168.1.5", seen_as="10.0.0.1")
    assert answer["warnings"] == []
    for client in ("Open WebUI (OpenAI)", "OpenAI libraries"):
        assert "http://192.168.1.5:8080/v1" in settings(answer, client).values()
    assert CONTAINER_HOST not in note(answer, "Open WebUI (OpenAI)")


def test_the_name_under_which_the_reader_came_is_good_for_clients_too() -> None:
    assert settings(told(seen_as="gpu.lan"), "aider")["OPENAI_API_BASE"] == "http://gpu.lan:8080/v1"
    assert settings(told(seen_as="fd00::5"), "aider")["OPENAI_API_BASE"] == "http://[fd00::5]:8080/v1"
    assert settings(told(seen_as="127.0.0.1"), "aider")["OPENAI_API_BASE"] == f"http://{LAN}:8080/v1"


def test_without_a_network_the_loopback_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "lan_address", lambda: None)
    assert settings(told(), "aider")["OPENAI_API_BASE"] == "http://127.0.0.1:8080/v1"


def test_the_address_in_use_counts() -> None:
    """A port that was picked, not the 0 of the configuration; the farthest-reaching of several."""
    answer = told(host="localhost", addresses=[("127.0.0.1", 4711), ("::1", 4711)])
    assert settings(answer, "aider")["OPENAI_API_BASE"] == "http://127.0.0.1:4711/v1"
    answer = told(addresses=[("127.0.0.1", 4711), ("10.0.0.2", 4711)])
    assert settings(answer, "aider")["OPENAI_API_BASE"] == "http://10.0.0.2:4711/v1"


def test_clients_that_drop_the_path_are_named() -> None:
    def works(**more: Any) -> bool:
        (one,) = [each for each in told("sdwebui", **more)["clients"] if "SillyTavern" in each["client"]]
        return bool(one["works"])

    assert works()
    assert not works(prefix="/sd")
    assert "drops the path /sd" in note(told("sdwebui", prefix="/sd"), "SillyTavern (images, SD WebUI)")
    assert "drops the path /c" in note(told("comfyui", prefix="/c"), "Browser (ComfyUI)")


def test_https_and_what_the_certificate_has_to_name() -> None:
    answer = told(tls=True)
    assert settings(answer, "Open WebUI (OpenAI)")["OPENAI_API_BASE_URL"] == f"https://{CONTAINER_HOST}:8080/v1"
    assert f"to name {CONTAINER_HOST}" in note(answer, "Open WebUI (OpenAI)")
    assert f"--add-host={CONTAINER_HOST}:host-gateway" in note(answer, "Open WebUI (OpenAI)")


def test_reach() -> None:
    assert reach_of(["127.0.0.1", "::1"]) is Reach.HERE
    assert reach_of(["::"]) is Reach.EVERYWHERE
    assert reach_of(["127.0.0.1", "10.0.0.2"]) is Reach.ONE
    assert reach_of(["gpu.lan"]) is Reach.ONE


def test_pieces() -> None:
    assert with_host("http://127.0.0.1:80/a%20b", "h") == "http://h:80/a%20b"
    address = lan_address()
    assert address is None or address.count(".") == 3
