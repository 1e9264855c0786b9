"""The start of the program: what keeps it from serving, and what it goes on without."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from juggler.app import App
from juggler.config.load import load_text
from juggler.config.resolve import resolve
from juggler.errors import ConfigError
from tests.ports import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def app(tmp_path: Path, port: int, **top: object) -> App:
    document = {
        "temp_dir": str(tmp_path / "t"),
        "state_dir": str(tmp_path / "s"),
        "control": False,
        "backends": {"demo": {}},
        "servers": [{"name": "S", "port": port, "endpoints": [{"name": "E", "backend": "demo"}]}],
        **top,
    }
    return App(resolve(load_text(json.dumps(document))), on_listening=App.stop)


def test_an_address_that_is_taken_is_named_once(tmp_path: Path, taken: int) -> None:
    with pytest.raises(ConfigError) as caught:
        asyncio.run(app(tmp_path, taken).run())
    assert caught.value.message == f"server 'S' cannot listen on 127.0.0.1:{taken}: Address already in use"


def test_without_its_control_plane_it_goes_on(tmp_path: Path, taken: int, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    asyncio.run(app(tmp_path, port, control={"port": taken}).run())
    why = f"cannot listen on 127.0.0.1:{taken}: Address already in use; set `control` in the configuration"
    assert f"no dashboard and no API: {why}" in caplog.messages


@pytest.mark.parametrize("key", ["temp_dir", "state_dir"])
def test_a_file_in_place_of_a_directory(tmp_path: Path, taken: int, key: str) -> None:
    """The key is named that has to be changed."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        asyncio.run(app(tmp_path, taken, **{key: str(tmp_path / "file")}).run())
    assert caught.value.message == f"{key}: {tmp_path / 'file'} is not a directory"


def test_a_directory_that_cannot_be_written_is_told_at_the_start(
    tmp_path: Path, taken: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when something is to be kept at the end. Root may write everywhere, so the system's word is made up."""
    locked = tmp_path / "s"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked)
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match="cannot listen"):
        asyncio.run(app(tmp_path, taken).run())
    assert caplog.messages == [
        f"state_dir: {locked} cannot be written: nothing that is learned, and no conversation, is kept"
    ]
